"""Which jobs start next, so that wide ones do not starve and the plan ends soon: arithmetic alone.

The longest chain of jobs goes first. What does not fit now has its devices reserved for the moment when
they will be free; what comes after it in the line may start meanwhile only where that moment stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdlab.devices import Machine
from kdlab.jobs.job import Job

_TINY = 1e-9


@dataclass(frozen=True)
class Piece:
    """A job as far as packing sees it.

    Args:
        id: of the job.
        size: devices that it holds; a part of one where several share it.
        cost_s: seconds that it takes.
        parents: ids of what must end before it starts.
    """

    id: str
    size: float
    cost_s: float
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """Devices in use: how many, and when they are expected to be free (in the seconds of `now`)."""

    size: float
    until: float


def size_of(job: Job, machine: Machine) -> float:
    """Devices that a job holds of a machine's; one that wants more cores than there are takes all."""
    wants = job.resources
    if wants.gpus:
        return wants.gpus / wants.share
    return min(wants.cores, len(machine.cores))


def capacity_of(machine: Machine) -> float:
    """Devices that a machine has: its GPUs, or its cores where it has none."""
    return float(len(machine.gpus) or len(machine.cores))


def urgency(pieces: Sequence[Piece]) -> dict[str, float]:
    """Seconds from the start of each piece to the end of the longest chain that hangs on it.

    Args:
        pieces: parents before children; a parent that is not among them is done.

    Raises:
        ValueError: a parent comes after what needs it.
    """
    below: dict[str, float] = defaultdict(float)
    found: dict[str, float] = {}
    for piece in reversed(pieces):
        found[piece.id] = below[piece.id] + piece.cost_s
        for parent in piece.parents:
            if parent in found:
                raise ValueError(f"{parent} comes after {piece.id}, which needs it")
            below[parent] = max(below[parent], found[piece.id])
    return found


def startable(ready: Sequence[Piece], held: Sequence[Held], capacity: float, now: float) -> list[Piece]:
    """Those of `ready` that should start now.

    Args:
        ready: what could start, the most urgent first.
        held: what is in use.
        capacity: devices in all.
        now: the time, in seconds.
    """
    free, held = capacity - sum(part.size for part in held), list(held)
    reserved: Held | None = None
    chosen = []
    for piece in ready:
        if free < _TINY:
            break
        ends = now + piece.cost_s
        in_time = reserved is None or ends <= reserved.until + _TINY
        if piece.size <= free + _TINY and (in_time or (reserved and piece.size <= reserved.size + _TINY)):
            chosen.append(piece)
            free -= piece.size
            held.append(Held(piece.size, ends))
            if reserved and not in_time:
                reserved = Held(reserved.size - piece.size, reserved.until)
        elif reserved is None:
            reserved = _reservation(piece, held, free, now)
    return chosen


def _reservation(piece: Piece, held: Sequence[Held], free: float, now: float) -> Held:
    """When a piece that must wait will fit, and how many devices are left beside it then."""
    until = now
    for part in sorted(held, key=lambda part: part.until):
        free += part.size
        until = max(until, part.until)
        if free >= piece.size - _TINY:
            break
    return Held(free - piece.size, until)


def makespan_s(
    pieces: Sequence[Piece],
    capacity: float,
    running: Mapping[str, float] | None = None,
    at_once: int | None = None,
) -> float:
    """Seconds until all pieces are done if each takes what is expected.

    Args:
        pieces: parents before children; a parent that is not among them is done.
        capacity: devices in all; a piece alone always fits.
        running: seconds that those which run already still take.
        at_once: how many may run side by side; None for what `capacity` allows.
    """
    order = urgency(pieces)
    left = {piece.id: piece for piece in sorted(pieces, key=lambda piece: -order[piece.id])}
    capacity = max([capacity, *(piece.size for piece in pieces)])
    ends = dict(running or {})
    now = 0.0
    while left:
        ready = [
            piece for piece in left.values() if piece.id not in ends and left.keys().isdisjoint(piece.parents)
        ]
        held = [Held(left[job].size, end) for job, end in ends.items()]
        room = None if at_once is None else max(0, at_once - len(ends))
        ends |= {piece.id: now + piece.cost_s for piece in startable(ready, held, capacity, now)[:room]}
        now = min(ends.values())
        for done in [job for job, end in ends.items() if end <= now + _TINY]:
            del ends[done], left[done]
    return now
