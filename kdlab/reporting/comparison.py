"""Arms -> gains: what each arm is worth over the baseline, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdlab.reporting.arms import Arm
from kdlab.reporting.records import Record


@dataclass(frozen=True)
class Interval:
    """Where a number lies with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """An arm against the baseline: AP after the last epoch, in points, paired by seed.

    Args:
        seeds: those that both have.
        mean: arm minus baseline over these seeds.
        deviation: of the seeds' differences; None for a single seed.
        p: of the paired t test, two-sided; None below three seeds.
        p_holm: the same after Holm's correction over all comparisons of the table.
        interval: for other seeds and other images; None below three seeds or without the images' matches.
        other_images: for these weights on other images; None without the images' matches.
        gap_closed: gain over (teacher - baseline), in percent; None where the teacher is not above.
        gap_interval: of `gap_closed`, for other seeds and images and the same teacher.
    """

    seeds: tuple[int, ...]
    mean: float
    deviation: float | None = None
    p: float | None = None
    p_holm: float | None = None
    interval: Interval | None = None
    other_images: Interval | None = None
    gap_closed: float | None = None
    gap_interval: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """All that tables and plots of one plan are made of.

    Args:
        plan: content of the plan's file.
        records: its jobs.
        teacher: None where the plan has none.
        arms: in the order of the recipe, the baseline among them.
        baseline: the first arm without methods.
        gains: by the arm's name, of those that share a finished seed with the baseline.
    """

    plan: Mapping[str, Any]
    records: Sequence[Record]
    teacher: Arm | None
    arms: Sequence[Arm]
    baseline: Arm | None
    gains: Mapping[str, Gain]
