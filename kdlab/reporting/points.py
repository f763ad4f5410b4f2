"""A job's log -> the points of its curves that no resume can undo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdlab.jobs.events import (
    Event,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobProgress,
    JobStarted,
    from_line,
    is_line_end,
    settled,
)

SPACING_S = 5.0
"""Of the points of one training curve in this many seconds, the last one is kept."""


@dataclass(frozen=True)
class Point:
    """One value of a curve: Unix milliseconds, step in iterations."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class Segment:
    """The points between two checkpoints and the byte of the log where the next segment begins."""

    points: tuple[Point, ...]
    end: int


def segments(log: Path, offset: int, *, finished: bool) -> list[Segment]:
    """What a log holds from byte `offset` on, cut at checkpoints.

    Cut and thinned by the log alone: whoever reads it again, in one go or many, finds the same points.
    So a log that lost its end, and may have grown again, is read from its beginning.

    Args:
        log: `events.jsonl`.
        offset: 0 or the `end` of a segment.
        finished: the job has its result, so what follows the last checkpoint counts as well; before that
            a resumed job would repeat it.
    """
    offset = offset if _reaches(log, offset) else 0
    if not (finished or _checkpointed(log, offset)):
        return []
    ends = {id(event): (event, end) for event, end in _events(log, offset)}
    found: list[Segment] = []
    open_events: list[Event] = []
    end = offset
    for event in settled(event for event, _ in ends.values()):
        open_events.append(event)
        end = ends[id(event)][1]
        if isinstance(event, JobCheckpointed):
            found.append(Segment(_thinned(open_events), end))
            open_events = []
    if finished and open_events:
        found.append(Segment(_thinned(open_events), end))
    return found


def key(name: str) -> str:
    """`name` in the characters that MLflow takes for keys ("cwd@neck" becomes "cwd:neck"), cut at 250."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", ":"))[:250]


def _events(log: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """The events from byte `offset` on, each with the byte after its line; torn lines are left out."""
    with log.open("rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if line.endswith(b"\n") and (event := from_line(line)) is not None:
                yield event, offset


def _reaches(log: Path, offset: int) -> bool:
    """Whether a line of the log still ends at byte `offset`."""
    with log.open("rb") as file:
        return is_line_end(file, offset)


def _checkpointed(log: Path, offset: int) -> bool:
    """Whether anything beyond byte `offset` can be sent; parsing all that waits would cost much more."""
    with log.open("rb") as file:
        file.seek(offset)
        return f'"{JobCheckpointed.__name__}"'.encode() in file.read()


def _thinned(events: Iterable[Event]) -> tuple[Point, ...]:
    """The points of `events`, training curves at `SPACING_S`, a validation metric once a step."""
    kept: dict[tuple[str, int], tuple[Event, float, int]] = {}
    for event in events:
        # a job that only measures has no curve of training
        if isinstance(event, JobProgress) and event.losses:
            place = int(event.time / SPACING_S)
            for term, value in event.losses.items():
                kept[f"train/{term}", place] = event, value, event.iteration
            for name in ("lr", "step_s", "data_s"):
                kept[name, place] = event, getattr(event, name), event.iteration
        elif isinstance(event, JobEvaluated):
            for name, value in event.metrics.items():
                kept[f"val/{name}", event.iteration] = event, value, event.iteration
    return tuple(
        Point(key(name), value, round(1000 * event.time), step)
        for (name, _), (event, value, step) in kept.items()
    )


def began_ms(log: Path, known: int = 0) -> int | None:
    """When the first event of a log happened, in Unix milliseconds; None where there is none yet.

    Args:
        log: `events.jsonl`.
        known: what it was before, if it is known: a log that has lost its beginning since began then.
    """
    if not log.exists():
        return None
    first = next(_events(log, 0), None)
    if known and (first is None or _goes_on(first[0])):
        return known
    return None if first is None else round(1000 * first[0].time)


def _goes_on(first: Event) -> bool:
    """Whether something must have come before the event that a log begins with."""
    if isinstance(first, JobStarted):
        return first.iteration > 0
    # which a job can also do before it has started to train
    return not isinstance(first, JobFailed)
