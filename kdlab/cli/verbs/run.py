"""kdlab run: train what is missing of a recipe, watch it, and end in the comparison table."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen, styled
from kdlab.cli.screen.options import DryRun, ExecutorName, FailFast, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.verbs.plan import Prepared, gpu_hours, prepare, preview
from kdlab.cli.verbs.report import tell_lacking, written
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from kdlab.cli.screen.board import Gpus as GpusNow
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan, PlannedJob
    from kdlab.session import Outcome

FREE_GPU_H = 10.0
"""GPU-hours above which a run asks first."""
FAILED = 1


def run(
    screen: Screen,
    recipe: RecipeName,
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    gpus: Gpus = None,
    fail_fast: FailFast = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train all jobs anew; their folders move to runs/old/.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Train what is missing of a recipe and compare its arms.

    The same command again reuses what is finished and goes on where it was stopped.

    \b
    Examples:
      $ kdlab run digits/quickstart --dry-run
      plan 70e4  digits/quickstart  5 jobs, cost unknown on 2 cores
        + teacher   gfl r18          cost unknown  new
        + baseline  gfl r18  seed 0  cost unknown  new
        ...
      $ kdlab run digits/quickstart
      GFL R18 to a slimmer R18 on handwritten digits: RM and PFI, n=1
      arm         AP    dAP  ...
      teacher   36.2         ...
      baseline  18.8         ...
      rm        12.2   -6.7  ...
      pfi       30.1  +11.3  ...
      rm+pfi    30.3  +11.4  ...
    """
    prepared = partial(prepare, screen, recipe, overrides or [], executor, gpus)
    made = prepared()
    if fresh:
        made = replace(made, plan=_anew(made.plan, made.runs))
    if dry_run:
        screen.emit(**made.plan.to_dict()) if screen.json else screen.data(preview(made, jobs=screen.verbose))
        screen.next(screen.command("--dry-run"))
        return 0
    screen.say(preview(made, jobs=screen.verbose))
    if not (yes or may_cost(screen, made.plan)):
        screen.say("nothing was run")
        raise typer.Abort
    if fresh:
        screen.say(_set_aside(made.plan, made.runs))
    live = executor != "inline"
    return carry_out(screen, made, prepared, jobs_at_once=jobs, fail_fast=fail_fast, live=live)


def carry_out(screen: Screen, made: Prepared, prepared: Callable[[], Prepared], **options: Any) -> int:
    """Run a plan, and again in smaller parts where a job ran out of memory; the exit code.

    Args:
        screen: where to.
        made: the plan.
        prepared: makes the plan anew.
        options: of `execute`.
    """
    while True:
        code = execute(screen, made, **options)
        if code != FAILED or not smaller(made):
            return code
        again = prepared()
        if again.plan.id == made.plan.id:
            return code
        made = again
        screen.say(preview(made, jobs=screen.verbose))


def execute(
    screen: Screen,
    made: Prepared,
    *,
    jobs_at_once: int | None = None,
    fail_fast: bool = False,
    live: bool = True,
) -> int:
    """Run a plan on the screen, from its board to its table; the exit code.

    Args:
        screen: where to.
        made: the plan.
        jobs_at_once: how many jobs may run side by side; None for what the devices allow.
        fail_fast: end everything after the first failure.
        live: False where jobs use the terminal themselves.
    """
    from kdlab import session
    from kdlab.cli.screen.board import watcher
    from kdlab.cli.screen.progress import PlanStatus

    status = PlanStatus(made.plan, made.machine, jobs_at_once)
    with watcher(status, made.runs, screen, live=live, gpus=gpus_of(made)) as board:

        def publish(outcome: Outcome) -> Sequence[Path]:
            board.close()
            return [] if outcome.stopped_by else _publish(screen, made, outcome.complete)

        outcome = session.drive(
            made.plan,
            made.executor,
            made.runs,
            [board.see, *([lambda event: screen.emit(**event.to_dict())] if screen.json else [])],
            fail_fast=fail_fast,
            jobs_at_once=jobs_at_once,
            on_stop=board.stopping,
            publish=publish,
            command=screen.command("--fresh", "--dry-run"),
        )
    return _conclude(screen, made, outcome)


def gpus_of(made: Prepared) -> GpusNow:
    """The GPUs of this machine, where jobs run on it."""
    from kdlab.cli.screen.board import no_gpus
    from kdlab.running.executors.base import key_of

    return (lambda: made.executor.machine.gpus) if key_of(made.executor) == "local" else no_gpus


def may_cost(screen: Screen, plan: Plan) -> bool:
    """Whether a plan is cheap, or the person agrees to what it costs."""
    hours, unknown = gpu_hours(plan)
    if hours > FREE_GPU_H:
        return screen.ask(f"this takes about {hours:.0f} GPU-hours")
    if unknown:
        return screen.ask("what this takes on the GPU is not known")
    return True


def smaller(made: Prepared) -> bool:
    """Whether a job ran out of memory that a new plan will have in smaller parts."""
    from kdlab.jobs import store
    from kdlab.planning import out_of_memory as memory

    jobs = [planned.job for planned in made.plan.jobs]
    failed = [(job, store.shortage(made.runs.job(job.id))) for job in jobs]
    return any(failure and memory.smaller(job, failure) for job, failure in failed)


def _anew(plan: Plan, runs: Runs) -> Plan:
    """The plan with nothing reused; what is done tells what it cost."""
    from kdlab.jobs.result import JobResult

    def todo(planned: PlannedJob) -> PlannedJob:
        anew = replace(planned, done=False, why="--fresh")
        result = JobResult.read(runs.job(planned.job.id))
        return replace(anew, cost_s=result.wall_s, cost_source="measured, n=1") if result else anew

    return replace(plan, jobs=tuple(todo(planned) for planned in plan.jobs))


def _set_aside(plan: Plan, runs: Runs) -> str:
    """Move the folders of a plan's jobs out of reach; what was done, in words.

    Raises:
        UsageError: some of them run now.
    """
    from kdlab.jobs.lease import holder

    jobs = [planned.job.id for planned in plan.jobs if runs.job(planned.job.id).folder.exists()]
    if busy := [job for job in jobs if holder(runs.job(job))]:
        fix = "wait for them, or press Ctrl-C in the terminal that drives them"
        raise UsageError("--fresh cannot move jobs that run now", got=", ".join(busy), fix=fix)
    if not jobs:
        return "--fresh: nothing was there to move"
    old = runs.folder / "old" / time.strftime("%Y%m%d-%H%M%S")
    old.mkdir(parents=True)
    for job in jobs:
        runs.job(job).folder.rename(old / job)
    return f"--fresh: moved {len(jobs)} job folders to {old}; other plans that shared them lack them now"


def _publish(screen: Screen, made: Prepared, complete: bool) -> list[Path]:
    """Print the table; write it too where nothing is missing. Returns the files."""
    from kdlab.reporting import comparison, comparison_table, renderers

    with screen.working("comparing"):
        table = comparison_table.table(comparison.of_plan(made.plan, made.runs)).usual()
    if screen.json:
        screen.emit(**table.to_dict())
    else:
        screen.data(renderers.to_terminal(table))
    if not complete:
        return []
    return written(screen, table, made.plan)


def _conclude(screen: Screen, made: Prepared, outcome: Outcome) -> int:
    """Say what went wrong or what comes next; the exit code."""
    tell_lacking(screen, outcome.lacking)
    again = screen.command("--fresh", "--dry-run")
    if outcome.stopped_by:
        return stopped(screen, outcome, again)
    if not outcome.complete:
        tell_losses(screen, made.plan, outcome, again)
        return FAILED
    screen.next(_more_seeds(screen, made.plan) or f"kdlab report --table {made.plan.recipe['name']}")
    return 0


def stopped(screen: Screen, outcome: Outcome, again: str) -> int:
    """Say how to go on after a signal; the exit code."""
    assert outcome.stopped_by
    screen.say("stopped; the jobs that ran go on from their checkpoints")
    screen.next(again)
    return 128 + outcome.stopped_by


def tell_losses(screen: Screen, plan: Plan, outcome: Outcome, again: str) -> None:
    """A box for each cause of failure, a line for what was given up for it, and how to try again."""
    from kdlab.cli.screen.failures import boxes
    from kdlab.jobs.events import JobCancelled, JobSkipped

    labels = {planned.job.id: f"{planned.job.label} ({planned.job.id})" for planned in plan.jobs}
    lines = list(boxes(outcome.failures, labels))
    ends = outcome.ends.values()
    lines += [f"skipped: {labels[end.job]}: {end.why}" for end in ends if isinstance(end, JobSkipped)]
    lines += [
        f"stopped: {labels[end.job]}, by another command" for end in ends if isinstance(end, JobCancelled)
    ]
    for line in [*lines, f"retry: {again}"]:
        screen.err.print(styled(line), soft_wrap=True)


def _more_seeds(screen: Screen, plan: Plan) -> str:
    """The command that makes a plan of fewer than three seeds one that a test can judge; else ""."""
    from kdlab.reporting.statistics import SEEDS_FOR_A_TEST

    seeds = list(plan.recipe["seeds"])
    if len(seeds) >= SEEDS_FOR_A_TEST:
        return ""
    unused = (seed for seed in count() if seed not in plan.recipe["seeds"])
    seeds += islice(unused, SEEDS_FOR_A_TEST - len(seeds))
    return f"{screen.command('--fresh')} --set {shlex.quote(f'seeds={seeds}'.replace(' ', ''))}"
