"""A running plan on the screen: a live board on a terminal, elsewhere a line an event."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from kdlab.cli.console import Screen, duration
from kdlab.cli.progress import JobView, PlanView
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobStarted,
)
from kdlab.jobs.job import Runs
from kdlab.orchestration.executors.base import Handle

LINE_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0
_SHOWN_ENDED = 5
_STOPPING = "stopping at a checkpoint, Ctrl-C again kills"
_GAP = "  "
_BAR_MIN, _BAR_MAX = 6, 24
_CLOCK_MIN = len("10h10m, ETA 10h10m")
_COLUMNS = ("slot", "id", "label", "epoch", "bar", "AP", "det", "terms", "ETA")
_DROPPED_FIRST = ("id", "slot", "bar", "det", "terms", "epoch", "AP", "ETA")
_STYLES = {
    **{"slot": "dim", "id": "dim", "bar": "cyan", "AP": "bold", "terms": "magenta"},
    **{"done": "green", "failed": "bold red", "cancelled": "yellow", "skipped": "dim"},
}


def watcher(view: PlanView, runs: Runs, screen: Screen, *, live: bool) -> Board | Lines:
    """What shows a plan from `__enter__` to `close`: the board if `live` and possible, else lines."""
    return Board(view, runs, screen.err) if live and screen.live else Lines(view, screen)


class Board:
    """Redraws itself: counts, a row a running job, and what ended last.

    Args:
        view: the plan.
        runs: where the job folders are.
        console: the terminal.
    """

    def __init__(self, view: PlanView, runs: Runs, console: Console) -> None:
        self._view, self._runs = view, runs
        self._began, self._looked = time.monotonic(), 0.0
        self._eta = ""
        self._slots: dict[str, str] = {}
        self._stopping = False
        self._widths = _reserved(view)
        self._live = Live(self, console=console, refresh_per_second=4)

    def see(self, event: Event) -> None:
        """Show an event."""
        self._view.see(event)

    def stopping(self) -> None:
        """Show that the jobs were asked to stop; for signal handlers, so it must not use streams."""
        self._stopping = True

    def close(self) -> None:
        """Leave the last frame standing; a second call does nothing."""
        self._looked = 0.0
        self._live.stop()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        self._look()
        running, starting = self._view.of_state("running"), self._starting()
        yield self._header(width, len(starting))
        cells = [row(view, self._slots.get(view.job.id, ""), time.time()) for view in (*running, *starting)]
        yield from rows(cells, width, self._widths)
        if not cells and self._view.counts["queued"] and not self._stopping:
            yield _line([("skipped", "waiting for a free device")], width)
        told = [view for view in self._view.ended if not (self._stopping and view.state == "skipped")]
        ended = told[-_SHOWN_ENDED:]
        label = max((len(view.job.label) for view in ended), default=0)
        for view in ended:
            line = f"{view.state:<9}  {view.job.label:<{label}}  {_ending(view.end)}"
            yield _line([(view.state, line)], width)

    def _look(self) -> None:
        """Once a second: what is left of the plan, which jobs have a process, and on which devices."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        left = self._view.left_s(time.time())
        self._eta = "?" if left is None else duration(left)
        slots = {}
        for view in (*self._view.of_state("running"), *self._view.of_state("queued")):
            handle = Handle.read(self._runs.job(view.job.id))
            if handle and handle.process and handle.process.alive():
                slots[view.job.id] = self._slot(view.job.resources.gpus, handle)
        self._slots = slots

    def _starting(self) -> list[JobView]:
        """Jobs whose process is there and has not spoken yet: importing torch takes seconds."""
        return [view for view in self._view.of_state("queued") if view.job.id in self._slots]

    def _slot(self, gpus: int, handle: Handle) -> str:
        numbers = {gpu.uuid: str(gpu.index) for gpu in self._view.machine.gpus}
        return ("gpu" if gpus else "core") + ",".join(numbers.get(name, name) for name in handle.devices)

    def _header(self, width: int, starting: int) -> Text:
        plan, counts = self._view.plan, self._view.counts
        counts += Counter(running=starting)
        counts["queued"] -= starting
        parts = {"id": f"plan {plan.id[:4]}", "name": plan.recipe["name"]}
        parts |= {state: f"{state} {counts[state]}" for state in ("done", "running", "queued", "failed")}
        lost = ("cancelled",) if self._stopping else ("cancelled", "skipped")
        parts |= {state: f"{state} {counts[state]}" for state in lost if counts[state]}
        over = not counts["running"] and not counts["queued"]
        clock = f"{duration(time.monotonic() - self._began)}{'' if over else f', ETA {self._eta}'}"
        parts["clock"] = f"{_STOPPING if self._stopping and not over else clock:<{_CLOCK_MIN}}"
        for name in ("id", "name", "queued", "skipped", "cancelled"):
            if len(_GAP.join(parts.values())) > width:
                parts.pop(name, None)
        marked = [("failed" if name == "failed" and counts["failed"] else "", parts[name]) for name in parts]
        return _line(marked, width)


class Lines:
    """A timestamped line an event; of progress at most one a job every ten seconds."""

    def __init__(self, view: PlanView, screen: Screen) -> None:
        self._view, self._screen = view, screen
        self._stock = True
        self._told: dict[str, float] = {}

    def see(self, event: Event) -> None:
        """Show an event."""
        view = self._view.see(event)
        if self._stock and isinstance(event, JobQueued | JobReused):
            return
        self._stock = False
        if text := self._text(event, view):
            moment = datetime.fromtimestamp(event.time).strftime("%F %T")
            self._screen.say(f"{moment}  {short(view.job.id)}  {view.job.label}  {text}")

    def stopping(self) -> None:
        """See `Board.stopping`."""
        os.write(2, f"{_STOPPING}\n".encode())

    def close(self) -> None:
        """Nothing: a line is shown at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, event: Event, view: JobView) -> str:
        match event:
            case JobStarted() if view.measures:
                return f"measures on {event.device}: {event.iterations} images"
            case JobEvaluated() if view.measures:
                return f"AP {event.metrics.get('AP', 0.0):.1f} on {event.iteration} images"
            case JobStarted(iteration=0):
                return f"started on {event.device}: {event.epochs} epochs, {event.iterations} iterations"
            case JobStarted():
                return f"goes on after iteration {event.iteration} of {event.iterations} on {event.device}"
            case JobProgress() if time.monotonic() - self._told.get(event.job, -LINE_EVERY_S) >= LINE_EVERY_S:
                self._told[event.job] = time.monotonic()
                cells = row(view, "", time.time())
                return _GAP.join(cells[name] for name in ("epoch", "det", "terms", "ETA") if cells[name])
            case JobEvaluated():
                return f"AP {event.metrics.get('AP', 0.0):.1f} after epoch {event.epoch}"
            case JobCheckpointed() if self._screen.verbose:
                return f"checkpoint at iteration {event.iteration}"
            case JobRetried():
                return f"{event.why}; another process goes on from the last checkpoint"
        return f"{view.state}: {_ending(event)}{self._so_far()}" if view.end is event else ""

    def _so_far(self) -> str:
        counts, left = self._view.counts, self._view.left_s(time.time())
        eta = "?" if left is None else duration(left)
        over = not counts["running"] and not counts["queued"]
        return f"  ({counts['done']} of {len(self._view.jobs)} done{'' if over else f', ETA {eta}'})"


def short(job: str) -> str:
    """ "student-3fa2": enough of an id to tell the jobs of a plan apart."""
    kind, _, digits = job.rpartition("-")
    return f"{kind}-{digits[:4]}"


def row(view: JobView, slot: str, now: float) -> dict[str, str]:
    """The cells of a running job; that of the bar is a fraction, for its width is not known here."""
    det, terms = view.losses
    left = view.left_s(now)
    return {
        "slot": slot,
        "id": short(view.job.id),
        "label": view.job.label,
        "epoch": _stage(view),
        "bar": str(view.fraction),
        "AP": "" if view.ap is None else f"AP {view.ap:.1f}",
        "det": "" if det is None else f"det {_loss(det)}",
        "terms": _GAP.join(f"{name} {_loss(value)}" for name, value in terms.items()),
        "ETA": f"ETA {'?' if left is None else duration(left)}",
    }


def _stage(view: JobView) -> str:
    """How far a job is: "ep 5/12", "images 80/200" where it measures, "starts" before its process spoke."""
    if not view.started:
        return "starts"
    if not view.measures:
        return f"ep {view.epoch}"
    return f"images {view.last.iteration if view.last else 0}/{view.started.iterations}"


def _reserved(view: PlanView) -> dict[str, int]:
    """Characters that each column will need, so that the columns stay where they are while the plan runs."""
    jobs = [planned.job for planned in view.plan.jobs]
    terms = [[f"{name} 0.05" for name in job.settings.get("methods", ())] for job in jobs]
    return {
        "label": max(len(job.label) for job in jobs),
        "epoch": len("starts"),
        "bar": _BAR_MIN,
        "AP": len("AP 31.8"),
        "det": len("det 0.81"),
        "terms": max(len(_GAP.join(names)) for names in terms),
        "ETA": len("ETA 1h05m"),
    }


def rows(cells: Sequence[dict[str, str]], width: int, reserved: Mapping[str, int]) -> list[Text]:
    """The rows of the running jobs with their columns aligned; the least important ones give way."""
    wide = {
        name: max(reserved.get(name, 0), *(len(cell[name]) for cell in cells)) if cells else 0
        for name in _COLUMNS
    }
    kept = [name for name in _COLUMNS if wide[name]]

    def spare() -> int:
        return width - sum(wide[name] for name in kept) - len(_GAP) * (len(kept) - 1)

    for name in _DROPPED_FIRST:
        if spare() < 0 and name in kept:
            kept.remove(name)
    wide["bar"] = min(_BAR_MAX, _BAR_MIN + max(0, spare()))
    lines = []
    for cell in cells:
        shown = {**cell, "bar": _bar(float(cell["bar"]), wide["bar"])}
        lines.append(_line([(name, f"{shown[name]:<{wide[name]}}") for name in kept], width))
    return lines


def _bar(fraction: float, width: int) -> str:
    filled = round(fraction * width)
    return f"{'=' * (filled - 1)}>" if filled else ""


def _line(parts: Sequence[tuple[str, str]], width: int) -> Text:
    """One line of marked parts, cut at `width`."""
    text = Text(_GAP).join(Text(part, style=_STYLES.get(name, "")) for name, part in parts)
    text.rstrip()
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def _loss(value: float) -> str:
    """Four characters for all that is usual, so that the columns stay: "5e-4", "0.81", "12.3", "123"."""
    size = abs(value)
    if 0 < size < 0.005:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"


def _measured(metrics: Mapping[str, float]) -> str:
    """ "AP 31.8, "; nothing of a job that measures no detector."""
    return f"AP {metrics['AP']:.1f}, " if "AP" in metrics else ""


def _ending(event: Event | None) -> str:
    match event:
        case JobFinished():
            return f"{_measured(event.metrics)}{duration(event.wall_s)}"
        case JobReused():
            return f"{_measured(event.metrics)}by another kdlab run"
        case JobFailed():
            return event.what
        case JobCancelled():
            return f"keeps its checkpoint of iteration {event.iteration}"
        case JobSkipped():
            return event.why
    return ""
