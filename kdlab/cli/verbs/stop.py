"""kdlab stop: let jobs write a checkpoint and end, from another shell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab.cli.screen.console import UNLIMITED, Screen, duration
from kdlab.cli.screen.options import JobNames
from kdlab.errors import MachineError

if TYPE_CHECKING:
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.jobs.handle import Handle
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.status import JobStatus, State
    from kdlab.running.executors.base import ExecutorRegistry

PATIENCE_S = 120.0
"""Seconds in which a job is expected to reach its next checkpoint."""
_LOOK_EVERY_S = 0.5


def stop(
    screen: Screen,
    jobs: JobNames = None,
    now: Annotated[
        bool, typer.Option("--now", help="Kill them; they go on from their last checkpoint.")
    ] = False,
) -> int:
    """Stop jobs at a checkpoint: those named, else all of the newest plan.

    The same kdlab run later goes on where they stopped.

    \b
    Examples:
      $ kdlab stop
      plan 47ed  digits/quickstart  nothing runs
      $ kdlab stop 'rm+pfi seed 0' --now
        done  rm+pfi seed 0 (student-9e5b...)  had ended before: ...
    """
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs

    runs = Runs.here()
    plan, names = store.chosen(runs, jobs or [])
    seen = PlanStatus.read(plan, runs)
    active = [job for job, status in seen.jobs.items() if _stoppable(seen, status, runs)]
    wanted = names or active
    if plan.is_search and not names:
        # or others would begin in place of the trials that end
        runs.stop_request(plan.id).touch()
    before = {name: seen.jobs[name].state for name in wanted}
    stopping = _Stopping(seen, runs, [name for name in wanted if name in active], now=now)
    try:
        stopping.ask()
        stopping.wait(screen)
    except KeyboardInterrupt:
        screen.say("not waited for: they stop at their next checkpoint all the same")
        raise
    told = [stopping.became(name, before[name]) for name in wanted]
    _show(screen, seen, told)
    screen.next(seen.command)
    return int(any(one["became"] == "running" for one in told))


def _stoppable(seen: PlanStatus, status: JobStatus, runs: Runs) -> bool:
    """Whether the job runs, or would without being stopped."""
    if not status.state.startable:
        return status.process is not None
    asked = runs.job(status.job.id).stop_request.exists()
    return not asked and (seen.driven or status.in_queue)


class _Stopping:
    """Jobs that are to stop.

    Args:
        seen: their plan.
        runs: where they are.
        jobs: their ids.
        now: whether they are killed.
    """

    def __init__(self, seen: PlanStatus, runs: Runs, jobs: Sequence[str], *, now: bool) -> None:
        self._seen, self._runs, self._jobs, self._now = seen, runs, jobs, now
        self._cancelled: dict[str, Handle] = {}

    def ask(self) -> None:
        """Tell the jobs, first those that wait, so that none of them starts in place of one that ends."""
        for name in sorted(self._jobs, key=lambda name: self._seen.jobs[name].process is not None):
            paths = self._runs.job(name)
            paths.folder.mkdir(parents=True, exist_ok=True)
            paths.stop_request.touch()
            # what a cluster has in its queue reads no files yet
            if self._now or self._seen.jobs[name].in_queue:
                self._end(self._seen.jobs[name])

    def wait(self, screen: Screen) -> None:
        """Wait until nobody works on them, or patience ends."""
        until, left = time.monotonic() + PATIENCE_S, len(self._jobs)
        if not left:
            return
        working = "killing" if self._now else "stopping at a checkpoint:"
        with screen.working(f"{working} {left} job{'s' * (left > 1)}") as progress:
            while left and time.monotonic() < until:
                time.sleep(_LOOK_EVERY_S)
                if self._cancelled:
                    # lets those who cancelled a job end what its leader leaves behind
                    with suppress(MachineError):
                        self._registry.ended(self._cancelled)
                self._seen.look(self._runs)
                before, left = left, sum(self._seen.jobs[name].at_work for name in self._jobs)
                if 0 < left < before:
                    progress(f"{working} {left} job{'s' * (left > 1)} left")

    def became(self, name: str, before: State) -> dict[str, str]:
        """What came of a job that was in the state `before`."""
        from kdlab.cli.screen.rows import note
        from kdlab.jobs.status import State

        status = self._seen.jobs[name]
        told, why = str(status.state), note(status)
        if before in (State.DONE, State.FAILED, State.SKIPPED):
            why = f"had ended before{f': {why}' if why else ''}"
        elif status.state is State.RUNNING:
            hint = "" if self._now else f", end it with: kdlab stop {name} --now"
            why = f"has not stopped after {duration(PATIENCE_S)}{hint}"
        elif name not in self._jobs:
            why = "nobody runs it"
        elif before is State.RUNNING and status.state.startable:
            told = "killed" if self._now else "stopped"
        elif before.startable:
            told, why = "stopped", "does not start"
        return {"id": name, "label": status.job.label, "became": told, "note": why}

    @cached_property
    def _registry(self) -> ExecutorRegistry:
        from kdlab.running.executors import base

        return base.ExecutorRegistry(base.load("local"))

    def _end(self, status: JobStatus) -> None:
        """Cancel a job where it can be reached from here; elsewhere it reads that it is to stop."""
        from kdlab.jobs.handle import Handle

        handle = status.handle
        if handle and not handle.ref and handle.process != status.process:
            handle = None
        if handle is None and status.process:
            handle = Handle("", status.process)
        with suppress(MachineError):
            if handle and (executor := self._registry.of(handle)):
                executor.cancel(handle, 0.0 if self._now else PATIENCE_S)
                self._cancelled[status.job.id] = handle


def _show(screen: Screen, seen: PlanStatus, told: Sequence[dict[str, str]]) -> None:
    """A line a job with what came of it."""
    from kdlab.cli.screen.rows import line

    recipe = seen.plan.recipe["name"]
    if screen.json:
        screen.emit(plan=seen.plan.id, recipe=recipe, command=seen.command, jobs=told)
        return
    if not told:
        screen.data(f"plan {seen.plan.id[:4]}  {recipe}  nothing runs")
    titles = [f"{one['label']} ({one['id']})" for one in told]
    wide = max(map(len, titles), default=0)
    for one, title in zip(told, titles, strict=True):
        became = one["became"]
        marked = ((became, f"  {became:<7}"), ("", f"{title:<{wide}}"), ("note", one["note"]))
        screen.data(line(marked, UNLIMITED))
