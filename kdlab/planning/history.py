"""The finished jobs as a plan asks about them, sorted once, so that a thousand new ones ask in no time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from kdlab.jobs.job import Job
from kdlab.jobs.store import PastJob


@dataclass(frozen=True)
class _Twins:
    """Finished jobs that differ in their seed alone; keys, and pairs of key and value, as sets of bits."""

    keys: int
    pairs: int
    jobs: list[PastJob]

    @cached_property
    def _ids(self) -> dict[int, str]:
        ids: dict[int, str] = {}
        for old in self.jobs:
            ids[old.job.seed] = min(old.job.id, ids.get(old.job.seed, old.job.id))
        return ids

    @cached_property
    def _first(self) -> str:
        return min(self._ids.values())

    def nearest(self, seed: int) -> tuple[int, str]:
        """1 unless one has the seed, and the id of that one or else of the first."""
        return (0, self._ids[seed]) if seed in self._ids else (1, self._first)


class History:
    """What finished jobs tell of new ones.

    Args:
        past: the finished jobs, by id.
    """

    def __init__(self, past: Mapping[str, PastJob]) -> None:
        self._past, self._bits = past, dict[str, int]()
        self._same: dict[str, list[PastJob]] = defaultdict(list)
        self._near: dict[str, list[PastJob]] = defaultdict(list)
        for old in past.values():
            self._same[_but_seed(old.job)].append(old)
            self._near[_place(old.job)].append(old)
        self._twins: dict[str, list[_Twins]] = defaultdict(list)
        for jobs in self._same.values():
            self._twins[jobs[0].job.kind].append(_Twins(*self._sets(jobs[0].job), jobs))
        self._distances: dict[str, list[int]] = {}
        self._paces: dict[str, float] = {}

    def same(self, job: Job) -> list[PastJob]:
        """The job under other seeds."""
        return self._same.get(_but_seed(job), [])

    def why_new(self, job: Job) -> str:
        """The first key in which the job differs from the finished one that is most like it."""
        twins = self._twins.get(job.kind)
        if not twins:
            return "new"
        found = []
        for distance, group in zip(self._distances_to(job, twins), twins, strict=True):
            other_seed, nearest = group.nearest(job.seed)
            found.append((distance + other_seed, nearest))
        _, nearest = min(found)
        mine, theirs = _flat(job.settings), _flat(self._past[nearest].job.settings)
        differs = next((key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)), "its teacher")
        return f"new: {differs} differs from {nearest}"

    def cost(self, job: Job) -> tuple[float | None, str]:
        """Seconds, from the same job under other seeds, else by FLOPs from others on the same data."""
        if same := self.same(job):
            return fmean(old.result.wall_s for old in same), f"measured, n={len(same)}"
        if (place := _place(job)) not in self._near:
            return None, "unknown"
        if place not in self._paces:
            self._paces[place] = fmean(old.result.wall_s / _work(old.job) for old in self._near[place])
        return self._paces[place] * _work(job), "estimated"

    def _distances_to(self, job: Job, twins: list[_Twins]) -> list[int]:
        """In how many keys but the seed the job differs from each group."""
        name = _but_seed(job)
        if name not in self._distances:
            keys, pairs = self._sets(job)
            self._distances[name] = [
                (keys | group.keys).bit_count() - (pairs & group.pairs).bit_count() for group in twins
            ]
        return self._distances[name]

    def _sets(self, job: Job) -> tuple[int, int]:
        """Keys, and pairs of key and value, of all settings but the seed; None is as good as absent."""
        given = {key: value for key, value in _flat(job.settings).items() if value is not None}
        given.pop("seed", None)
        return self._set(given), self._set(f"{key} {value!r}" for key, value in given.items())

    def _set(self, names: Iterable[str]) -> int:
        return sum(1 << self._bits.setdefault(name, len(self._bits)) for name in names)


def _but_seed(job: Job) -> str:
    return json.dumps([job.kind, {**job.settings, "seed": None}], sort_keys=True)


def _place(job: Job) -> str:
    """Jobs of which one tells what another costs: of a kind, on as many threads, on the same data."""
    return f"{job.kind} {job.settings['threads']} {job.settings['dataset']['fingerprint']}"


def _work(job: Job) -> float:
    """FLOPs of one image over all epochs, or of all images that the iterations see.

    A training step is about three forwards, a teacher's is one.
    """
    flops = job.inputs["flops"]
    schedule = job.settings["schedule"]
    # jobs of a kind are compared, so both ways of counting never meet
    length = schedule.get("epochs") or schedule.get("iterations", 0) * schedule.get("batch_size", 1) or 1
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
