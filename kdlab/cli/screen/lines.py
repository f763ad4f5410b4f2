"""A running plan where nobody looks at a terminal: a timestamped line an event."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Self

from kdlab.cli.screen.console import Screen, duration
from kdlab.cli.screen.progress import PlanStatus
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
    JobWaiting,
)
from kdlab.jobs.status import JobStatus

LINE_EVERY_S = 10.0
STOPPING = "stopping at a checkpoint, Ctrl-C again kills"


class Lines:
    """A timestamped line an event, of progress at most one a job every ten seconds; with --json its JSON."""

    def __init__(self, plan: PlanStatus, screen: Screen) -> None:
        self._plan, self._screen = plan, screen
        self._stock = True
        self._told: dict[str, float] = {}

    def see(self, event: Event) -> None:
        """Show an event."""
        status = self._plan.see(event)
        if self._screen.json:
            self._screen.emit(**event.to_dict())
            return
        if self._stock and isinstance(event, JobQueued | JobReused):
            return
        self._stock = False
        if isinstance(event, JobProgress):
            now = time.monotonic()
            if now - self._told.get(event.job, -LINE_EVERY_S) < LINE_EVERY_S:
                return
            self._told[event.job] = now
        if text := self._end(status) if status.end is event else self._text(event, status):
            moment = datetime.fromtimestamp(event.time).strftime("%F %T")
            self._screen.say(f"{moment}  {short(status.job.id)}  {status.job.label}  {text}")

    def stopping(self) -> None:
        """See `Board.stopping`."""
        os.write(2, f"{STOPPING}\n".encode())

    def close(self) -> None:
        """Nothing: a line is shown at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, event: Event, status: JobStatus) -> str:
        counts = status.job.spec.counts
        match event:
            case JobStarted() if counts == "images":
                return f"measures on {event.device}: {event.iterations} images"
            case JobStarted(iteration=0):
                epochs = f"{event.epochs} epochs, " if counts == "epochs" else ""
                return f"started on {event.device}: {epochs}{event.iterations} iterations"
            case JobStarted():
                return f"goes on after iteration {event.iteration} of {event.iterations} on {event.device}"
            case JobProgress():
                cells = row(status, time.time())
                return GAP.join(filter(None, map(cells.get, ("epoch", "det", "terms", "ETA"))))
            case JobEvaluated():
                when = f"on {event.iteration} images" if counts == "images" else f"after epoch {event.epoch}"
                return f"AP {event.metrics.get('AP', 0.0):.1f} {when}"
            case JobCheckpointed() if self._screen.verbose:
                return f"checkpoint at iteration {event.iteration}"
            case JobWaiting():
                return f"waits for {event.why}"
            case JobRetried():
                return f"{event.why}; another process goes on from the last checkpoint"
        return ""

    def _end(self, status: JobStatus) -> str:
        """What came of a job, and how far its plan is."""
        counts, left = self._plan.counts, self._plan.left_s(time.time())
        so_far = f"{counts['done']} of {len(self._plan.jobs) + self._plan.to_come} done"
        if counts["running"] or counts["queued"]:
            so_far += f", ETA {'?' if left is None else duration(left)}"
        return f"{status.state}: {ending(status)}  ({so_far})"
