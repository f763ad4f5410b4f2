"""The finished jobs as a plan asks about them, sorted once, so that a thousand new ones ask in no time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from kdlab.jobs.job import Job
from kdlab.orchestration.facts import PastJob


class History:
    """What finished jobs tell of new ones.

    Args:
        past: the finished jobs, by id.
    """

    def __init__(self, past: Mapping[str, PastJob]) -> None:
        self._bits: dict[str, int] = {}
        self._twins: dict[str, list[PastJob]] = defaultdict(list)
        self._near: dict[str, list[PastJob]] = defaultdict(list)
        self._paces: dict[str, float] = {}
        self._masks: dict[str, list[tuple[int, int, PastJob]]] = defaultdict(list)
        for old in past.values():
            job = old.job
            self._twins[_but_seed(job)].append(old)
            self._near[_place(job)].append(old)
            self._masks[job.kind].append((*self._mask(_flat(job.settings)), old))

    def same(self, job: Job) -> list[PastJob]:
        """The job under other seeds."""
        return self._twins.get(_but_seed(job), [])

    def why_new(self, job: Job) -> str:
        """The first key in which the job differs from the finished one that is most like it."""
        known = self._masks.get(job.kind)
        if not known:
            return "new"
        mine = _flat(job.settings)
        names, values = self._mask(mine)
        common = [
            # keys of either, less those that agree
            ((names | others).bit_count() - (values & theirs).bit_count(), old.job.id, place)
            for place, (others, theirs, old) in enumerate(known)
        ]
        _, nearest, place = min(common)
        theirs = _flat(known[place][2].job.settings)
        differs = next((key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)), "its teacher")
        return f"new: {differs} differs from {nearest}"

    def cost(self, job: Job) -> tuple[float | None, str]:
        """Seconds, from the same job under other seeds, else by FLOPs from others on the same data."""
        if same := self.same(job):
            return mean(old.result.wall_s for old in same), f"measured, n={len(same)}"
        if (place := _place(job)) not in self._near:
            return None, "unknown"
        if place not in self._paces:
            self._paces[place] = mean(old.result.wall_s / _work(old.job) for old in self._near[place])
        return self._paces[place] * _work(job), "estimated"

    def _mask(self, flat: Mapping[str, Any]) -> tuple[int, int]:
        """The keys and the pairs of key and value as sets of bits; None is as good as absent."""
        given = {key: value for key, value in flat.items() if value is not None}
        return self._set(given), self._set(f"{key} {value!r}" for key, value in given.items())

    def _set(self, names: Iterable[str]) -> int:
        return sum(1 << self._bits.setdefault(name, len(self._bits)) for name in names)


def _but_seed(job: Job) -> str:
    return json.dumps([job.kind, {**job.settings, "seed": None}], sort_keys=True)


def _place(job: Job) -> str:
    """Jobs of which one tells what another costs: of a kind, on as many threads, on the same data."""
    return f"{job.kind} {job.settings['threads']} {job.settings['dataset']['fingerprint']}"


def _work(job: Job) -> float:
    """FLOPs of one image over all epochs: a training step is about three forwards, a teacher's is one."""
    flops = job.inputs["flops"]
    schedule = job.settings["schedule"]
    # jobs of a kind are compared, and those without epochs count iterations
    length = schedule.get("epochs") or schedule.get("iterations") or 1
    return float((3 * flops["student"] + flops["teacher"]) * length)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in _flat(part, f"{prefix}.{name}" if prefix else name).items()
    }
