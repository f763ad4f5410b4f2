"""Files of recipes: in the catalog, of people, and in the runs folder, where commands derive them."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdlab import catalog
from kdlab.errors import UsageError, fixes, suggestion
from kdlab.jobs.files import write_text
from kdlab.jobs.paths import Runs
from kdlab.recipe.document import Document, dotted, shortened, shown
from kdlab.redaction import masked

_SECTIONS = [re.compile(rf"^['\"]?{section}['\"]?\s*:", re.MULTILINE) for section in ("dataset", "student")]

_LOCAL = re.compile(r"(^|[\s'\"{\[,])[/~]")
"""Beginning of a path of this machine; one of a URL has a slash before it."""


def find(name_or_path: str) -> tuple[str, Path]:
    """Name and file of a recipe.

    Raises:
        UsageError: there is none.
    """
    recipes = catalog.recipes()
    path = Path(name_or_path)
    try:
        if path.is_file():
            names = (name for name, info in recipes.items() if info.path.samefile(path))
            return next(names, _derived_name(path) or _own_name(path)), path
        what = f"{dotted((name_or_path,))} is not a {'file' if path.exists() else 'recipe'}"
        if name_or_path in recipes:
            return name_or_path, recipes[name_or_path].path
        if (written := derived(name_or_path)).is_file() and _derived_name(written) == name_or_path:
            return name_or_path, written
        mine = own()
        if name_or_path in mine:
            return _own_name(mine[name_or_path]), mine[name_or_path]
    except OSError as error:
        what = f"{shown(name_or_path)} is not a recipe: {error.strerror}"
    near = suggestion(name_or_path.removeprefix("recipes/").removesuffix(".yaml"), [*recipes, *own()])
    more = "see: kdlab ls recipes"
    if path.suffix in (".yaml", ".yml") and what.endswith(" is not a recipe"):
        what, more = f"there is no file {dotted((name_or_path,))}", f"kdlab init FOLDER writes one, {more}"
    raise UsageError(what, known=shortened(recipes), fix=fixes(near, more))


def own() -> dict[str, Path]:
    """File of each recipe in the working folder and below its `recipes/`, by its name without the ending."""
    folder, known = Path("recipes"), catalog.recipe_folder()
    below = folder.is_dir() and not folder.samefile(known)
    paths = [(Path(), path) for path in sorted(Path().glob("*.yaml")) if _is_recipe(path)]
    paths += [(folder, path) for path in sorted(folder.rglob("*.yaml")) if below and _is_recipe(path)]
    found: dict[str, Path] = {}
    for above, path in paths:
        found.setdefault(path.relative_to(above).with_suffix("").as_posix(), path)
    return found


def derived(name: str) -> Path:
    """The file of a recipe that a command derives from another, whether it exists or not."""
    return _derived_folder() / f"{name}.yaml"


def write_derived(name: str, text: str) -> Path:
    """Write the recipe that a command derives from another to where `kdlab run` finds it; its file."""
    path = derived(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def all_derived() -> dict[str, str]:
    """Name and first comment of each recipe that a command derived from another."""
    return {_derived_name(path): about(path) for path in sorted(_derived_folder().rglob("*.yaml"))}


def about(path: Path) -> str:
    """The first comment of a recipe."""
    return catalog.first_comment(path.read_text("utf-8", "replace"))


def told(path: Path) -> str:
    """A path as messages name it: from the current folder on where it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def command_of(name: str, document: Document, overrides: Sequence[str] = ()) -> str:
    """Command for a recipe; for a derived one, which begins with it, the command that made it."""
    words = ["kdlab", "run", typed(name, document)]
    lines = [line.removeprefix("# ") for line in document.text.splitlines()[:2]]
    for line in lines:
        if line.startswith("kdlab ablate "):
            with suppress(ValueError):
                words = shlex.split(line)
    return shlex.join([*words, *(word for one in overrides for word in ("--set", shareable(one)))])


def go_on(told: Mapping[str, Any]) -> str:
    """The command that goes on with a plan of a recipe, as it can be typed in this folder.

    `told` is the recipe as its plan holds it.
    """
    name, path = told["name"], told.get("path", "")
    named = name in catalog.recipes() or not Path(path).is_file()
    verbs = {"study": "tune", "diagnoses": "diagnose"}
    verb = next((verb for key, verb in verbs.items() if key in told), "run")
    return shlex.join(["kdlab", verb, name if named else path])


def typed(name: str, document: Document) -> str:
    """Name of a recipe on the command line, as others may read it."""
    known = name in catalog.recipes() or derived(name).is_file()
    return name if known else shareable(document.file)


def shareable(text: str) -> str:
    """An override or a path as others may read it: secrets masked, what lies on this machine alone `PATH`."""
    key, equals, value = masked(text).partition("=")
    if not equals:
        return "PATH" if _LOCAL.search(key) else key
    return f"{key}=PATH" if _LOCAL.search(value) else f"{key}={value}"


def of_folder(folder: Path) -> Path | None:
    """The recipe that lies in a folder; None where there is none.

    Raises:
        UsageError: there are several.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".yaml", ".yml") and _is_recipe(path):
            found.append(path)
    if len(found) > 1:
        known = ", ".join(path.name for path in found)
        what = f"there are {len(found)} recipes here"
        raise UsageError(what, where=str(folder), known=known, fix=f"name one of them: {found[0].name}")
    return found[0] if found else None


def _is_recipe(path: Path) -> bool:
    """Whether a YAML file has a section of a recipe, whatever else in it is wrong."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        text = stream.read(2**20)
    return any(section.search(text) for section in _SECTIONS)


def _own_name(path: Path) -> str:
    """Name of a recipe outside of the catalog: its path from here on, so that no two files share one.

    A file elsewhere, one without an ending, or one that is called as one of the catalog or a derived one, is
    told apart by a hash of its path.
    """
    here, path = Path.cwd(), path.resolve()
    if path.is_relative_to(here) and path.suffix:
        name = path.relative_to(here).as_posix().removesuffix(".yaml")
        if name not in catalog.recipes() and not derived(name).is_file():
            return name
    return f"{path.stem}-{hashlib.sha256(bytes(path)).hexdigest()[:6]}"


def _derived_folder() -> Path:
    return Runs.here().folder / "recipes"


def _derived_name(path: Path) -> str:
    """The path below the folder of derived recipes, without its ending; "" for a path elsewhere."""
    folder, path = _derived_folder().resolve(), path.resolve()
    return path.relative_to(folder).with_suffix("").as_posix() if path.is_relative_to(folder) else ""
