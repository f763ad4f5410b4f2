"""kdlab ablate: train all combinations of some methods, or values of their options, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import (
    DryRun,
    ExecutorName,
    FailFast,
    Gpus,
    Jobs,
    Overrides,
    Yes,
    method_names,
    recipe_names,
)
from kdlab.cli.verbs.plan import Prepared, planned, preview, total
from kdlab.cli.verbs.run import FAILED, carry_out, may_cost
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdlab.recipe.ablation import Derived
    from kdlab.recipe.settings import Recipe
    from kdlab.recipe.variation import Request

QUICKSTART = "digits/quickstart"
FREE_ARMS = 16
"""Arms above which an ablation asks first."""


def ablate(
    screen: Screen,
    loss: Annotated[
        str,
        typer.Option(
            "--loss",
            metavar="METHODS",
            help="What to combine: rm,pfi.",
            show_default=False,
            autocompletion=method_names,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help=f"What to vary; by default the recipe in this folder, else {QUICKSTART}.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="One method at a time, no combinations.")] = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="METHOD.KEY=VALUES",
            help="Values of an option: rm.rank=cls,loc,both. Repeatable.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="NUMBERS", help="In place of the recipe's: 0,1,2.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs", metavar="KEY=VALUES", help="Students or teachers: student.width=8,16. Repeatable."
        ),
    ] = None,
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    gpus: Gpus = None,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Train all combinations of some methods and compare them.

    Writes a recipe with those arms to runs/recipes/ and runs it: what other recipes trained is reused.

    \b
    Examples:
      $ kdlab ablate --loss rm,pfi --dry-run
      plan a341  ablate/digits/quickstart--rm+pfi  5 jobs, cost unknown on 2 cores
        + teacher   gfl r18          cost unknown  new
        + baseline  gfl r18  seed 0  cost unknown  new
        + rm        gfl r18  seed 0  cost unknown  new
        ...
      $ kdlab ablate --loss rm --vary rm.rank=cls,loc,both --dry-run
      plan a295  ablate/digits/quickstart--rm--rm.rank=cls,loc,both  5 jobs, cost unknown on 2 cores
        + teacher        gfl r18          cost unknown  new
        + baseline       gfl r18  seed 0  cost unknown  new
        + rm[rank=cls]   gfl r18  seed 0  cost unknown  new
        + rm[rank=loc]   gfl r18  seed 0  cost unknown  new
        + rm[rank=both]  gfl r18  seed 0  cost unknown  new
    """
    from kdlab.jobs.files import write_text
    from kdlab.recipe.files import derived as derived_file
    from kdlab.recipe.variation import Request, axis, pairs_of
    from kdlab.running.executors import base

    base.check(executor)
    request = Request(
        losses=tuple(word.strip() for word in loss.split(",")),
        each=each,
        vary=tuple(axis("--vary", text) for text in vary or []),
    )
    models = pairs_of([axis("--pairs", text) for text in pairs or []])
    changes = [*_seeds(seeds, overrides or []), *(overrides or [])]
    source = recipe or _of_this_folder(screen)
    if request.arms() > FREE_ARMS and not (dry_run or yes):
        of_each = f" for each of {len(models)} pairs" if len(models) > 1 else ""
        if not screen.ask(f"this makes {request.arms()} arms{of_each}"):
            _nothing(screen)
    wanted = [replace(request, overrides=(*changes, *pair)) for pair in models]
    derived = [_derived(source, one) for one in wanted]
    ready = [partial(planned, screen, loaded, executor, gpus) for _, loaded in derived]
    for one, _ in () if dry_run else derived:
        path = derived_file(one.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, one.document.text)
        screen.say(f"recipe written: {path}")
    made = [prepared() for prepared in ready]
    if dry_run and screen.json:
        screen.emit(plans=[one.plan.to_dict() for one in made])
    else:
        _show(screen.data if dry_run else screen.say, screen, made)
    if dry_run:
        screen.next(screen.command("--dry-run"))
        return 0
    if not (yes or may_cost(screen, _together(made).plan)):
        _nothing(screen)
    options = {"jobs_at_once": jobs, "fail_fast": fail_fast, "live": executor != "inline"}
    return _in_turn(screen, made[0], ready, options)


def _seeds(text: str | None, overrides: Sequence[str]) -> list[str]:
    """The numbers in "0,1,2" as an override; none where there is one already, which wins.

    Raises:
        UsageError: it is no list of unlike numbers.
    """
    if text is None:
        return []
    numbers = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in numbers) or len({*map(int, numbers)}) < len(numbers):
        raise UsageError("--seeds takes whole numbers, each once", got=text, fix="--seeds 0,1,2")
    written = f"seeds=[{','.join(str(int(word)) for word in numbers)}]"
    return [] if any(one.startswith("seeds=") for one in overrides) else [written]


def _of_this_folder(screen: Screen) -> str:
    """The recipe that is meant where none is named; says which.

    Raises:
        UsageError: there are several.
    """
    from kdlab.recipe.files import of_folder

    here = of_folder(Path.cwd())
    if here is None:
        screen.say(f"recipe: {QUICKSTART}, for none lies in this folder")
        return QUICKSTART
    screen.say(f"recipe: {here.name}, the one in this folder")
    return here.name


def _derived(source: str, request: Request) -> tuple[Derived, Recipe]:
    """The derived recipe, as text and as it loads.

    Raises:
        UsageError: the base recipe or the derived one has faults.
    """
    from kdlab.recipe import ablation
    from kdlab.recipe import loader as recipes
    from kdlab.recipe.files import derived, told

    name, document = recipes.opened(source, request.overrides)
    recipes.resolve(document, name)
    made = ablation.derive(document, name, request)
    return made, recipes.resolve(replace(made.document, file=told(derived(made.name))), made.name)


def _nothing(screen: Screen) -> NoReturn:
    screen.say("nothing was run")
    raise typer.Abort


def _show(put: Callable[[RenderableType], None], screen: Screen, made: Sequence[Prepared]) -> None:
    """The plans; of several also what they come to."""
    for one in made:
        put(preview(one, jobs=screen.verbose))
    if len(made) > 1:
        put(f"{len(made)} pairs together: {total(_together(made))}")


def _together(made: Sequence[Prepared]) -> Prepared:
    """All plans as one that has each job once."""
    jobs = {planned.job.id: planned for one in made for planned in one.plan.jobs}
    return replace(made[0], plan=replace(made[0].plan, jobs=tuple(jobs.values())))


def _in_turn(
    screen: Screen, first: Prepared, ready: Sequence[Callable[[], Prepared]], options: dict[str, Any]
) -> int:
    """Run the plans one after the other; the worst exit code. Nothing follows one that was stopped."""
    worst = 0
    for number, prepared in enumerate(ready):
        made = prepared() if number else first  # by now earlier plans have trained what they share with it
        if len(ready) > 1:
            screen.say(f"pair {number + 1} of {len(ready)}: {made.plan.recipe['name']}")
        code = carry_out(screen, made, prepared, **options)
        worst = max(worst, code)
        if code > FAILED or (code and options["fail_fast"]):
            break
    return worst
