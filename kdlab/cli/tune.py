"""kdlab tune: search weights and options of methods on a part of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab.cli.console import Screen
from kdlab.cli.options import DryRun, ExecutorName, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.plan import Prepared, gpu_numbers
from kdlab.cli.report import tell_tracking
from kdlab.cli.run import FAILED, gpus_of, may_cost, stopped, tell_losses

if TYPE_CHECKING:
    from kdlab.jobs.events import Event
    from kdlab.jobs.job import Job
    from kdlab.orchestration.plan import PlannedJob
    from kdlab.orchestration.tuning.search import Search
    from kdlab.orchestration.tuning.space import Dimension
    from kdlab.orchestration.tuning.study import Study
    from kdlab.orchestration.tuning.tuner import Tuner


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
    """
    told = {"trials": trials, "over": over and f"[{over}]", "objectives": objectives and f"[{objectives}]"}
    changes = [f"tune.{key}={value}" for key, value in told.items() if value is not None]
    search, made = _prepared(screen, recipe, [*(overrides or []), *changes], executor, gpus)
    if dry_run:
        _tell(screen, search, made)
        return 0
    _preview(screen.say, search, made)
    if not (yes or may_cost(screen, search.whole(search.recipe.tune.trials))):
        screen.say("nothing was run")
        raise typer.Abort
    return _run(screen, search, made, jobs, budget, live=executor != "inline")


def _prepared(
    screen: Screen, recipe: str, overrides: Sequence[str], executor: str, gpus: str | None
) -> tuple[Search, Prepared]:
    from kdlab import session
    from kdlab.orchestration import recipe as recipes
    from kdlab.orchestration.executors import base
    from kdlab.orchestration.tuning import search

    base.check(executor)
    runs = session.runs_here()
    told = recipes.load(recipe, overrides).resources.executors.get(executor)
    with screen.working(f"planning {recipe}") as progress:
        runner = base.load(executor, gpu_numbers(gpus), told)
        found = search.prepare(recipe, overrides, runs, runner.machine, progress)
    return found, Prepared(found.plan, runner, runner.machine, runs)


def _tell(screen: Screen, search: Search, made: Prepared) -> None:
    """What `--dry-run` is asked for."""
    if screen.json:
        space = [asdict(one) for one in search.trials.space]
        plan = search.whole(search.recipe.tune.trials).to_dict()
        screen.emit(study=search.study, images=search.images, space=space, plan=plan)
    else:
        _preview(screen.data, search, made)
    screen.next(screen.command("--dry-run"))


def _preview(put: Callable[[str], None], search: Search, made: Prepared) -> None:
    """What will be searched, and what it costs where no trial is ended early."""
    from kdlab.cli.plan import total

    tune, (learned, measured) = search.recipe.tune, search.images
    put(
        f"study {search.study}  {tune.trials} trials of {search.trials.arm} on {learned} images, "
        f"measured on {measured} others"
    )
    width = max(len(one.name) for one in search.trials.space)
    for one in search.trials.space:
        put(f"  {one.name:<{width}}  {_range(one)}")
    put(f"at most {total(replace(made, plan=search.whole(tune.trials)))}")
    if len(tune.objectives) > 1:
        put("no trial is ended early: Optuna prunes by one objective only")


def _range(one: Dimension) -> str:
    from kdlab.orchestration.tuning.trials import text_of

    if one.choices:
        return ", ".join(map(text_of, one.choices))
    ends = f"{one.low:.3g} to {one.high:.3g}"
    return ends if one.given or one.key != "weight" else f"{ends}, until its term is measured"


def _run(
    screen: Screen, search: Search, made: Prepared, jobs: int | None, budget: float | None, *, live: bool
) -> int:
    """Search, and tell what was found; the exit code."""
    from kdlab import session
    from kdlab.cli.board import watcher
    from kdlab.cli.progress import PlanView
    from kdlab.orchestration.driver import alone

    again = screen.command("--dry-run")
    with alone(search.plan.id, made.runs):
        tuner = _tuner(search, made, jobs, budget)
        view = PlanView(made.plan, made.machine, jobs, to_come=search.recipe.tune.trials)

        def feed(active: int) -> Sequence[PlannedJob]:
            more = tuner.feed(active)
            view.grow(more, tuner.to_come)
            return more

        with watcher(view, made.runs, screen, live=live, gpus=gpus_of(made)) as board:

            def see(event: Event) -> None:
                tuner.see(event)
                view.jobs[event.job].hopeless = event.job in tuner.pruned
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
                command=again,
                feed=feed,
            )
            board.close()
    tell_tracking(screen, outcome.tracking)
    if outcome.stopped_by:
        return stopped(screen, outcome, again)
    if tuner.stopping:
        screen.say("stopped by another command; the trials that ran go on from their checkpoints")
        screen.next(again)
        return FAILED
    if tuner.study is None:
        tell_losses(screen, made.plan, outcome, again)
        return FAILED
    from kdlab.cli.found import tell

    return tell(screen, search, tuner, made.runs, again)


def _tuner(search: Search, made: Prepared, jobs: int | None, budget: float | None) -> Tuner:
    from kdlab.orchestration.tuning.tuner import Tuner

    def at_once(job: Job) -> int:
        slots = made.executor.slots(job)
        return min(slots, jobs) if jobs else slots

    return Tuner(
        search.trials,
        partial(_opened, search, made),
        made.runs,
        count=search.recipe.tune.trials,
        budget_s=float("inf") if budget is None else 3600 * budget,
        at_once=at_once,
    )


def _opened(search: Search, made: Prepared, space: tuple[Dimension, ...]) -> Study:
    """The study, once it is known what is searched."""
    # takes a second to import, so nobody waits for it before the first job runs
    from kdlab.orchestration.tuning.study import Study, storage_of

    tune = search.recipe.tune
    return Study(
        name=search.study,
        space=space,
        objectives=tune.objectives,
        sampler=tune.sampler,
        pruner=tune.pruner,
        epochs=search.trial.job.settings["schedule"]["epochs"],
        seed=tune.seed,
        storage=storage_of(tune.storage, made.runs),
    )
