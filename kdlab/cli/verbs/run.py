"""kdlab run: train what is missing of a recipe, watch it, and end in the comparison table."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen, styled
from kdlab.cli.screen.options import DryRun, ExecutorName, FailFast, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.screen.results import tell_lacking, written
from kdlab.cli.verbs.plan import gpu_hours, prepare, preview, show
from kdlab.errors import KdlabError, UsageError
from kdlab.prepared import Prepared, smaller

if TYPE_CHECKING:
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.jobs.events import Event
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan
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
      plan 47ed  digits/quickstart  5 jobs, ~2m35s on 2 cores
        + teacher   gfl r18          ~1s     by a few steps
        + baseline  gfl r18  seed 0  ~59s    by a few steps
        ...
      $ kdlab run digits/quickstart
      GFL R18 to a slimmer R18 on handwritten digits: RM and PFI, n=1
      arm         AP    dAP  ...
      teacher   76.6         ...
      baseline  53.6         ...
      rm        57.0  +3.4   ...
      pfi       55.6  +2.0   ...
      rm+pfi    56.8  +3.2   ...
    """
    prepared = partial(prepare, screen, recipe, overrides or [], executor, gpus)
    made = prepared()
    if fresh:
        made = replace(made, plan=_anew(made.plan, made.runs))
    if dry_run:
        show(screen, made)
        screen.next(screen.command("--dry-run"))
        return 0
    screen.say(preview(made, jobs=screen.verbose))
    if not yes:
        confirm_cost(screen, made.plan)
    if fresh:
        screen.say(_set_aside(made.plan, made.runs))
    live = executor != "inline"
    return carry_out(screen, made, prepared, jobs_at_once=jobs, fail_fast=fail_fast, live=live)


def confirm(screen: Screen, why: str) -> None:
    """Ask whether to go on.

    Raises:
        Abort: the person says no.
        UsageError: nobody can be asked here.
    """
    if not screen.ask(why):
        screen.say("nothing was run")
        raise typer.Abort


def confirm_cost(screen: Screen, plan: Plan) -> None:
    """Ask before an expensive plan, as `confirm` does."""
    hours, unknown = gpu_hours(plan)
    if hours > FREE_GPU_H:
        confirm(screen, f"this takes about {hours:.0f} GPU-hours")
    elif unknown:
        confirm(screen, "what this takes on the GPU is not known")


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
    from kdlab.cli.screen.progress import PlanStatus

    def publish(outcome: Outcome) -> Sequence[Path]:
        return [] if outcome.stopped_by else _publish(screen, made, outcome.complete)

    view = PlanStatus(made.plan, made.machine, jobs_at_once)
    outcome = drive(screen, made, view, live=live, publish=publish, fail_fast=fail_fast)
    if code := conclude(screen, made.plan, outcome, outcome.complete):
        return code
    name = shlex.quote(made.plan.recipe["name"])
    screen.next(_more_seeds(screen, made.plan) or f"kdlab report --table {name}")
    return 0


def carry(screen: Screen, made: Prepared, jobs_at_once: int | None, *, live: bool) -> int:
    """Bring a plan without a table of arms to its end, with its board on the screen; the exit code."""
    from kdlab.cli.screen.progress import PlanStatus

    outcome = drive(screen, made, PlanStatus(made.plan, made.machine, jobs_at_once), live=live)
    return conclude(screen, made.plan, outcome, outcome.complete)


def drive(
    screen: Screen,
    made: Prepared,
    view: PlanStatus,
    *,
    live: bool,
    before: Sequence[Callable[[Event], None]] = (),
    on_stop: Callable[[], None] = lambda: None,
    publish: Callable[[Outcome], Sequence[Path]] = lambda outcome: (),
    **options: Any,
) -> Outcome:
    """Bring a plan to its end, with its board or its events on the screen.

    Args:
        screen: where to.
        made: the plan.
        view: what the screen shows of it.
        live: False where jobs use the terminal themselves.
        before: called with every event before the screen shows it.
        on_stop: called at the first signal, inside its handler.
        publish: called once the jobs have ended and the board stands still.
        options: further ones of `session.drive`.
    """
    from kdlab import session
    from kdlab.cli.screen.board import no_gpus, watcher
    from kdlab.running.executors.base import key_of

    here = key_of(made.executor) == "local"
    gpus = (lambda: made.executor.machine.gpus) if here else no_gpus
    with watcher(view, made.runs, screen, live=live, gpus=gpus) as board:

        def stop() -> None:
            on_stop()
            board.stopping()

        def close(outcome: Outcome) -> Sequence[Path]:
            board.close()
            return publish(outcome)

        return session.drive(
            made.plan,
            made.executor,
            made.runs,
            [*before, board.see],
            jobs_at_once=view.jobs_at_once,
            on_stop=stop,
            publish=close,
            command=again(screen),
            **options,
        )


def conclude(screen: Screen, plan: Plan, outcome: Outcome, complete: bool) -> int:
    """Say how to go on after a signal, or after failures if the plan is not complete; the exit code."""
    from kdlab.cli.screen.failures import boxes
    from kdlab.jobs.events import JobCancelled, JobSkipped

    tell_lacking(screen, outcome.lacking)
    if outcome.stopped_by:
        keeps = any(not planned.job.spec.instead for planned in plan.jobs)
        screen.say("stopped; the jobs that ran go on from their checkpoints" if keeps else "stopped")
        screen.next(again(screen))
        return 128 + outcome.stopped_by
    if complete:
        return 0
    labels = {planned.job.id: f"{planned.job.label} ({planned.job.id})" for planned in plan.jobs}
    lines = list(boxes(outcome.failures, labels))
    ends = outcome.ends.values()
    lines += [f"skipped: {labels[end.job]}: {end.why}" for end in ends if isinstance(end, JobSkipped)]
    cancelled = [labels[end.job] for end in ends if isinstance(end, JobCancelled)]
    lines += [f"stopped: {label}, by another command" for label in cancelled]
    for line in [*lines, f"retry: {again(screen)}"]:
        screen.err.print(styled(line), soft_wrap=True)
    return FAILED


def again(screen: Screen) -> str:
    """The command that goes on with what was begun."""
    return screen.command("--fresh", "--dry-run")


def _anew(plan: Plan, runs: Runs) -> Plan:
    """The plan with nothing reused; what is done tells what it cost."""
    from kdlab.jobs.result import JobResult

    jobs = []
    for planned in plan.jobs:
        anew = replace(planned, done=False, why="--fresh")
        if result := JobResult.read(runs.job(planned.job.id)):
            anew = replace(anew, cost_s=result.wall_s, cost_source="measured, n=1")
        jobs.append(anew)
    return replace(plan, jobs=tuple(jobs))


def _set_aside(plan: Plan, runs: Runs) -> str:
    """Move the folders of a plan's jobs out of reach; what was done, in words.

    Raises:
        UsageError: some of them run now.
    """
    from kdlab.jobs.job import read_job
    from kdlab.jobs.lease import holder
    from kdlab.jobs.paths import JobPaths

    jobs = [planned.job.id for planned in plan.jobs if runs.job(planned.job.id).folder.exists()]
    for path in runs.folder.glob("jobs/diagnose-*/job.json"):
        # what was found of their weights goes with them
        with suppress(KdlabError, OSError, ValueError):
            if not set(jobs).isdisjoint(read_job(JobPaths(path.parent)).parents):
                jobs.append(path.parent.name)
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
    return written(screen, table, made.plan) if complete else []


def _more_seeds(screen: Screen, plan: Plan) -> str:
    """The command that makes a plan of fewer than three seeds one that a test can judge; else ""."""
    from kdlab.reporting.statistics import SEEDS_FOR_A_TEST

    seeds = list(plan.recipe["seeds"])
    if len(seeds) >= SEEDS_FOR_A_TEST:
        return ""
    unused = (seed for seed in count() if seed not in plan.recipe["seeds"])
    seeds += islice(unused, SEEDS_FOR_A_TEST - len(seeds))
    before = screen.command("--fresh", "--set seeds=", "--seeds ")
    return f"{before} --set {shlex.quote(f'seeds={seeds}'.replace(' ', ''))}"
