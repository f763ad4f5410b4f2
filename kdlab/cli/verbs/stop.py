"""kdlab stop: let jobs write a checkpoint and end, from another shell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab.cli.screen import pick
from kdlab.cli.screen.console import UNLIMITED, Screen, duration
from kdlab.cli.screen.options import JobNames
from kdlab.errors import MachineError

if TYPE_CHECKING:
    from kdlab.cli.screen.snapshot import Seen, Snapshot
    from kdlab.jobs.handle import Handle
    from kdlab.jobs.paths import JobPaths, Runs
    from kdlab.running.executors.base import Keepers

PATIENCE_S = 120.0
"""Seconds in which a job is expected to reach its next checkpoint."""
_LOOK_EVERY_S = 0.5
_WAITING = ("queued", "interrupted")


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
      plan 70e4  digits/quickstart  nothing runs
      $ kdlab stop 'rm+pfi seed 0' --now
        done  rm+pfi seed 0 (student-6c24...)  had ended before: ...
    """
    from kdlab.cli.screen.snapshot import Snapshot
    from kdlab.jobs.paths import Runs

    runs = Runs.here()
    plan, names = pick.chosen(runs, jobs or [])
    snapshot = Snapshot(plan, runs)
    active = [seen.view.job.id for seen in snapshot.jobs if _stoppable(snapshot, seen, runs)]
    wanted = names or active
    if snapshot.searches and not names:
        # or others would begin in place of the trials that end
        runs.stop_request(plan.id).touch()
    before = {name: snapshot.of(name).view.state for name in wanted}
    stopping = _Stopping(snapshot, runs, [name for name in wanted if name in active])
    try:
        stopping.ask(now=now)
        stopping.wait(screen, now=now)
    except KeyboardInterrupt:
        screen.say("not waited for: they stop at their next checkpoint all the same")
        raise
    told = [stopping.became(name, before[name], now=now) for name in wanted]
    _show(screen, snapshot, told)
    screen.next(snapshot.command)
    return int(any(one["became"] == "running" for one in told))


def _stoppable(snapshot: Snapshot, seen: Seen, runs: Runs) -> bool:
    """Whether the job runs, or would without being stopped."""
    if seen.view.state not in _WAITING:
        return seen.view.state == "running"
    asked = runs.job(seen.view.job.id).stop_request.exists()
    return not asked and (snapshot.driven or seen.place is not None)


class _Stopping:
    """Jobs that are to stop.

    Args:
        snapshot: their plan.
        runs: where they are.
        jobs: their ids.
    """

    def __init__(self, snapshot: Snapshot, runs: Runs, jobs: Sequence[str]) -> None:
        self._snapshot, self._runs, self._jobs = snapshot, runs, jobs
        self._cancelled: dict[str, Handle] = {}

    def ask(self, *, now: bool) -> None:
        """Tell the jobs, first those that wait, so that none of them starts in place of one that ends."""
        for name in sorted(self._jobs, key=lambda name: self._snapshot.of(name).view.state == "running"):
            paths, seen = self._runs.job(name), self._snapshot.of(name)
            paths.folder.mkdir(parents=True, exist_ok=True)
            paths.stop_request.touch()
            # what a cluster has in its queue reads no files yet
            if now or (seen.place and seen.place.waits):
                self._end(name, 0.0 if now else PATIENCE_S)

    def wait(self, screen: Screen, *, now: bool) -> None:
        """Wait until nobody works on them, or patience ends."""
        until, left = time.monotonic() + PATIENCE_S, len(self._jobs)
        working = "killing" if now else "stopping at a checkpoint:"
        if not left:
            return
        with screen.working(f"{working} {_counted(left)}") as progress:
            while left and time.monotonic() < until:
                time.sleep(_LOOK_EVERY_S)
                self._reap()
                self._snapshot.look()
                if (at_work := sum(self._snapshot.of(name).place is not None for name in self._jobs)) < left:
                    left = at_work
                    if left:
                        progress(f"{working} {_counted(left)} left")

    def became(self, name: str, before: str, *, now: bool) -> dict[str, str]:
        """What came of a job that was in the state `before`."""
        seen = self._snapshot.of(name)
        state, note = seen.view.state, seen.note
        if before in ("done", "failed", "skipped"):
            note = f"had ended before{f': {note}' if note else ''}"
        elif state == "running":
            hint = "" if now else f", end it with: kdlab stop {name} --now"
            note = f"has not stopped after {duration(PATIENCE_S)}{hint}"
        elif name not in self._jobs:
            note = "nobody runs it"
        elif before == "running" and state in _WAITING:
            state = "killed" if now else "stopped"
        elif before in _WAITING:
            state, note = "stopped", "does not start"
        return {"id": name, "label": seen.view.job.label, "became": state, "note": note}

    def _reap(self) -> None:
        """Let those who cancelled a job end what its leader leaves behind."""
        if self._cancelled:
            with suppress(MachineError):
                self._keepers.ended(self._cancelled)

    @cached_property
    def _keepers(self) -> Keepers:
        from kdlab.running.executors import base

        return base.Keepers(base.load("local"))

    def _end(self, name: str, grace_s: float) -> None:
        """Cancel a job where it can be reached from here; elsewhere it reads that it is to stop."""
        paths = self._runs.job(name)
        handle = _handle(paths)
        with suppress(MachineError):
            if handle and (keeper := self._keepers.of(handle)):
                keeper.cancel(handle, grace_s)
                self._cancelled[name] = handle


def _handle(paths: JobPaths) -> Handle | None:
    """The process that works on a job, or the name by which a cluster knows it."""
    from kdlab.jobs.handle import Handle
    from kdlab.jobs.lease import holder

    handle = Handle.read(paths)
    if handle and (handle.ref or (handle.process and handle.process.alive())):
        return handle
    info = holder(paths)
    return Handle("", info.process) if info else None


def _counted(jobs: int) -> str:
    return f"{jobs} job{'s' * (jobs != 1)}"


def _show(screen: Screen, snapshot: Snapshot, told: Sequence[dict[str, str]]) -> None:
    """A line a job with what came of it."""
    from kdlab.cli.screen.rows import line

    recipe = snapshot.plan.recipe["name"]
    if screen.json:
        screen.emit(plan=snapshot.plan.id, recipe=recipe, command=snapshot.command, jobs=told)
        return
    if not told:
        screen.data(f"plan {snapshot.plan.id[:4]}  {recipe}  nothing runs")
    wide = max((len(f"{one['label']} ({one['id']})") for one in told), default=0)
    for one in told:
        name = f"{one['label']} ({one['id']})"
        marked = ((one["became"], f"  {one['became']:<7}"), ("", f"{name:<{wide}}"), ("note", one["note"]))
        screen.data(line(marked, UNLIMITED))
