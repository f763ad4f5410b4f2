"""kdlab show: a recipe with all its values, how it differs from another, and images as models see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen, grid
from kdlab.cli.screen.options import Overrides, RecipeName, recipe_names
from kdlab.cli.screen.results import RESULTS, results_stem
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from kdlab.recipe.values import Value


def show(
    screen: Screen,
    recipe: RecipeName,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, max=64, help="Draw N images as a model is given them."),
    ] = None,
    epoch: Annotated[
        int, typer.Option("--epoch", min=1, metavar="N", help="Of the images: which pass over them.")
    ] = 1,
    diff: Annotated[
        str | None,
        typer.Option(
            "--diff", metavar="RECIPE", help="Only what differs from this one.", autocompletion=recipe_names
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Show a recipe with all its values, and where each comes from.

    With --images the first training images of the first seed, augmented and resized, with their boxes.

    \b
    Examples:
      $ kdlab show digits/quickstart
      dataset.scale  ...
      dataset.flip   ...
      ...
      $ kdlab show digits/quickstart --set schedule.lr=2e-3 --diff digits/quickstart
      teacher.schedule.lr  0.002  0.004
      schedule.lr          0.002  0.004
    """
    from kdlab.recipe.values import differences, values_of

    if images is None and epoch != 1:
        raise UsageError("--epoch has no effect without --images", fix="--images 8")
    if images is not None and diff is not None:
        raise UsageError("--diff has no effect beside --images", fix="leave one of the two out")
    if images is not None:
        _draw(screen, recipe, overrides or [], images, epoch - 1)
        return
    values = values_of(recipe, overrides or [])
    if diff is not None:
        found = differences(values, values_of(diff))
        if screen.json:
            screen.emit(differs=[{"key": key, "value": mine, "other": theirs} for key, mine, theirs in found])
        elif found:
            screen.data(_rows([(key, _shown(mine), _shown(theirs)) for key, mine, theirs in found]))
        else:
            screen.say("the two are equal")
    elif screen.json:
        screen.emit(values=[vars(value) for value in values])
    else:
        screen.data(_values(values))
    screen.next(f"kdlab plan{screen.command('--diff ').removeprefix('kdlab show')}")


def _values(values: list[Value]) -> Table:
    """A line a value; defaults are dim."""
    from rich.text import Text

    from kdlab.recipe.values import DEFAULT

    rows = []
    for value in values:
        style = "dim" if value.place == DEFAULT else ""
        told = Text(_shown(value.value), style=style)
        rows.append((Text(value.key, style=style), told, Text(value.place, style="dim")))
    return grid(rows, wrap=[1])


def _rows(rows: list[tuple[str, str, str]]) -> Table:
    return grid(rows, wrap=[1, 2])


def _shown(value: Any) -> str:
    """As `--set` takes it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) and value else json.dumps(value)


def _draw(screen: Screen, recipe: str, overrides: list[str], images: int, epoch: int) -> None:
    """Write the picture of the first student's training images, and say what is on it."""
    from kdlab import children
    from kdlab.cli.verbs.plan import prepare

    made = prepare(screen, recipe, overrides, "local", None, priced=False)
    student = next(planned.job for planned in made.plan.jobs if planned.job.is_student)
    epochs = student.spec.schedule.epochs
    if epochs is not None and epoch >= epochs:
        known = f"1 to {epochs}"
        raise UsageError("the schedule has no such epoch", got=f"--epoch {epoch + 1}", known=known)
    to = RESULTS / f"{results_stem(made.plan)}-images.png"
    to.parent.mkdir(parents=True, exist_ok=True)
    request = {"job": student.to_dict(), "images": images, "epoch": epoch, "to": str(to)}
    with screen.working("reading the images"):
        told = children.told("kdlab.training.showing", request, "the images cannot be drawn")
    if screen.json:
        screen.emit(files=[str(to)], **told)
        return
    rows = [
        (one["file"], f"{one['width']}x{one['height']}", f"{one['boxes']} boxes") for one in told["images"]
    ]
    screen.data(grid(rows))
    screen.say(f"written: {to}")
    screen.next_plan(recipe, overrides)
