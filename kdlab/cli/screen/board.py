"""A running plan on a terminal: a board that redraws itself, a line a GPU or a job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from kdlab.cli.screen.console import Screen, duration
from kdlab.cli.screen.lines import STOPPING, Lines
from kdlab.cli.screen.places import ranges, without_jobs
from kdlab.cli.screen.progress import PlanStatus
from kdlab.cli.screen.rows import (
    DROPPED_FIRST,
    DROPPED_FIRST_WITH_GPUS,
    GAP,
    Resized,
    ending,
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
        self._stopping, self._resized = False, Resized()
        self._widths = self._reserved()
        self._live = Live(self, console=console, refresh_per_second=4)

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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # one row less, so that what a person types does not scroll the frame away
        width, room = options.max_width, max(2, console.height - 2)
        self._look()
        running, queued = self._plan.of_state(State.RUNNING), self._plan.of_state(State.QUEUED)
        # importing torch takes seconds before a process says anything
        starting = [status for status in queued if status.process]
        waiting = [status for status in queued if status.in_queue]
        yield from self._resized.clearing(width)
        yield self._header(width, len(starting))
        lines = list(self._working([*running, *starting, *waiting], width, room))
        yield from lines
        told = [one for one in self._plan.ended if not (self._stopping and one.state is State.SKIPPED)]
        yield from _ended(told[len(told) - min(len(told), _SHOWN_ENDED, room - len(lines)) :], width)

    def _working(self, shown: Sequence[JobStatus], width: int, room: int) -> Iterator[Text]:
        """A row a job at work and one for the GPUs without a job, by GPU; what does not fit is counted."""
        now = time.time()
        cells = [(self._order(status), row(status, now, self._numbers)) for status in shown]
        idle = [] if self._over else list(_idle_rows(self._others, self._numbers))
        if len(cells) + len(idle) > room:
            idle = []
        left = len(cells) - room + 1 if len(cells) > room else 0
        # those without a GPU stay in the plan's order: sorted() moves nothing among equals
        ordered = sorted([*cells, *idle], key=lambda pair: pair[0])[: len(cells) + len(idle) - left]
        dropped = DROPPED_FIRST_WITH_GPUS if self._numbers else DROPPED_FIRST
        yield from rows([cell for _, cell in ordered], width, self._widths, dropped_first=dropped)
        if left:
            yield line([("skipped", f"and {left} more, see them with: kdlab status")], width)
        if not cells and self._plan.counts["queued"] and not self._stopping:
            yield line([("skipped", "waiting for a free device")], width)

    @property
    def _over(self) -> bool:
        """Whether nothing more runs or will."""
        counts = self._plan.counts
        if self._stopping:
            return not (counts["running"] or any(one.at_work for one in self._plan.of_state(State.QUEUED)))
        return not (counts["running"] or counts["queued"])

    def _order(self, status: JobStatus) -> int:
        """The lowest GPU of a job; of one that has none, or none here, a number behind all of them."""
        return min((self._numbers.get(uuid, _LAST) for uuid in status.devices), default=_LAST)

    def _look(self) -> None:
        """Once a second: what is left of the plan, and where its jobs are; rarer who else has GPUs."""
        now, began_s = time.monotonic(), time.thread_time()
        if now - self._looked < self._rest_s:
            return
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
        plan, counts = self._plan.plan, self._plan.counts
        counts += Counter(running=starting)
        counts["queued"] -= starting
        parts = {"id": f"plan {plan.id[:4]}", "name": plan.recipe["name"]}
        parts |= {state: f"{state} {counts[state]}" for state in ("done", "running", "queued", "failed")}
        lost = ("cancelled", "pruned") if self._stopping else ("cancelled", "skipped", "pruned")
        parts |= {state: f"{state} {counts[state]}" for state in lost if counts[state]}
        clock = f"{duration(time.monotonic() - self._began)}{'' if self._over else f', ETA {self._eta}'}"
        parts["clock"] = f"{STOPPING if self._stopping and not self._over else clock:<{_CLOCK_MIN}}"
        for name in ("id", "name", "queued", "skipped", "cancelled", "pruned"):
            if len(GAP.join(parts.values())) > width:
                parts.pop(name, None)
        marked = [("failed" if name == "failed" and counts["failed"] else "", parts[name]) for name in parts]
        return line(marked, width)


def _idle_rows(said: Mapping[str, str], numbers: Mapping[str, int]) -> Iterator[tuple[int, dict[str, str]]]:
    """A row for GPUs in a line of which the same is to be said, with the first one's number."""
    known = sorted((numbers[uuid], what) for uuid, what in said.items() if uuid in numbers)
    # in a row of numbers the distance to the place among all stays the same
    groups = groupby(enumerate(known), key=lambda pair: (pair[1][1], pair[1][0] - pair[0]))
    for (what, _), group in groups:
        found = [number for _, (number, _) in group]
        yield found[0], {"slot": ranges("gpu", found), "note": what}


def _ended(ended: Sequence[JobStatus], width: int) -> Iterator[Text]:
    """A line a job that ended, with what came of it."""
    label = max((len(status.job.label) for status in ended), default=0)
    for status in ended:
        told = f"{status.state:<9}  {status.job.label:<{label}}  {ending(status)}"
        yield line([(status.state, told)], width)
