"""Records -> arms: what is compared with what, over which seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kdlab.jobs.plan import Plan
from kdlab.jobs.result import JobResult
from kdlab.jobs.status import JobStatus


@dataclass(frozen=True)
class Arm:
    """The jobs of one arm over its seeds: a row of a table, a line of a plot.

    Args:
        name: as people read it, "rm+pfi", "rm+pfi [micro-batch 2]", "teacher".
        distils: whether it has methods.
        inherits: whether its students start from the teacher's neck and head.
        records: one a seed, in the plan's order.
        planned: how many seeds the arm has in all; more than `records` where some are another row's.
        micro_batch: images of a forward pass; 0 where batches ran whole, or all are pooled.
    """

    name: str
    distils: bool
    inherits: bool
    records: tuple[JobStatus, ...]
    planned: int
    micro_batch: int = 0

    @property
    def plain(self) -> bool:
        """Whether the arm trains the student alone, and so is a baseline."""
        return not (self.distils or self.inherits)

    @property
    def whole(self) -> bool:
        """Whether no seed is missing."""
        return len(self.results) == self.planned

    @cached_property
    def results(self) -> dict[int, JobResult]:
        """Results by seed."""
        return {record.job.seed: record.result for record in self.records if record.result is not None}

    @cached_property
    def _metrics(self) -> dict[str, dict[int, float]]:
        """All metrics after the last epoch, by name and seed."""
        found: dict[str, dict[int, float]] = {}
        for seed, result in self.results.items():
            for name, value in result.last.metrics.items():
                found.setdefault(name, {})[seed] = value
        return found

    def by_seed(self, metric: str) -> Mapping[int, float]:
        """A metric after the last epoch, of each result that has it."""
        return self._metrics.get(metric, {})

    def over_seeds(self, metric: str) -> list[float]:
        """The same values without their seeds."""
        return list(self.by_seed(metric).values())


def arms_of(plan: Plan, records: Sequence[JobStatus], pool: bool) -> tuple[Arm | None, list[Arm]]:
    """The teacher's row, if the plan has one, and the arms in the order of the recipe.

    Unless they are to be pooled, the seeds of an arm that ran in micro-batches have a row of their own.
    """
    rows: dict[str, dict[int, list[JobStatus]]] = {name: {} for name in plan.recipe["arms"]}
    for record in records:
        if record.job.is_student and record.job.arm in rows:
            images = 0 if pool else record.job.spec.micro_batch or 0
            rows[record.job.arm].setdefault(images, []).append(record)
    inherits = plan.recipe.get("inherits", ())
    arms = []
    for name, methods in plan.recipe["arms"].items():
        planned = sum(map(len, rows[name].values()))
        for images, part in sorted(rows[name].items()) or [(0, [])]:
            label = f"{name} [micro-batch {images}]" if images else name
            arms.append(Arm(label, bool(methods), name in inherits, tuple(part), planned, images))
    teachers = tuple(record for record in records if record.job.is_teacher)
    return Arm("teacher", False, False, teachers, len(teachers)) if teachers else None, arms
