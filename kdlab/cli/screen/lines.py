"""A running plan where nobody looks at a terminal: a timestamped line an event."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Self

from kdlab.cli.screen.console import Screen, duration
from kdlab.cli.screen.progress import JobView, PlanView
from kdlab.cli.screen.rows import GAP, ending, row, short
from kdlab.jobs.events import (
    Event,
    JobCheckpointed,
    JobEvaluated,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobStarted,
)

LINE_EVERY_S = 10.0
STOPPING = "stopping at a checkpoint, Ctrl-C again kills"


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
        os.write(2, f"{STOPPING}\n".encode())

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
            case JobStarted(iteration=0) if view.job.spec.counts == "steps":
                return f"started on {event.device}: {event.iterations} iterations"
            case JobStarted(iteration=0):
                return f"started on {event.device}: {event.epochs} epochs, {event.iterations} iterations"
            case JobStarted():
                return f"goes on after iteration {event.iteration} of {event.iterations} on {event.device}"
            case JobProgress() if time.monotonic() - self._told.get(event.job, -LINE_EVERY_S) >= LINE_EVERY_S:
                self._told[event.job] = time.monotonic()
                cells = row(view, None, time.time())
                return GAP.join(cells[name] for name in ("epoch", "det", "terms", "ETA") if cells[name])
            case JobEvaluated():
                return f"AP {event.metrics.get('AP', 0.0):.1f} after epoch {event.epoch}"
            case JobCheckpointed() if self._screen.verbose:
                return f"checkpoint at iteration {event.iteration}"
            case JobRetried():
                return f"{event.why}; another process goes on from the last checkpoint"
        return f"{view.state}: {ending(view)}{self._so_far()}" if view.end is event else ""

    def _so_far(self) -> str:
        counts, left = self._view.counts, self._view.left_s(time.time())
        eta = "?" if left is None else duration(left)
        over = not counts["running"] and not counts["queued"]
        every = len(self._view.jobs) + self._view.to_come
        return f"  ({counts['done']} of {every} done{'' if over else f', ETA {eta}'})"
