"""kdlab tune: search weights and options of methods on a part of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import ceil, inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import DryRun, ExecutorName, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.verbs.plan import Prepared, gpu_numbers
from kdlab.cli.verbs.report import tell_tracking
from kdlab.cli.verbs.run import FAILED, gpus_of, may_cost, smaller, stopped, tell_losses

if TYPE_CHECKING:
    from kdlab.jobs.events import Event
    from kdlab.jobs.job import Job
    from kdlab.jobs.plan import PlannedJob
    from kdlab.session import Outcome
    from kdlab.tuning.search import Search
    from kdlab.tuning.space import Dimension
    from kdlab.tuning.study import Study
    from kdlab.tuning.tuner import Tuner


MANY_AT_ONCE = 4
"""Trials side by side of which a search is not warned."""


def tune(
    screen: Screen,
    recipe: RecipeName,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=1, help="How many, earlier ones among them.")
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            "--over", metavar="KEYS", help="What to search: rm.weight,pfi.weight. Default: an arm's weights."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="GPU-H", min=0, help="Begin no trial after so many hours of GPUs."),
    ] = None,
    objectives: Annotated[
        str | None, typer.Option("--objectives", metavar="NAMES", help="AP; or AP,latency to weigh the two.")
    ] = None,
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    gpus: Gpus = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Search weights and options of methods, and write the recipe that measures what was found.

    Trials learn from a part of the training images and are measured on the rest of them: the validation
    images stay untouched. The same command again goes on where it was stopped.

    \b
    Examples:
      $ kdlab tune digits/gfl --trials 20 --dry-run
      study digits/gfl-...  20 trials of rm+pfi on 800 images, measured on 200 others
        rm.weight   0.133 to 120, until its term is measured
        pfi.weight  0.05 to 45, until its term is measured
      ...
      $ kdlab tune digits/gfl --over pfi.weight,pfi.region --trials 30
      GFL R18 to a slimmer R18 on handwritten digits: ...: 30 trials by AP
      trial  reference  AP  gain  pfi.weight  pfi.region  epochs
      ...
    """
    told = {"trials": trials, "over": over and f"[{over}]", "objectives": objectives and f"[{objectives}]"}
    changes = [f"tune.{key}={value}" for key, value in told.items() if value is not None]
    search, made = _prepared(screen, recipe, [*(overrides or []), *changes], executor, gpus)
    if dry_run:
        _tell(screen, search, made)
        return 0
    study = _study(search, made)
    wanted = _affordable(search, search.recipe.tune.trials - study.begun(), budget)
    _preview(screen.say, search, made, wanted)
    if not (yes or may_cost(screen, search.whole(wanted))):
        screen.say("nothing was run")
        raise typer.Abort
    limits = {"jobs": jobs, "budget_h": budget}
    while True:
        tuner, outcome = _run(screen, search, made, study, limits, live=executor != "inline")
        halved = search.recipe.resources.on_oom == "micro_batch" and smaller(made)
        if tuner.space or outcome.stopped_by or not halved:
            return _conclude(screen, search, made, tuner, outcome)
        # teacher or measured pass did not fit the GPU: once more, in smaller parts
        search, made = _prepared(screen, recipe, [*(overrides or []), *changes], executor, gpus)


def _prepared(
    screen: Screen, recipe: str, overrides: Sequence[str], executor: str, gpus: str | None
) -> tuple[Search, Prepared]:
    from kdlab.jobs.paths import Runs
    from kdlab.recipe import loader as recipes
    from kdlab.running.executors import base
    from kdlab.tuning import search

    base.check(executor)
    runs = Runs.here()
    told = recipes.load(recipe, overrides).resources.executors.get(executor)
    with screen.working(f"planning {recipe}") as progress:
        runner = base.load(executor, gpu_numbers(gpus), told)
        found = search.prepare(recipe, overrides, runs, runner.machine, progress)
    return found, Prepared(found.plan, runner, runner.machine, runs)


def _study(search: Search, made: Prepared) -> Study:
    from kdlab.tuning.study import Study, storage_of

    tune = search.recipe.tune
    return Study(
        name=search.study,
        objectives=tune.objectives,
        sampler=tune.sampler,
        pruner=tune.pruner,
        epochs=search.trial.job.spec.schedule.epochs,
        seed=tune.seed,
        storage=storage_of(tune.storage, made.runs),
    )


def _affordable(search: Search, left: int, budget_h: float | None) -> int:
    """How many trials may still begin; as far as their cost is known, no more than a budget allows."""
    if budget_h is None or not search.trial.cost_s:
        return max(0, left)
    of_each_s = search.trial.cost_s * max(1, search.trial.job.resources.gpus)
    return max(0, min(left, ceil(3600 * budget_h / of_each_s)))


def _tell(screen: Screen, search: Search, made: Prepared) -> None:
    """What `--dry-run` is asked for."""
    if screen.json:
        screen.emit(**_as_data(search))
    else:
        _preview(screen.data, search, made, search.recipe.tune.trials)
    screen.next(screen.command("--dry-run"))


def _as_data(search: Search) -> dict[str, Any]:
    """What will be searched, for a program; its plan holds a stand-in for each trial."""
    count = search.recipe.tune.trials
    return {
        "study": search.study,
        "arm": search.trials.arm,
        "trials": count,
        "images": list(search.images),
        "space": [asdict(one) for one in search.trials.space],
        "plan": search.whole(count).to_dict(),
    }


def _preview(put: Callable[[str], None], search: Search, made: Prepared, count: int) -> None:
    """What will be searched, and what so many trials cost where none is ended early."""
    from kdlab.cli.verbs.plan import total

    tune, (learned, measured) = search.recipe.tune, search.images
    put(
        f"study {search.study}  {tune.trials} trials of {search.trials.arm} on {learned} images, "
        f"measured on {measured} others"
    )
    width = max(len(one.name) for one in search.trials.space)
    for one in search.trials.space:
        put(f"  {one.name:<{width}}  {_range(one)}")
    put(f"at most {total(replace(made, plan=search.whole(count)))}")
    if len(tune.objectives) > 1:
        put("note: no trial is ended early, for Optuna prunes by one objective only")
    if made.executor.slots(search.trial.job) > max(MANY_AT_ONCE, count / 4):
        put("note: so many trials fit side by side that few will learn from others; -j N runs fewer at once")


def _range(one: Dimension) -> str:
    from kdlab.tuning.trials import text_of

    if one.choices:
        return ", ".join(map(text_of, one.choices))
    ends = f"{one.low:.3g} to {one.high:.3g}"
    return ends if one.given or one.key != "weight" else f"{ends}, until its term is measured"


def _run(
    screen: Screen, search: Search, made: Prepared, study: Study, limits: dict[str, Any], *, live: bool
) -> tuple[Tuner, Outcome]:
    """Search, with the board on the screen."""
    from kdlab import session
    from kdlab.cli.screen.board import watcher
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.running.driver import alone

    tuner = _tuner(search, made, study, limits)
    status = PlanStatus(made.plan, made.machine, limits["jobs"], to_come=tuner.to_come)
    with (
        alone(made.plan.id, made.runs),
        watcher(status, made.runs, screen, live=live, gpus=gpus_of(made)) as board,
    ):
        # of an earlier command; one that is refused must not take it from the command at work
        tuner.stop_request.unlink(missing_ok=True)

        def feed(active: int) -> Sequence[PlannedJob]:
            more = tuner.feed(active)
            status.grow(more, tuner.to_come)
            return more

        def see(event: Event) -> None:
            tuner.see(event)
            status.jobs[event.job].pruned = event.job in tuner.pruned
            board.see(event)

        def stop() -> None:
            tuner.stopping = True
            board.stopping()

        outcome = session.drive(
            made.plan,
            made.executor,
            made.runs,
            [see, *([lambda event: screen.emit(**event.to_dict())] if screen.json else [])],
            jobs_at_once=limits["jobs"],
            on_stop=stop,
            command=screen.command("--dry-run"),
            feed=feed,
        )
    return tuner, outcome


def _tuner(search: Search, made: Prepared, study: Study, limits: dict[str, Any]) -> Tuner:
    from kdlab.tuning.tuner import Tuner

    jobs, budget_h = limits["jobs"], limits["budget_h"]

    def at_once(job: Job) -> int:
        slots = made.executor.slots(job)
        return min(slots, jobs) if jobs else slots

    budget_s = inf if budget_h is None else 3600 * budget_h
    stop_request = made.runs.stop_request(made.plan.id)
    return Tuner(search.trials, study, made.runs, search.recipe.tune.trials, budget_s, at_once, stop_request)


def _conclude(screen: Screen, search: Search, made: Prepared, tuner: Tuner, outcome: Outcome) -> int:
    """Tell what was found, or what kept the search from its end; the exit code."""
    from kdlab.cli.screen.found import tell

    again = screen.command("--dry-run")
    tell_tracking(screen, outcome.tracking)
    if outcome.stopped_by:
        return stopped(screen, outcome, again)
    if not tuner.space:
        tell_losses(screen, made.plan, outcome, again)
        return FAILED
    if tuner.stopping:
        screen.say("stopped by another command; the trials that ran go on from their checkpoints")
        screen.next(again)
        return FAILED
    return tell(screen, search, tuner, made.runs, again)
