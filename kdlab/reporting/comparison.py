"""Arms -> gains: what each arm is worth over the baseline, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, median
from typing import TYPE_CHECKING

from kdlab.jobs import status, store
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.resampled import Resampled
from kdlab.jobs.result import Curves, JobResult
from kdlab.jobs.status import JobStatus
from kdlab.reporting.arms import Arm, arms_of
from kdlab.reporting.statistics import (
    SEEDS_FOR_A_TEST,
    Crossed,
    Interval,
    holm,
    paired_t,
    percentile_interval,
)

if TYPE_CHECKING:
    from kdlab.reporting.statistics import Floats

SIGNIFICANT = 0.05
"""Below this p, after Holm's correction, a test supports a gain or a loss."""
_ENOUGH = 0.99
"""Share of resamples that must hold an object."""


@dataclass(frozen=True)
class Gain:
    """An arm against the baseline: AP after the last epoch, in points, paired by seed.

    Args:
        seeds: those that both have.
        differences: arm minus baseline, one a seed.
        like: whether both ran whole, or in the same micro-batches.
        p: of the paired t test, two-sided; None below three seeds and between unlike batches.
        p_holm: the same after Holm's correction over all comparisons of the table.
        interval: of the mean, for other seeds and images; None below three seeds or without `Resampled`.
        other_images: for these weights on other images; None without `Resampled`.
        gap_closed: the mean over (teacher - baseline), in percent; None where the teacher is not above.
        gap_interval: of `gap_closed`, for other seeds and images and this teacher.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    like: bool = True
    p: float | None = None
    p_holm: float | None = None
    interval: Interval | None = None
    other_images: Interval | None = None
    gap_closed: float | None = None
    gap_interval: Interval | None = None

    @property
    def mean(self) -> float:
        """Of the differences."""
        return fmean(self.differences)

    @property
    def supported(self) -> bool:
        """Whether the test says that the arm differs from the baseline."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """All that tables and plots of one plan are made of.

    Args:
        plan: which.
        records: its jobs as they are.
        teacher: None where the plan has none.
        arms: in the order of the recipe, the baseline among them.
        baseline: the first arm without methods.
        gains: by the arm's name, of those that share a finished seed with the baseline.
        images: how many images were resampled; 0 where none were.
        unsampled: labels of finished jobs that left no AP on resampled images.
        unlike: whether models were measured on other images or objects, so that some cannot be paired there.
        curves: learning curves by job, where they were asked for.
    """

    plan: Plan
    records: Sequence[JobStatus]
    teacher: Arm | None
    arms: Sequence[Arm]
    baseline: Arm | None
    gains: Mapping[str, Gain] = field(default_factory=dict)
    images: int = 0
    unsampled: tuple[str, ...] = ()
    unlike: bool = False
    curves: Mapping[str, Curves] = field(default_factory=dict)

    def latency_ms(self, arm: Arm) -> float | None:
        """Median time of one image, in milliseconds; None where no job took it.

        Of an arm that of all students: they are one network, so the differences are noise.
        """
        return _latency_ms([arm]) if arm is self.teacher else self._latency_of_students_ms

    @cached_property
    def _latency_of_students_ms(self) -> float | None:
        return _latency_ms(self.arms)


def _latency_ms(arms: Sequence[Arm]) -> float | None:
    timings = [result.timing for arm in arms for result in arm.results.values()]
    found = [1000 * timing["latency_s"] for timing in timings if "latency_s" in timing]
    return median(found) if found else None


def of_plan(plan: Plan, runs: Runs, *, pool: bool = False, curves: bool = False) -> Comparison:
    """Compare the arms of a plan by what its jobs left in `runs`.

    Args:
        plan: which.
        runs: where the jobs are.
        pool: average jobs that ran in micro-batches with those that ran whole.
        curves: with the learning curves of each job, which plots show.
    """
    ids = [planned.job.id for planned in plan.jobs]
    records = status.of_plan(plan, runs, store.results(runs, ids))
    done = [runs.job(record.job.id) for record in records if record.result is not None]
    read = {paths.folder.name: Resampled.read(paths.resampled) for paths in done}
    resampled = {job: one for job, one in read.items() if one is not None}
    compared = compare(plan, records, resampled, pool=pool)
    if not curves:
        return compared
    return replace(compared, curves={paths.folder.name: Curves.read(paths) for paths in done})


def compare(
    plan: Plan,
    records: Sequence[JobStatus],
    resampled: Mapping[str, Resampled],
    *,
    pool: bool = False,
) -> Comparison:
    """Compare the arms of a plan.

    Args:
        plan: which.
        records: what became of its jobs.
        resampled: AP on resampled images, by job; jobs may be missing.
        pool: average jobs that ran in micro-batches with those that ran whole.
    """
    teacher, arms = arms_of(plan, records, pool)
    baseline = next((arm for arm in arms if arm.plain), None)
    if baseline is None:
        return Comparison(plan, records, teacher, arms, None)
    plain = [arm for arm in arms if arm.plain]
    pairs = [_Pair(arm, _rival(arm, plain), teacher, resampled) for arm in arms if not arm.plain]
    gains = {pair.arm.name: pair.gain() for pair in pairs if pair.seeds}
    corrected = holm([gain.p for gain in gains.values()])
    gains = {name: replace(gain, p_holm=p) for (name, gain), p in zip(gains.items(), corrected, strict=True)}
    images = max((one.images for one in resampled.values()), default=0)
    # some kinds of job measure no detector
    done = [record.job for record in records if record.result is not None and record.result.metrics]
    unsampled = tuple(job.label for job in done if job.id not in resampled)
    unlike = len({one.truth for one in resampled.values()}) > 1
    return Comparison(plan, records, teacher, arms, baseline, gains, images, unsampled, unlike)


def _rival(arm: Arm, plain: Sequence[Arm]) -> Arm:
    """The baseline that ran in batches of the same size where there is one, else the first."""
    return next((one for one in plain if one.micro_batch == arm.micro_batch), plain[0])


class _Pair:
    """An arm and its baseline over the seeds that both have."""

    def __init__(
        self, arm: Arm, baseline: Arm, teacher: Arm | None, resampled: Mapping[str, Resampled]
    ) -> None:
        self.arm, self._resampled = arm, resampled
        self._like = arm.micro_batch == baseline.micro_batch
        own, plain = _with_ap(arm), _with_ap(baseline)
        self.seeds = sorted(own.keys() & plain.keys())
        self._own = [own[seed] for seed in self.seeds]
        self._plain = [plain[seed] for seed in self.seeds]
        self._teachers = list(_with_ap(teacher).values()) if teacher else []

    def gain(self) -> Gain:
        """The mean over the common seeds and all that is known of it."""
        import numpy as np

        pairs = zip(self._own, self._plain, strict=True)
        differences = tuple(own.metrics["AP"] - plain.metrics["AP"] for own, plain in pairs)
        p = paired_t(differences) if self._like else None
        gain = Gain(tuple(self.seeds), differences, self._like, p, gap_closed=self._closed(differences))
        together = self._on_images(*self._own, *self._plain)
        if together is None:
            return gain
        own, plain = np.split(together, 2)
        gain = replace(gain, other_images=percentile_interval((own - plain).mean(0)))
        if len(self.seeds) < SEEDS_FOR_A_TEST:
            return gain
        crossed = Crossed.of(np.array([differences]), np.array([own - plain]), self._images)
        gap = self._gap_interval(np.array(differences), own, plain) if self._teachers else None
        return replace(gain, interval=crossed.interval(1.0), gap_interval=gap)

    def _closed(self, differences: Sequence[float]) -> float | None:
        gap = fmean(self._gaps()) if self._teachers else 0.0
        return 100 * fmean(differences) / gap if gap > 0 else None

    def _gaps(self) -> list[float]:
        """Teacher minus baseline, one a seed."""
        above = fmean(teacher.metrics["AP"] for teacher in self._teachers)
        return [above - plain.metrics["AP"] for plain in self._plain]

    def _gap_interval(self, differences: Floats, own: Floats, plain: Floats) -> Interval | None:
        """Of `gap_closed`; `own` and `plain` are (S, R) on resampled images."""
        import numpy as np

        above = self._on_images(*self._teachers, self._own[0])
        if above is None or fmean(self._gaps()) <= 0:
            return None
        values = np.array([differences, self._gaps()])
        resampled = np.array([own - plain, above[:-1].mean(0) - plain])
        ratio = Crossed.of(values, resampled, self._images).ratio_interval()
        return ratio and Interval(100 * ratio.low, 100 * ratio.high)

    @property
    def _images(self) -> int:
        return self._resampled[self._own[0].id].images

    def _on_images(self, *results: JobResult) -> Floats | None:
        """(results, R) AP on resampled images; None where some are missing or were measured on others.

        A resample without any object has no AP. A few are left out; where they are many, so few images hold
        objects that resampling says nothing.
        """
        import numpy as np

        found = [self._resampled[result.id] for result in results if result.id in self._resampled]
        if len(found) < len(results) or len({one.truth for one in found}) != 1:
            return None
        together = np.array([one.ap for one in found])
        known = np.isfinite(together).all(0)
        return together[:, known] if known.mean() >= _ENOUGH else None


def _with_ap(arm: Arm) -> dict[int, JobResult]:
    return {seed: result for seed, result in arm.results.items() if "AP" in result.metrics}
