"""kdlab tune: search weights and options of methods on a part of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, inf
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import DryRun, ExecutorName, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.verbs.plan import Prepared, gpu_numbers
from kdlab.cli.verbs.report import tell_lacking
from kdlab.cli.verbs.run import FAILED, gpus_of, may_cost, smaller, stopped, tell_losses

if TYPE_CHECKING:
    from kdlab.jobs.events import Event
    from kdlab.jobs.job import Job
    from kdlab.jobs.plan import PlannedJob
    from kdlab.session import Outcome
    from kdlab.tuning.search import Search
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
    asked = [*(overrides or []), *changes]
    search, made = _prepared(screen, recipe, asked, executor, gpus)
    begun = _begun(search, made)
    wanted = _affordable(search, begun, budget)
    if dry_run:
        if screen.json:
            screen.emit(
                study=search.study,
                arm=search.trials.arm,
                trials=search.recipe.tune.trials,
                begun=begun,
                images=list(search.images),
                space=[vars(one) for one in search.trials.space],
                plan=search.whole(wanted).to_dict(),
            )
        else:
            _preview(screen.data, search, made, begun, wanted)
        screen.next(screen.command("--dry-run"))
        return 0
    _preview(screen.say, search, made, begun, wanted)
    if not (yes or may_cost(screen, search.whole(wanted))):
        screen.say("nothing was run")
        raise typer.Abort
    while True:
        tuner, outcome = _run(screen, search, made, jobs, budget, live=executor != "inline")
        halved = search.recipe.resources.on_oom == "micro_batch" and smaller(made)
        if tuner.study.space or outcome.stopped_by or not halved:
            return _conclude(screen, search, made, tuner, outcome)
        # teacher or measured pass did not fit the GPU: once more, in smaller parts
        search, made = _prepared(screen, recipe, asked, executor, gpus)


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


def _begun(search: Search, made: Prepared) -> int:
    """How many trials earlier commands have begun."""
    from kdlab.tuning.study import storage_of, stored_trials

    return len(stored_trials(search.study, storage_of(search.recipe.tune.storage, made.runs)))


def _affordable(search: Search, begun: int, budget_h: float | None) -> int:
    """How many trials may still begin; as far as their cost is known, no more than a budget allows."""
    left = max(0, search.recipe.tune.trials - begun)
    if budget_h is None or not search.trial.cost_s:
        return left
    of_each_s = search.trial.cost_s * max(1, search.trial.job.resources.gpus)
    return min(left, ceil(3600 * budget_h / of_each_s))


def _preview(put: Callable[[str], None], search: Search, made: Prepared, begun: int, wanted: int) -> None:
    """What will be searched, and what the trials to come cost where none is ended early."""
    from kdlab.cli.verbs.plan import total

    tune, (learned, measured) = search.recipe.tune, search.images
    put(
        f"study {search.study}  {tune.trials} trials of {search.trials.arm} on {learned} images, "
        f"measured on {measured} others{f'; {begun} have begun' if begun else ''}"
    )
    width = max(len(one.name) for one in search.trials.space)
    for one in search.trials.space:
        open_end = one.key == "weight" and not (one.given or one.choices)
        put(f"  {one.name:<{width}}  {one.range}{', until its term is measured' if open_end else ''}")
    put(f"at most {total(replace(made, plan=search.whole(wanted)))}")
    if len(tune.objectives) > 1:
        put("note: no trial is ended early, for Optuna prunes by one objective only")
    if made.executor.slots(search.trial.job) > max(MANY_AT_ONCE, wanted / 4):
        put("note: so many trials fit side by side that few will learn from others; -j N runs fewer at once")


def _run(
    screen: Screen, search: Search, made: Prepared, jobs: int | None, budget_h: float | None, *, live: bool
) -> tuple[Tuner, Outcome]:
    """Search, with the board on the screen."""
    from kdlab import session
    from kdlab.cli.screen.board import watcher
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.running.driver import alone

    with alone(made.plan.id, made.runs):
        tuner = _tuner(search, made, jobs, budget_h)
        view = PlanStatus(made.plan, made.machine, jobs, to_come=tuner.to_come)
        with watcher(view, made.runs, screen, live=live, gpus=gpus_of(made)) as board:

            def feed(active: int) -> Sequence[PlannedJob]:
                opened = bool(tuner.study.space)
                more = tuner.feed(active)
                if tuner.study.space and not opened:
                    ranges = "; ".join(f"{one.name} {one.range}" for one in tuner.study.space)
                    screen.say(f"searching {ranges}")
                view.grow(more, tuner.to_come)
                return more

            def see(event: Event) -> None:
                tuner.see(event)
                view.jobs[event.job].pruned = event.job in tuner.pruned
                board.see(event)

            def stop() -> None:
                tuner.stopping = True
                board.stopping()

            outcome = session.drive(
                made.plan,
                made.executor,
                made.runs,
                [see, *([lambda event: screen.emit(**event.to_dict())] if screen.json else [])],
                jobs_at_once=jobs,
                on_stop=stop,
                command=screen.command("--dry-run"),
                feed=feed,
            )
    return tuner, outcome


def _tuner(search: Search, made: Prepared, jobs: int | None, budget_h: float | None) -> Tuner:
    from kdlab.tuning.study import OptunaStudy, storage_of
    from kdlab.tuning.tuner import Tuner

    tune = search.recipe.tune
    study = OptunaStudy(
        name=search.study,
        objectives=tune.objectives,
        sampler=tune.sampler,
        pruner=tune.pruner,
        epochs=search.trials.epochs,
        seed=tune.seed,
        storage=storage_of(tune.storage, made.runs),
    )

    def at_once(job: Job) -> int:
        slots = made.executor.slots(job)
        return min(slots, jobs) if jobs else slots

    budget_s = inf if budget_h is None else 3600 * budget_h
    stop_request = made.runs.stop_request(made.plan.id)
    # of an earlier command
    stop_request.unlink(missing_ok=True)
    return Tuner(search.trials, study, made.runs, tune.trials, budget_s, at_once, stop_request)


def _conclude(screen: Screen, search: Search, made: Prepared, tuner: Tuner, outcome: Outcome) -> int:
    """Tell what was found, or what kept the search from its end; the exit code."""
    from kdlab.cli.screen.found import tell

    again = screen.command("--dry-run")
    tell_lacking(screen, outcome.lacking)
    if outcome.stopped_by:
        return stopped(screen, outcome, again)
    if not tuner.study.space:
        tell_losses(screen, made.plan, outcome, again)
        return FAILED
    if tuner.stopping:
        screen.say("stopped by another command; the trials that ran go on from their checkpoints")
        screen.next(again)
        return FAILED
    return tell(screen, search, tuner, made.runs, again)
