"""Finished jobs as evidence for new ones: the nearest of them, and what a job will cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from statistics import fmean
from typing import Any

from kdlab.jobs.job import Job
from kdlab.jobs.spec import Spec, plain
from kdlab.jobs.store import PastJob

Settings = frozenset[tuple[str, str]]


class History:
    """What finished jobs tell of new ones.

    Args:
        past: the finished jobs, by id.
    """

    def __init__(self, past: Mapping[str, PastJob]) -> None:
        self._same: dict[str, dict[Settings, list[PastJob]]] = defaultdict(lambda: defaultdict(list))
        self._paces: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for old in past.values():
            self._same[old.job.kind][but_seed(old.job.spec)].append(old)
            if work := _work(old.job):
                self._paces[_place(old.job)].append(old.result.wall_s / work)
        self._keys = {
            settings: (_keys(settings), min(old.job.id for old in group))
            for groups in self._same.values()
            for settings, group in groups.items()
        }
        self._nearest = cache(self._nearest_group)

    def same(self, job: Job) -> list[PastJob]:
        """The job under other seeds."""
        return self._same[job.kind].get(but_seed(job.spec), [])

    def why_new(self, job: Job) -> str:
        """The first key in which the job differs from the finished one that is most like it."""
        if not self._same[job.kind]:
            return "new"
        group = self._nearest(job.kind, but_seed(job.spec))
        nearest = min(group, key=lambda old: (old.job.seed != job.seed, old.job.id)).job
        mine, theirs = flat(plain(job.spec)), flat(plain(nearest.spec))
        differs = next((key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)), "its teacher")
        return f"new: {differs} differs from {nearest.id}"

    def cost(self, job: Job) -> tuple[float | None, str]:
        """Seconds, from the same job under other seeds, else by FLOPs from others on the same data."""
        if same := self.same(job):
            return fmean(old.result.wall_s for old in same), f"measured, n={len(same)}"
        if paces := self._paces.get(_place(job)):
            return fmean(paces) * _work(job), "estimated"
        return None, "unknown"

    def _nearest_group(self, kind: str, settings: Settings) -> list[PastJob]:
        """The finished jobs, alike but for their seed, that differ in the fewest settings."""
        keys, groups = _keys(settings), self._same[kind]

        def distance(other: Settings) -> tuple[int, str]:
            theirs, first = self._keys[other]
            return len(keys | theirs) - len(settings & other), first

        return groups[min(groups, key=distance)]


def _keys(settings: Settings) -> frozenset[str]:
    return frozenset(key for key, _ in settings)


def but_seed(spec: Spec) -> Settings:
    """The settings of a job that are not their default, without the seed, as pairs."""
    return frozenset((key, repr(value)) for key, value in flat(plain(spec)).items() if key != "seed")


def _place(job: Job) -> tuple[Any, ...]:
    """Jobs of which one tells what another costs: alike in kind, threads, data and unit of length."""
    return job.kind, job.spec.threads, job.spec.dataset.fingerprint, job.spec.length[1]


def _work(job: Job) -> float:
    """FLOPs of a job in all; a training step is about three forwards, a teacher's is one."""
    return float((3 * job.inputs.flops + job.inputs.flops_teacher) * job.spec.length[0])


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in flat(part, f"{prefix}.{name}" if prefix else name).items()
    }
