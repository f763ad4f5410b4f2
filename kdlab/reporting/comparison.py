"""Arms -> gains: what each arm is worth over the baseline, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, median
from typing import TYPE_CHECKING, Self

from kdlab.jobs import status, store
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.resampled import Resampled
from kdlab.jobs.result import Curves, JobResult
from kdlab.jobs.status import JobStatus
from kdlab.reporting.arms import Arm, arms_of
from kdlab.reporting.statistics import SEEDS_FOR_A_TEST, Crossed, Interval, holm, percentile_interval

if TYPE_CHECKING:
    from kdlab.jobs.detections import Detections
    from kdlab.reporting.statistics import Floats
    from kdlab.reporting.tide import Agreement, Lost

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
        p: of the mean, two-sided, for other seeds and, where there is `Resampled`, images; below 0.05 exactly
            where `interval` excludes 0. None below three seeds, between unlike batches, and where all
            differences are alike.
        p_holm: the same after Holm's correction over all comparisons of the table.
        interval: of the mean, for what `p` is for; None where that is.
        other_images: for these weights on other images; None without `Resampled`.
        gap: teacher minus baseline over the same seeds; None without a teacher's AP.
        gap_noise: 95 % of it, over seeds and images or, below three seeds, images alone.
        gap_interval: of `gap_closed`, for other seeds and images and this teacher; None where `p` is.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    like: bool = True
    p: float | None = None
    p_holm: float | None = None
    interval: Interval | None = None
    other_images: Interval | None = None
    gap: float | None = None
    gap_noise: Interval | None = None
    gap_interval: Interval | None = None

    @classmethod
    def of(
        cls, arm: Arm, baseline: Arm, teacher: Arm | None, resampled: Mapping[str, Resampled]
    ) -> Self | None:
        """The gain of an arm; None where it shares no finished seed with the baseline."""
        import numpy as np

        aps, plain_aps = arm.by_seed("AP"), baseline.by_seed("AP")
        seeds = tuple(sorted(aps.keys() & plain_aps.keys()))
        if not seeds:
            return None
        differences = tuple(aps[seed] - plain_aps[seed] for seed in seeds)
        like = arm.micro_batch == baseline.micro_batch
        gain = cls(seeds, differences, like)
        teachers = [one for one in teacher.results.values() if "AP" in one.metrics] if teacher else []
        values = [differences]
        if teachers:
            above = fmean(one.metrics["AP"] for one in teachers)
            values.append(tuple(above - plain_aps[seed] for seed in seeds))
            gain = replace(gain, gap=fmean(values[1]))
        results = [one.results[seed] for one in (arm, baseline) for seed in seeds]
        together = _on_images(results, resampled)
        if together is None:
            return gain._sure(np.array(values))
        own, plain = np.split(together, 2)
        moved = [own - plain]
        together = _on_images([*teachers, results[0]], resampled) if teachers else None
        if together is not None:
            moved.append(together[:-1].mean(0) - plain)
        images = resampled[results[0].id].images
        if len(moved) == len(values):
            return gain._sure(np.array(values), np.array(moved), images)
        sure = gain._sure(np.array(values[:1]), np.array(moved), images)
        if all(one.id in resampled for one in teachers):
            # it was measured on other images
            return replace(sure, gap=None)
        alone = gain._sure(np.array(values))
        return replace(sure, gap_noise=alone.gap_noise, gap_interval=alone.gap_interval)

    def _sure(self, values: Floats, moved: Floats | None = None, images: int = 0) -> Self:
        """The same with its intervals and p.

        Args:
            values: (Q, S) of each seed the gain and, where Q is 2, the gap.
            moved: (Q, S, R) the same on resampled images, where they are known.
            images: how many there are.
        """
        gain = self
        if moved is not None:
            noise = [percentile_interval(one.mean(0)) for one in moved]
            gain = replace(gain, other_images=noise[0], gap_noise=noise[1] if len(noise) > 1 else None)
        if len(self.seeds) < SEEDS_FOR_A_TEST:
            return gain
        crossed = Crossed.of(values, moved, images)
        if len(values) > 1:
            gain = replace(gain, gap_noise=crossed.interval(0.0, 1.0))
        alone = (1.0, 0.0)[: len(values)]
        if not self.like or (p := crossed.p(*alone)) is None:
            return gain
        gain = replace(gain, p=p, interval=crossed.interval(*alone))
        ratio = crossed.ratio_interval() if gain.gap_closed is not None and len(values) > 1 else None
        return replace(gain, gap_interval=ratio and Interval(100 * ratio.low, 100 * ratio.high))

    @property
    def gap_closed(self) -> float | None:
        """The mean over `gap`, in percent; None where the teacher is above by no more than noise."""
        if self.gap is None or self.gap <= 0 or self.gap_in_noise:
            return None
        return 100 * self.mean / self.gap

    @property
    def gap_in_noise(self) -> bool:
        """Whether the gap may as well be none, so that a share of it would be any number."""
        return self.gap_noise is not None and self.gap_noise.low <= 0

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
        tests: how many arms Holm's correction counts: all that the plan compares with the baseline.
        images: how many images were resampled; 0 where none were.
        unsampled: labels of finished jobs that left no AP on resampled images.
        unlike: whether models were measured on other images or objects, so that some cannot be paired there.
        curves: learning curves by job, where they were asked for.
        diagnosed: by student the result of the job that compared it with the plan's teacher, where one has.
        benched: by student the result of the job that timed its steps on its machine, where one has.
        lost: what each model loses, by job, where errors were asked for and its detections are known.
        outdated: whether the recipe is not here as it was, so that its command makes another plan.
    """

    plan: Plan
    records: Sequence[JobStatus]
    teacher: Arm | None
    arms: Sequence[Arm]
    baseline: Arm | None
    gains: Mapping[str, Gain] = field(default_factory=dict)
    tests: int = 0
    images: int = 0
    unsampled: tuple[str, ...] = ()
    unlike: bool = False
    curves: Mapping[str, Curves] = field(default_factory=dict)
    diagnosed: Mapping[str, JobResult] = field(default_factory=dict)
    benched: Mapping[str, JobResult] = field(default_factory=dict)
    lost: Mapping[str, Lost] = field(default_factory=dict)
    outdated: bool = False

    @property
    def rows(self) -> list[Arm]:
        """The teacher, if there is one, then all arms."""
        return [self.teacher, *self.arms] if self.teacher else [*self.arms]

    @property
    def title(self) -> str:
        """ "RetinaNet R101 -> R50, n=3", "n=2 to 3" where arms differ."""
        recipe = self.plan.recipe
        counts = sorted({len(arm.results) for arm in self.arms} or {0})
        n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        return f"{recipe.get('title') or recipe['name']}, n={n}"

    def gain(self, arm: Arm) -> Gain | None:
        """Over the baseline; None for the teacher and the baseline itself."""
        return None if arm is self.teacher else self.gains.get(arm.name)

    def can_gain(self, arm: Arm) -> bool:
        """Whether an arm can have a gain: it is no baseline, and has results."""
        return bool(self.baseline and arm.results and not arm.plain)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the models' labels."""
        return self.plan.jobs[0].job.inputs.dataset.classes

    def rival(self, arm: Arm) -> Arm | None:
        """The baseline that an arm is compared with, in batches of the same size where there is one."""
        return _rival([one for one in self.arms if one.plain], arm)

    def lost_of(self, arm: Arm) -> dict[int, Lost]:
        """What an arm loses, by seed, of those whose detections are known."""
        return {seed: self.lost[one.id] for seed, one in arm.results.items() if one.id in self.lost}

    def agreements(self, arm: Arm) -> dict[int, Agreement]:
        """How far an arm finds what the teacher finds, by seed; none without a teacher's detections."""
        from kdlab.reporting.tide import Agreement

        if self.teacher is None or arm is self.teacher or not (known := self.lost_of(self.teacher)):
            return {}
        teacher = next(iter(known.values()))
        told = {seed: Agreement.of(one, teacher) for seed, one in self.lost_of(arm).items()}
        return {seed: one for seed, one in told.items() if one is not None}

    def latency_ms(self, arm: Arm) -> float | None:
        """Median time of one image, in milliseconds; None where no job took it, or the arm has no result.

        Of an arm that of all students: they are one network, so the differences are noise.
        """
        if not arm.results:
            return None
        found = self._latencies_s[arm is self.teacher]
        return 1000 * median(found) if found else None

    @cached_property
    def latencies_apart(self) -> bool:
        """Whether the latencies of teacher and students come from different jobs, so at different times."""
        return not any("teacher_latency_s" in timing for timing in _timings(self.arms))

    @cached_property
    def _latencies_s(self) -> tuple[list[float], list[float]]:
        """Of the students and of the teacher, from the jobs that measured both in turns if there are any."""
        ours = _timings(self.arms)
        theirs, key = _timings([self.teacher] if self.teacher else []), "latency_s"
        if not self.latencies_apart:
            ours = theirs = [timing for timing in ours if "teacher_latency_s" in timing]
            key = "teacher_latency_s"
        students = [timing["latency_s"] for timing in ours if "latency_s" in timing]
        return students, [timing[key] for timing in theirs if key in timing]


def _timings(arms: Sequence[Arm]) -> list[dict[str, float]]:
    return [result.timing for arm in arms for result in arm.results.values()]


_ALIKE = ("device", "torch", "mmdet")
"""What a job and the measuring of its steps must have in common."""


def of_plan(plan: Plan, runs: Runs, *, pool: bool = False, curves: bool = False) -> Comparison:
    """Compare the arms of a plan by what its jobs left in `runs`.

    `pool` averages jobs that ran in micro-batches with those that ran whole; `curves` adds learning curves,
    which plots show.
    """
    records = status.of_plan(plan, runs)
    done = {record.job.id: runs.job(record.job.id) for record in records if record.result is not None}
    read = {job: Resampled.read(paths.resampled) for job, paths in done.items()}
    resampled = {job: one for job, one in read.items() if one is not None}
    compared = compare(plan, records, resampled, pool=pool)
    students = [record.job.id for record in records if record.job.is_student]
    teachers = [record.job.id for record in records if record.job.is_teacher]
    # a job over several GPUs exchanges gradients too, which a bench of one does not
    made = {
        record.job.id: record.result.environment
        for record in records
        if record.result is not None and record.job.spec.ranks == 1
    }
    benched = {
        student: result
        for student, result in store.benched(runs, students).items()
        if student in made and all(made[student].get(name) == result.environment.get(name) for name in _ALIKE)
    }
    compared = replace(compared, diagnosed=store.diagnosed(runs, students, teachers), benched=benched)
    if not curves:
        return compared
    return replace(compared, curves={job: Curves.read(paths) for job, paths in done.items()})


def with_errors(compared: Comparison, detections: Callable[[Job], Detections | None]) -> Comparison:
    """The same with what each finished model of its arms loses.

    Args:
        compared: what to add to.
        detections: of a finished job; None where they cannot be had, which leaves the job out.
    """
    from kdlab.reporting import tide

    done = [record for arm in compared.rows for record in arm.records if record.result is not None]
    found = {record.job.id: detections(record.job) for record in done}
    classes = len(compared.classes)
    known = {job: tide.lost(one, classes) for job, one in found.items() if one is not None}
    return replace(compared, lost=known)


def _rival(plain: Sequence[Arm], arm: Arm) -> Arm | None:
    """Of several baselines the one that ran in batches of an arm's size, else the first."""
    return next((one for one in plain if one.micro_batch == arm.micro_batch), next(iter(plain), None))


def compare(
    plan: Plan, records: Sequence[JobStatus], resampled: Mapping[str, Resampled], *, pool: bool = False
) -> Comparison:
    """The same by what is known of the jobs; some may lack their AP on resampled images."""
    teacher, arms = arms_of(plan, records, pool)
    plain = [arm for arm in arms if arm.plain]
    if not plain:
        return Comparison(plan, records, teacher, arms, None)
    gains: dict[str, Gain] = {}
    for arm in arms:
        rival = _rival(plain, arm)
        if rival and not arm.plain and (gain := Gain.of(arm, rival, teacher, resampled)):
            gains[arm.name] = gain
    # an arm that has yet to finish will be tested too, unlike one that ran in other batches
    tested = [arm.name for arm in arms if not arm.plain and (arm.name not in gains or gains[arm.name].like)]
    corrected = holm([gains[name].p if name in gains else None for name in tested])
    for name, p in zip(tested, corrected, strict=True):
        if p is not None:
            gains[name] = replace(gains[name], p_holm=p)
    images = max((one.images for one in resampled.values()), default=0)
    # some kinds of job measure no detector
    done = [record.job for record in records if record.result is not None and record.result.metrics]
    unsampled = tuple(job.label for job in done if job.id not in resampled)
    unlike = len({one.truth for one in resampled.values()}) > 1
    return Comparison(plan, records, teacher, arms, plain[0], gains, len(tested), images, unsampled, unlike)


def _on_images(results: Sequence[JobResult], resampled: Mapping[str, Resampled]) -> Floats | None:
    """(results, R) AP on resampled images; None where some are missing or were measured on others.

    A resample without any object has no AP. A few are left out; where they are many, so few images hold
    objects that resampling says nothing.
    """
    import numpy as np

    found = [resampled[result.id] for result in results if result.id in resampled]
    if len(found) < len(results) or len({one.truth for one in found}) != 1:
        return None
    together = np.array([one.ap for one in found])
    known = np.isfinite(together).all(0)
    if known.all():
        return together
    return together[:, known] if known.mean() >= _ENOUGH else None
