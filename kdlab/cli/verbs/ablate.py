"""kdlab ablate: train all combinations of some methods, or values of their options, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from kdlab.cli.verbs.plan import planned, preview, total
from kdlab.cli.verbs.run import FAILED, carry_out, confirm, confirm_cost
from kdlab.errors import UsageError
from kdlab.prepared import Prepared

if TYPE_CHECKING:
    from kdlab.jobs.plan import Plan
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
      plan 4f06  ablate/digits/quickstart--rm+pfi  5 jobs, ~2m35s on 2 cores
        + teacher   gfl r18          ~1s     by a few steps
        + baseline  gfl r18  seed 0  ~59s    by a few steps
        + rm        gfl r18  seed 0  ~1m17s  by a few steps
        ...
      $ kdlab ablate --loss rm --vary rm.rank=cls,loc,both --dry-run
      plan 8fc8  ablate/digits/quickstart--rm--rm.rank=cls,loc,both  5 jobs, ~2m15s on 2 cores
        + teacher        gfl r18          ~1s     by a few steps
        + baseline       gfl r18  seed 0  ~49s    by a few steps
        + rm[rank=cls]   gfl r18  seed 0  ~1m07s  by a few steps
        + rm[rank=loc]   gfl r18  seed 0  ~1m07s  by a few steps
        + rm[rank=both]  gfl r18  seed 0  ~1m07s  by a few steps
    """
    from kdlab.recipe.files import write_derived
    from kdlab.running.executors import base

    base.check(executor)
    requests = _requests(loss, each, vary or [], seeds, pairs or [], overrides or [])
    source = recipe or _of_this_folder(screen)
    arms = requests[0].arms()
    if arms > FREE_ARMS and not (dry_run or yes):
        of_each = f" for each of {len(requests)} pairs" if len(requests) > 1 else ""
        confirm(screen, f"this makes {arms} arms{of_each}")
    derived = [_derived(source, request) for request in requests]
    if not dry_run:
        for variant, _ in derived:
            screen.say(f"recipe written: {write_derived(variant.name, variant.document.text)}")
    ready = [partial(planned, screen, loaded, executor, gpus) for _, loaded in derived]
    made = [prepared() for prepared in ready]
    together = replace(made[0], plan=_together([one.plan for one in made]))
    if dry_run and screen.json:
        screen.emit(plans=[one.plan.to_dict() for one in made])
    else:
        put = screen.data if dry_run else screen.say
        for one in made:
            put(preview(one, jobs=screen.verbose))
        if len(made) > 1:
            put(f"{len(made)} pairs together: {total(together)}")
    if dry_run:
        screen.next(screen.command("--dry-run"))
        return 0
    if not yes:
        confirm_cost(screen, together.plan)
    live = executor != "inline"
    return _in_turn(screen, made[0], ready, jobs_at_once=jobs, fail_fast=fail_fast, live=live)


def _requests(
    loss: str, each: bool, vary: list[str], seeds: str | None, pairs: list[str], overrides: list[str]
) -> list[Request]:
    """What to derive from the recipe, for each pair of models.

    Raises:
        UsageError: an option cannot be read.
    """
    from kdlab.recipe.variation import Request, axis, pairs_of

    losses, axes = loss.split(","), [axis("--vary", text) for text in vary]
    request = Request(tuple(word.strip() for word in losses), each=each, vary=tuple(axes))
    models = pairs_of([axis("--pairs", text) for text in pairs])
    changes = list(overrides)
    if seeds is not None:
        words = [word.strip() for word in seeds.split(",")]
        if not all(word.isdecimal() for word in words) or len({*map(int, words)}) < len(words):
            raise UsageError("--seeds takes whole numbers, each once", got=seeds, fix="--seeds 0,1,2")
        # those of --set win
        if not any(change.startswith("seeds=") for change in changes):
            changes.insert(0, f"seeds=[{','.join(map(str, map(int, words)))}]")
    return [replace(request, overrides=(*changes, *pair)) for pair in models]


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


def _together(plans: Sequence[Plan]) -> Plan:
    """All plans as one that has each job once."""
    jobs = {planned.job.id: planned for plan in plans for planned in plan.jobs}
    return replace(plans[0], jobs=tuple(jobs.values()))


def _in_turn(screen: Screen, first: Prepared, ready: Sequence[Callable[[], Prepared]], **options: Any) -> int:
    """Run the plans one after the other; the worst exit code. Nothing follows one that was stopped."""
    worst = 0
    for number, prepared in enumerate(ready):
        # by now earlier plans have trained what they share with it
        made = prepared() if number else first
        if len(ready) > 1:
            screen.say(f"pair {number + 1} of {len(ready)}: {made.plan.recipe['name']}")
        code = carry_out(screen, made, prepared, **options)
        worst = max(worst, code)
        if code > FAILED or (code and options["fail_fast"]):
            break
    return worst
