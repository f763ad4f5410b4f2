"""A running plan on a terminal: a board that redraws itself, a line a GPU or a job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kdlab.cli.screen.console import Screen, duration
from kdlab.cli.screen.lines import STOPPING, Lines
from kdlab.cli.screen.places import consecutive, ranges, without_jobs
from kdlab.cli.screen.progress import PlanStatus
from kdlab.cli.screen.rows import (
    DROPPED_FIRST,
    DROPPED_FIRST_WITH_GPUS,
    Frame,
    ending,
    heading,
    line,
    reserved_widths,
    row,
    rows,
)
from kdlab.devices import Gpu
from kdlab.jobs.events import Event
from kdlab.jobs.paths import Runs
from kdlab.jobs.status import JobStatus, State

Gpus = Callable[[], Sequence[Gpu]]

_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 2.0
_REST = 25
"""After a look at many jobs comes so many times the CPU time that it took."""
_SHOWN_ENDED = 5
_LAST = 1 << 30
_CLOCK_MIN = len("10h10m, ETA 10h10m")


def no_gpus() -> Sequence[Gpu]:
    """The GPUs of a machine without, and of a cluster, which gives them out itself."""
    return ()


def watcher(
    plan: PlanStatus, runs: Runs, screen: Screen, *, live: bool, gpus: Gpus = no_gpus
) -> Board | Lines:
    """What shows a plan from `__enter__` to `close`: the board if `live` and possible, else lines."""
    return Board(plan, runs, screen.err, gpus) if live and screen.live else Lines(plan, screen)


class Board:
    """Redraws itself: counts, a row a running job, the GPUs without one, and what ended last.

    Args:
        plan: what runs.
        runs: where the job folders are.
        console: the terminal.
        gpus: gives the GPUs of this machine that jobs can have, as they were last seen.
    """

    def __init__(self, plan: PlanStatus, runs: Runs, console: Console, gpus: Gpus = no_gpus) -> None:
        self._plan, self._runs, self._gpus = plan, runs, gpus
        self._began, self._looked, self._asked = time.monotonic(), 0.0, 0.0
        self._eta, self._rest_s = "", _LOOK_EVERY_S
        self._numbers = {gpu.uuid: gpu.index for gpu in gpus()}
        self._others: dict[str, str] = {}
        self._stopping = False
        self._widths = self._reserved()
        self._frame = Frame(self._lines)
        self._live = Live(self._frame, console=console, refresh_per_second=4)

    def see(self, event: Event) -> None:
        """Show an event."""
        self._plan.see(event)

    def stopping(self) -> None:
        """Show that the jobs were asked to stop; for signal handlers, so it must not use streams."""
        self._stopping = True

    def close(self) -> None:
        """Leave the last frame standing; a second call does nothing."""
        self._looked = self._asked = 0.0
        self._live.stop()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __rich__(self) -> Frame:
        return self._frame

    def _lines(self, width: int, height: int) -> Iterator[Text]:
        """The whole board."""
        # one row less, so that what a person types does not scroll the frame away
        room = max(2, height - 2)
        if time.monotonic() - self._looked >= self._rest_s:
            self._look()
        running, queued = self._plan.of_state(State.RUNNING), self._plan.of_state(State.QUEUED)
        # importing torch takes seconds before a process says anything
        starting = [status for status in queued if status.process]
        waiting = [status for status in queued if status.in_queue]
        yield self._header(width, len(starting))
        lines = list(self._working([*running, *starting, *waiting], width, room))
        yield from lines
        told = self._plan.ended
        if self._stopping:
            told = [status for status in told if status.state is not State.SKIPPED]
        first = len(told) - min(len(told), _SHOWN_ENDED, room - len(lines))
        label = max((len(status.job.label) for status in told[first:]), default=0)
        for status in told[first:]:
            text = f"{status.state:<9}  {status.job.label:<{label}}  {ending(status)}"
            yield line([(status.state, text)], width)

    def _working(self, shown: Sequence[JobStatus], width: int, room: int) -> Iterator[Text]:
        """A row a job at work and one for the GPUs without a job, by GPU; what does not fit is counted."""
        now = time.time()
        placed = []
        for status in shown:
            place = min((self._numbers.get(uuid, _LAST) for uuid in status.devices), default=_LAST)
            placed.append((place, row(status, now, self._numbers)))
        idle = [] if self._over else self._idle()
        if len(shown) + len(idle) <= room:
            placed += idle
        # those without a GPU stay in the plan's order: sorted() moves nothing among equals
        cells = [cell for _, cell in sorted(placed, key=lambda pair: pair[0])]
        fitting = len(cells) if len(cells) <= room else room - 1
        dropped = DROPPED_FIRST_WITH_GPUS if self._numbers else DROPPED_FIRST
        yield from rows(cells[:fitting], width, self._widths, dropped_first=dropped)
        if left := len(cells) - fitting:
            yield line([("skipped", f"and {left} more, see them with: kdlab status")], width)
        if self._stopping:
            return
        waits = [one for one in self._plan.of_state(State.QUEUED) if one.waits_for]
        if waits and fitting < room:
            yield line([("skipped", f"{waits[0].job.label} waits for {waits[0].waits_for}")], width)
        elif not shown and self._plan.counts["queued"]:
            yield line([("skipped", "waiting for a free device")], width)

    def _idle(self) -> list[tuple[int, dict[str, str]]]:
        """A row for GPUs in a line of which the same is to be said, with the first one's number."""
        found: dict[str, list[int]] = {}
        for uuid, what in self._others.items():
            if uuid in self._numbers:
                found.setdefault(what, []).append(self._numbers[uuid])
        return [
            (group[0], {"slot": ranges("gpu", group), "note": what})
            for what, numbers in found.items()
            for group in consecutive(numbers)
        ]

    @property
    def _over(self) -> bool:
        """Whether nothing more runs or will."""
        counts = self._plan.counts
        if self._stopping:
            return not (counts["running"] or any(one.at_work for one in self._plan.of_state(State.QUEUED)))
        return not (counts["running"] or counts["queued"])

    def _look(self) -> None:
        """Find what is left of the plan, and where its jobs are; more rarely who else has GPUs."""
        now, began_s = time.monotonic(), time.thread_time()
        self._looked = now
        left = self._plan.left_s(time.time())
        self._eta = "?" if left is None else duration(left)
        gpus = self._gpus()
        self._numbers = {gpu.uuid: gpu.index for gpu in gpus}
        active = [status for status in self._plan.jobs.values() if status.state.active]
        for status in active:
            status.locate(self._runs.job(status.job.id))
        ours = {device for status in active for device in status.devices}
        if now - self._asked >= _ASK_EVERY_S or self._others.keys() != self._numbers.keys() - ours:
            self._asked = now
            self._others = without_jobs(gpus, ours)
        self._widths = self._reserved()
        self._rest_s = max(_LOOK_EVERY_S, _REST * (time.thread_time() - began_s))

    def _reserved(self) -> dict[str, int]:
        jobs = [status.job for status in self._plan.jobs.values()]
        last, most = max(self._numbers.values(), default=-1), max(job.resources.gpus for job in jobs)
        # "gpu12-15" where jobs have four GPUs of sixteen
        slot = len(ranges("gpu", range(last + 1 - most, last + 1))) if last >= 0 else 0
        return reserved_widths(jobs) | {"slot": slot}

    def _header(self, width: int, starting: int) -> Text:
        counts, over = self._plan.counts, self._over
        counts["running"] += starting
        counts["queued"] -= starting
        clock = duration(time.monotonic() - self._began)
        if not over:
            clock = STOPPING if self._stopping else f"{clock}, ETA {self._eta}"
        others = ("cancelled", "pruned") if self._stopping else ("cancelled", "skipped", "pruned")
        return heading(self._plan.plan, counts, others, f"{clock:<{_CLOCK_MIN}}", width)
