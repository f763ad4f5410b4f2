"""kdlab cp: a copy of a recipe to change."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import RecipeName
from kdlab.errors import UsageError


def cp(
    screen: Screen,
    recipe: RecipeName,
    to: Annotated[str, typer.Argument(metavar="FILE", help="The copy.", show_default=False)],
) -> None:
    """Copy a recipe to a file of your own, with its comments.

    \b
    Examples:
      $ kdlab cp digits/quickstart mine.yaml
      written: mine.yaml
      next: kdlab plan mine.yaml
      $ kdlab cp coco/gfl_r101_r50 recipes/ours.yaml
      written: recipes/ours.yaml
      next: kdlab plan recipes/ours.yaml
    """
    from kdlab.jobs.files import replacing
    from kdlab.recipe.files import find

    _, path = find(recipe)
    file = Path(to)
    if file.is_dir() or to.endswith("/"):
        file /= path.name
    if file.suffix != ".yaml":
        raise UsageError("a recipe's file ends in .yaml", got=str(file), fix=f"{file}.yaml")
    if file.exists():
        raise UsageError("there is such a file", where=str(file), fix="name another, or move it away")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as copy:
        copy.write(path.read_bytes())
    if screen.json:
        screen.emit(file=str(file), copied=recipe)
    screen.say(f"written: {file}")
    name = file.with_suffix("").as_posix().removeprefix("recipes/")
    if name in catalog.recipes() and not catalog.recipes()[name].path.samefile(file):
        screen.say(f"note: {name} without .yaml still means the one that comes with kdlab")
    screen.next(shlex.join(["kdlab", "plan", str(file)]))
