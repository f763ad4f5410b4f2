"""How sure a gain is: tests and intervals over seeds, over images, and over both at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
SEEDS_FOR_A_TEST = 3
_FARTHEST = 1e4
"""How far from the estimate the bound of a ratio is looked for, in units of the ratio."""
_PRECISION = 1e-7
"""How far from it the bound may be that is found."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Where a number lies with 95 % confidence."""

    low: float
    high: float


def paired_t(differences: Sequence[float]) -> float | None:
    """p of the two-sided paired t test: as probable are such differences where there is none.

    Returns:
        0 to 1; None for fewer than three seeds, or where all differ by the same, which no test can judge.
    """
    n = len(differences)
    if n < SEEDS_FOR_A_TEST:
        return None
    # here and below: of all that a table imports it takes longest, and tables of one seed do without
    from scipy.special import stdtr

    error = np.std(differences, ddof=1) / np.sqrt(n)
    if error <= 1e-12 * np.max(np.abs(differences)):
        return None
    return float(2 * stdtr(n - 1, -abs(np.mean(differences)) / error))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p of each of several comparisons after Holm's correction; None, one that is not known yet, stays None.

    It counts all the same, as if it were the largest: so no p is lower now than it will be.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(ps) - rank) * p))
        corrected[place] = least
    return corrected


def percentile_interval(resampled: Floats) -> Interval:
    """The middle 95 % of (R,) resampled values."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Crossed:
    """Quantities whose seeds are all measured on the same images, and what is known of their scatter.

    The variance of a mean over S seeds has two parts: that between seeds over S, and that of the mean over
    resampled images. What images do to one seed alone is in both, so the sum is rather too large than too
    small. A bootstrap over seeds knows too little where there are three of them, so both parts enter a t
    interval with the degrees of freedom of Satterthwaite.

    Args:
        means: (Q,) of each quantity over the seeds.
        of_seeds: (Q, Q) covariance of the means between seeds.
        of_images: (Q, Q) covariance of the means over resampled images.
        seeds: S, at least 2.
        images: how many images there are.

    Source: two-way resampling, Owen, Annals of Applied Statistics 1 (2007); Satterthwaite, Biometrics
    Bulletin 2 (1946).
    """

    means: Floats
    of_seeds: Floats
    of_images: Floats
    seeds: int
    images: int

    @classmethod
    def of(cls, values: Floats, resampled: Floats, images: int) -> Self:
        """From (Q, S) values and (Q, S, R) the same on R resamples of the images."""
        seeds = values.shape[1]
        return cls(
            means=values.mean(1),
            of_seeds=_covariance(values) / seeds,
            of_images=_covariance(resampled.mean(1)),
            seeds=seeds,
            images=images,
        )

    def interval(self, *factors: float) -> Interval:
        """Of the sum of the quantities' means, each times its factor, for other seeds and other images."""
        mean, half = self._mean(factors), self._half_width(factors)
        return Interval(mean - half, mean + half)

    def ratio_interval(self) -> Interval | None:
        """Of the first quantity's mean over the second's: all ratios r that first - r second allows to be 0.

        Returns:
            None where the second may be 0, so that nothing bounds the ratio.

        Source: Fieller, Journal of the Royal Statistical Society B 16 (1954).
        """
        if self.means[1] == 0:
            return None
        estimate = float(self.means[0] / self.means[1])

        def excess(ratio: float) -> float:
            """Above 0 where the data speak against the ratio."""
            factors = 1.0, -ratio
            return abs(self._mean(factors)) - self._half_width(factors)

        low, high = (_crossing(excess, estimate, side) for side in (-1.0, 1.0))
        return None if low is None or high is None else Interval(low, high)

    def _mean(self, factors: Sequence[float]) -> float:
        return float(self.means @ factors)

    def _half_width(self, factors: Sequence[float]) -> float:
        from scipy.special import stdtrit

        seeds, images = (
            float(factors @ covariance @ factors) for covariance in (self.of_seeds, self.of_images)
        )
        variance = seeds + images
        if variance <= 0:
            return 0.0
        parts = seeds**2 / (self.seeds - 1) + images**2 / max(1, self.images - 1)
        return float(stdtrit(variance**2 / parts, (1 + CONFIDENCE) / 2) * np.sqrt(variance))


def _covariance(samples: Floats) -> Floats:
    """(Q, Q) covariance of (Q, n) samples."""
    return np.atleast_2d(np.cov(samples, ddof=1))


def _crossing(excess: Callable[[float], float], estimate: float, side: float) -> float | None:
    """Where `excess` rises above 0 on one side of the estimate; None where it never does."""
    near, step = estimate, 0.125
    while not excess(estimate + side * step) > 0:
        near, step = estimate + side * step, 2 * step
        if step > _FARTHEST:
            return None
    far = estimate + side * step
    # halving: scipy's root finders take half a second to import
    while abs(far - near) > _PRECISION:
        middle = (near + far) / 2
        near, far = (near, middle) if excess(middle) > 0 else (middle, far)
    return far
