"""Who may import whom: the arrows of docs/architecture.md, and what must stay out of a quick command."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdlab

PACKAGE = Path(kdlab.__file__).parent
BELOW = {
    "errors": set(),
    "redaction": set(),
    "deadline": set(),
    "plugins": set(),
    "children": {"plugins", "errors"},
    "devices": {"errors"},
    "catalog": {"plugins", "errors"},
    "jobs": {"redaction", "errors", "datasets"},
    "datasets": {"plugins", "redaction", "errors"},
    "inspection": {"errors", "datasets"},
    "drafting": {"errors", "datasets"},
    "recipe": {"redaction", "errors", "catalog", "jobs"},
    "planning": {
        "redaction",
        "deadline",
        "children",
        "devices",
        "errors",
        "catalog",
        "jobs",
        "datasets",
        "recipe",
    },
    "running": {"plugins", "children", "devices", "errors", "catalog", "jobs", "planning"},
    "tuning": {
        "redaction",
        "devices",
        "errors",
        "catalog",
        "jobs",
        "datasets",
        "recipe",
        "planning",
        "running",
    },
    "tracking": {"redaction", "deadline", "errors", "jobs"},
    "reporting": {"redaction", "errors", "catalog", "jobs", "tracking"},
    "mmcv_ops": {"errors"},
    "backbones": {"plugins", "errors"},
    "detectors": {"plugins", "errors", "jobs", "mmcv_ops", "backbones"},
    "methods": {"plugins", "errors", "mmcv_ops", "detectors"},
    "training": {"children", "errors", "jobs", "datasets", "mmcv_ops", "backbones", "detectors", "methods"},
    "testing": {"errors", "catalog", "jobs", "detectors", "methods", "training"},
    "prepared": {"devices", "errors", "jobs", "recipe", "planning", "running"},
    "api": {"errors", "catalog", "jobs", "recipe", "prepared", "session", "running", "reporting"},
    "session": {"devices", "errors", "jobs", "recipe", "planning", "running", "tuning", "tracking"},
    "__main__": {"cli"},
    "__init__": {"api"},
}
BELOW["cli"] = BELOW.keys() - {
    "cli", "api", "testing", "training", "backbones", "detectors", "methods", "mmcv_ops", "__main__",
    "__init__",
}  # fmt: skip
HEAVY = {
    "mlflow": {"tracking/mlflow.py"},
    "optuna": {"tuning/study.py", "reporting/study_plots.py"},
    "matplotlib": {"reporting/plots/", "reporting/study_plots.py", "api.py"},
    "jinja2": {"reporting/renderers/"},
    "psutil": {"jobs/lease.py", "training/images.py"},
    "pandas": {"reporting/tables.py", "api.py"},
    "ray": {"running/executors/_ray.py"},
    **{
        name: {"testing.py", "training/", "backbones/", "detectors/", "methods/", "mmcv_ops/"}
        for name in ("torch", "torchvision", "mmengine", "mmdet", "mmcv")
    },
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, also those inside functions; "from a import b" is "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(room: str, text: str) -> list[str]:
    """The rooms that a file of `room` imports and must not."""
    names = [name.split(".") for name in imports(ast.parse(text)) if name.startswith("kdlab.")]
    rooms = {
        parts[1] for parts in names if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()
    }
    return sorted(rooms - BELOW[room] - {room})


def test_arrows_point_down() -> None:
    rooms = {file: file.partition("/")[0].removesuffix(".py") for file in FILES}
    up = {file: arrows(room, (PACKAGE / file).read_text()) for file, room in rooms.items()}
    assert {file: found for file, found in up.items() if found} == {}


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("planning", "from kdlab.reporting import tables"),
        ("training", "import kdlab.planning.build"),
        ("jobs", "def late():\n    from kdlab import catalog"),
        ("session", "from kdlab.cli.screen.console import Screen"),
        ("cli", "from kdlab.training.job import commit"),
    ],
)
def test_an_arrow_that_points_up_is_found(room: str, text: str) -> None:
    assert len(arrows(room, text)) == 1


def test_heavy_packages_are_imported_in_their_place_only() -> None:
    strays = []
    for file in FILES:
        used = {name.partition(".")[0] for name in imports(ast.parse((PACKAGE / file).read_text()))}
        strays += [(file, name) for name in used & HEAVY.keys() if not file.startswith(tuple(HEAVY[name]))]
    assert strays == []


# typer itself needs pydantic as soon as a verb is named
@pytest.mark.parametrize(
    ("argv", "allowed"),
    [(["--help"], set()), (["run", "--help"], {"pydantic"}), (["ls", "methods", "--json"], {"pydantic"})],
)
def test_a_quick_command_imports_nothing_heavy(argv: list[str], allowed: set[str]) -> None:
    script = (
        "import sys\n"
        "from kdlab.cli.app import main\n"
        "main(sys.argv[1:])\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert loaded & {*HEAVY, "pydantic", "numpy", "sklearn"} <= allowed
    assert "kdlab" in loaded
