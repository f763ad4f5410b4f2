"""Backfill scheduling: which jobs start next, and when all will have ended.

The longest chain of jobs goes first. The first job that does not fit now has its devices reserved for the
moment when they will be free; later ones are backfilled where that moment stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from kdlab.devices import Machine
from kdlab.jobs.job import Job

_TINY = 1e-9


@dataclass(frozen=True)
class Request:
    """Devices and seconds that a job asks for.

    Args:
        id: of the job.
        size: devices that it holds; a part of one where several share it.
        cost_s: seconds that it takes; of a running one, those that are left.
        parents: ids of what must end before it starts.
    """

    id: str
    size: float
    cost_s: float
    parents: tuple[str, ...] = ()


def size_of(job: Job, machine: Machine) -> float:
    """Devices that a job holds of a machine's; one that wants more cores than there are takes all."""
    wants = job.resources
    if wants.gpus:
        return wants.gpus / wants.share
    return min(wants.cores, len(machine.cores))


def capacity_of(machine: Machine) -> float:
    """Devices that a machine has: its GPUs, or its cores where it has none."""
    return float(len(machine.gpus) or len(machine.cores))


def urgency(requests: Sequence[Request]) -> dict[str, float]:
    """Seconds from the start of each job to the end of the longest chain that hangs on it.

    Args:
        requests: parents before children; a parent that is not among them is done.

    Raises:
        ValueError: a parent comes after what needs it.
    """
    below: dict[str, float] = defaultdict(float)
    found: dict[str, float] = {}
    for request in reversed(requests):
        found[request.id] = below[request.id] + request.cost_s
        for parent in request.parents:
            if parent in found:
                raise ValueError(f"{parent} comes after {request.id}, which needs it")
            below[parent] = max(below[parent], found[request.id])
    return found


def startable(ready: Sequence[Request], running: Sequence[Request], capacity: float) -> list[Request]:
    """Those of `ready` that should start now.

    Args:
        ready: what could start, the most urgent first.
        running: what holds devices already.
        capacity: devices in all.
    """
    free = capacity - sum(request.size for request in running)
    chosen: list[Request] = []
    # once a request waits: seconds until it fits, and the devices that it will leave free then
    reserved_s, spare = float("inf"), 0.0
    for request in ready:
        in_time = request.cost_s <= reserved_s + _TINY
        if request.size <= free + _TINY and (in_time or request.size <= spare + _TINY):
            chosen.append(request)
            free -= request.size
            if not in_time:
                spare -= request.size
        elif reserved_s == float("inf"):
            reserved_s, spare = 0.0, free - request.size
            for other in sorted([*running, *chosen], key=lambda other: other.cost_s):
                if spare > -_TINY:
                    break
                spare += other.size
                reserved_s = max(reserved_s, other.cost_s)
    return chosen


def makespan_s(
    requests: Sequence[Request],
    capacity: float,
    running: Mapping[str, float] = MappingProxyType({}),
    at_once: int | None = None,
) -> float:
    """Seconds until all jobs are done if each takes what is expected.

    Args:
        requests: parents before children; a parent that is not among them is done.
        capacity: devices in all; a job alone always fits.
        running: seconds that those which run already still take.
        at_once: how many may run side by side; None for what `capacity` allows.
    """
    order = urgency(requests)
    left = {request.id: request for request in sorted(requests, key=lambda request: -order[request.id])}
    capacity = max([capacity, *(request.size for request in requests)])
    most = len(requests) if at_once is None else at_once
    ends = dict(running)
    now = 0.0
    while left:
        waiting = [request for request in left.values() if request.id not in ends]
        ready = [request for request in waiting if left.keys().isdisjoint(request.parents)]
        held = [Request(job, left[job].size, end - now) for job, end in ends.items()]
        for request in startable(ready, held, capacity)[: max(0, most - len(ends))]:
            ends[request.id] = now + request.cost_s
        now = min(ends.values())
        for done in [job for job, end in ends.items() if end <= now + _TINY]:
            del ends[done], left[done]
    return now
