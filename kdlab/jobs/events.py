"""Events of jobs, as they happen: the only thing that boards and trackers follow.

A job appends one line an event to its `events.jsonl`. A process may be killed in the middle of a line
and a resumed job repeats iterations, so readers skip what does not parse and drop what a later attempt undid.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from kdlab.jobs.files import as_kind, parsed


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to `job` at `time` (Unix seconds) in its process number `attempt`."""

    job: str
    time: float = field(default_factory=time.time)
    attempt: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The event as plain data, its kind under "event"."""
        return {"event": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class JobQueued(Event):
    """The plan holds the job and it has yet to run."""


@dataclass(frozen=True, kw_only=True)
class JobWaiting(Event):
    """The job could start but for devices that others hold: which, and who (`why`)."""

    why: str


@dataclass(frozen=True, kw_only=True)
class JobReused(Event):
    """The job had finished before."""

    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class JobStarted(Event):
    """A process began on `device`, for `iterations` in all, going on after `iteration` (0: from scratch).

    It knows of the evaluations up to iteration `evaluated` and makes later ones again; None does not say.
    """

    device: str
    epochs: int
    iterations: int
    iteration: int = 0
    evaluated: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobProgress(Event):
    """Means since the last report: losses by term, seconds a step and of it waiting for data."""

    epoch: int
    epochs: int
    iteration: int
    iterations: int
    losses: dict[str, float]
    lr: float
    step_s: float
    data_s: float
    eta_s: float


@dataclass(frozen=True, kw_only=True)
class JobEvaluated(Event):
    """Metrics in points 0 to 100 on the validation images."""

    epoch: int
    iteration: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class JobCheckpointed(Event):
    """All up to `iteration` survives a kill."""

    iteration: int


@dataclass(frozen=True, kw_only=True)
class JobFinished(Event):
    """`result.json` is written."""

    metrics: dict[str, float]
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class JobFailed(Event):
    """The job ended without a result: the fault, where training stood, after how long, the log's tail.

    `kind` is "oom" where the GPU's memory did not hold a step: then `failure.json` has the figures.
    """

    what: str
    where: str = ""
    got: str = ""
    known: str = ""
    fix: str = ""
    after_s: float = 0.0
    log: str = ""
    tail: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class JobRetried(Event):
    """The process was killed (`why`) and another attempt continues from the last checkpoint."""

    why: str


@dataclass(frozen=True, kw_only=True)
class JobCancelled(Event):
    """Stopped on request, with a checkpoint at `iteration`."""

    iteration: int = 0


@dataclass(frozen=True, kw_only=True)
class JobSkipped(Event):
    """Not run, because a job it needs did not finish."""

    why: str


SAID_EVERY_S = 10.0
"""Between two lines of progress in a job's log."""
_LATEST = 1e11
"""Unix seconds of a time that can be shown: in some three thousand years."""
KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        JobQueued, JobWaiting, JobReused, JobStarted, JobProgress, JobEvaluated, JobCheckpointed,
        JobFinished, JobFailed, JobRetried, JobCancelled, JobSkipped,
    )
}  # fmt: skip


def from_line(line: bytes) -> Event | None:
    """The event in one line of a log, None where the line is torn or of a kind unknown here."""
    try:
        data = parsed(line)
        event = as_kind(data, KINDS[data.pop("event")])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return event if 0 <= event.time < _LATEST else None


def told(event: Event) -> str:
    """An event on a line, for a person who reads the job's log; "" where that says nothing."""
    match event:
        case JobStarted():
            after = f" after iteration {event.iteration}" if event.iteration else ""
            return f"training{after}, {event.iterations} iterations on {event.device}"
        case JobProgress():
            losses = "  ".join(f"{name} {value:.4g}" for name, value in event.losses.items())
            place = f"epoch {event.epoch}/{event.epochs}  iteration {event.iteration}/{event.iterations}"
            return f"{place}  {losses}  lr {event.lr:.3g}  {event.step_s:.3g} s a step"
        case JobEvaluated():
            metrics = "  ".join(f"{name} {value:.1f}" for name, value in event.metrics.items())
            return f"epoch {event.epoch}  iteration {event.iteration}  {metrics}"
    return ""


class EventLog:
    """Appends events of one attempt to a job's `events.jsonl`; closes a torn last line first.

    Args:
        path: of the file.
        job: its id.
        attempt: its number.
        say: also told the events as lines, of progress one in `SAID_EVERY_S`.
    """

    def __init__(
        self, path: Path, job: str, attempt: int, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._job, self._attempt, self._say = job, attempt, say
        self._said = -math.inf
        self._file = path.open("ab+", buffering=0)

    def write(self, kind: type[Event], /, **fields: Any) -> None:
        """Append one event, whole in one write; on a disk that fills up it may be torn and is then lost."""
        event = kind(job=self._job, attempt=self._attempt, **fields)
        # looked at each time: the file can lose its end under a living process too
        torn = not is_line_end(self._file, self._file.seek(0, os.SEEK_END))
        self._file.write(b"\n" * torn + json.dumps(event.to_dict()).encode() + b"\n")
        progress = isinstance(event, JobProgress)
        if (line := told(event)) and not (progress and event.time - self._said < SAID_EVERY_S):
            self._said = event.time if progress else self._said
            self._say(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class Tail:
    """The part of a log beyond a byte offset."""

    events: list[Event]
    offset: int
    skipped: int


def is_line_end(file: IO[bytes], offset: int) -> bool:
    """Whether a line ends or the file begins at byte `offset`; leaves the file's position there."""
    if not offset:
        file.seek(0)
        return True
    file.seek(offset - 1)
    return file.read(1) == b"\n"


def read_from(path: Path, offset: int = 0) -> Tail:
    """Events from byte `offset` on; a line still being written waits for the next call.

    A log that has lost its end is read on from where it ends now.

    Returns:
        The events, the offset to go on from, and how many lines did not parse. No file is an empty log.
    """
    try:
        with path.open("rb") as file:
            offset = min(offset, file.seek(0, os.SEEK_END))
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return Tail([], offset, 0)
    end = data.rfind(b"\n") + 1
    parsed = [from_line(line) for line in data[:end].split(b"\n") if line.strip()]
    events = [event for event in parsed if event is not None]
    return Tail(events, offset + end, len(parsed) - len(events))


def last_in(path: Path, within: int = 1 << 16) -> Event | None:
    """The last event of a log, None where its last `within` bytes hold none; parses no more than it must."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - within))
            data = file.read()
    except FileNotFoundError:
        return None
    lines = reversed(data[: data.rfind(b"\n") + 1].splitlines())
    return next((event for line in lines if (event := from_line(line)) is not None), None)


def settled(events: Iterable[Event]) -> list[Event]:
    """The history as it stands: without what an attempt did beyond the point where a later one went on."""
    kept: list[Event] = []
    start: JobStarted | None = None
    for event in events:
        if isinstance(event, JobStarted):
            start = event
            kept = [old for old in kept if not _is_undone(old, start)]
        elif start and event.attempt < start.attempt and _is_undone(event, start):
            continue
        kept.append(event)
    return kept


def _is_undone(event: Event, start: JobStarted) -> bool:
    """Whether an attempt does again what an earlier one tells in `event`."""
    iteration: int = getattr(event, "iteration", 0)
    if isinstance(event, JobEvaluated) and start.evaluated is not None:
        return iteration > start.evaluated
    return iteration > start.iteration
