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
BASE = {"errors", "plugin_options", "plugin_files", "catalog"}
BELOW = {
    "errors": set(),
    "plugin_options": set(),
    "plugin_files": {"errors", "plugin_options"},
    "catalog": {"errors", "plugin_options", "plugin_files"},
    "jobs": {"errors"},
    "datasets": {"errors"},
    "inspection": {"errors", "datasets"},
    "orchestration": {*BASE, "jobs", "datasets"},
    "reporting": {*BASE, "jobs"},
    "training": {"errors", "jobs", "datasets"},
    "session": {"errors", "jobs", "orchestration", "reporting"},
    "cli": {*BASE, "jobs", "datasets", "inspection", "orchestration", "reporting", "session"},
    "__main__": {"cli"},
    "__init__": set(),
}
HEAVY = {
    "mlflow": {"reporting/mlflow_store.py"},
    "optuna": {"orchestration/tuning/study.py"},
    "matplotlib": {"reporting/plots/", "reporting/study_plots/"},
    "jinja2": {"reporting/renderers/"},
    "ray": {"orchestration/executors/_ray.py"},
    **{name: {"training/"} for name in ("torch", "torchvision", "mmengine", "mmdet", "mmcv")},
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


@pytest.mark.parametrize("file", FILES)
def test_arrows_point_down(file: str) -> None:
    assert arrows(file.partition("/")[0].removesuffix(".py"), (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("orchestration", "from kdlab.reporting import records"),
        ("training", "import kdlab.orchestration.plan"),
        ("jobs", "def late():\n    from kdlab import catalog"),
        ("session", "from kdlab.cli.console import Screen"),
        ("cli", "from kdlab.training.job import commit"),
    ],
)
def test_an_arrow_that_points_up_is_found(room: str, text: str) -> None:
    assert len(arrows(room, text)) == 1


@pytest.mark.parametrize("file", FILES)
def test_heavy_packages_are_imported_in_their_place_only(file: str) -> None:
    used = {name.partition(".")[0] for name in imports(ast.parse((PACKAGE / file).read_text()))}
    assert [name for name, homes in HEAVY.items() if name in used and not file.startswith(tuple(homes))] == []


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
    assert loaded & {*HEAVY, "pydantic", "pandas", "numpy", "sklearn"} <= allowed
    assert "kdlab" in loaded
