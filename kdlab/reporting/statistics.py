"""How sure a gain is: intervals and p over seeds, over images, and over both at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
SEEDS_FOR_A_TEST = 3
SEEDS_FOR_SMALL_GAINS = 5
"""Below so many a table says how small a gain it could have shown."""
_HALVINGS = 50
_ROUNDING = 1e-12
"""Share of a mean below which its error over seeds is what rounding left of none."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Where a number lies with 95 % confidence."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """How far it reaches to either side of its middle."""
        return (self.high - self.low) / 2


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

    An interval reaches from the mean to both sides by

        sqrt((t of S - 1 degrees * error over seeds)^2 + (t of N - 1 degrees * error over images)^2)

    Each error keeps the t of its own degrees of freedom: with either error alone this is its t interval, and
    with both it is wider than each. What images do to one seed alone is in both errors, so that the interval
    is rather too wide than too narrow.

    Args:
        means: (Q,) of each quantity over the seeds.
        of_seeds: (Q, Q) covariance of the means between seeds.
        of_images: (Q, Q) covariance of the means over resampled images; 0 where these are not known.
        seeds: S, at least 2.
        images: N, how many images there are.

    Source: two-way resampling, Owen, Annals of Applied Statistics 1 (2007); the sum of squares, Howe, Journal
    of the American Statistical Association 69 (1974).
    """

    means: Floats
    of_seeds: Floats
    of_images: Floats
    seeds: int
    images: int

    @classmethod
    def of(cls, values: Floats, resampled: Floats | None = None, images: int = 0) -> Self:
        """From (Q, S) values and (Q, S, R) the same on R resamples of the images, where they are known."""
        seeds = values.shape[1]
        of_seeds = _covariance(values) / seeds
        return cls(
            means=values.mean(1),
            of_seeds=of_seeds,
            of_images=np.zeros_like(of_seeds) if resampled is None else _covariance(resampled.mean(1)),
            seeds=seeds,
            images=images,
        )

    def interval(self, *factors: float) -> Interval:
        """Of the sum of the quantities' means, each times its factor, for other seeds and other images."""
        mean, half = float(self.means @ factors), self._half_width(factors, (1 - CONFIDENCE) / 2)
        return Interval(mean - half, mean + half)

    def p(self, *factors: float) -> float | None:
        """p of the same sum, two-sided: 1 minus the confidence at which its interval just reaches 0.

        So it is below 5 % exactly where the interval of 95 % excludes 0. Without an error over images it is
        that of the t test.

        Returns:
            0 to 1; None where all seeds are alike, so that nothing is known of other ones.
        """
        # here and below: of all that a table imports it takes longest, and tables of one seed do without
        from scipy.special import stdtr

        mean = abs(float(self.means @ factors))
        error = float(np.sqrt(factors @ self.of_seeds @ factors))
        if error <= _ROUNDING * mean:
            return None
        # halving: scipy's root finders take half a second to import; images can only make t smaller
        low, high = 0.0, mean / error
        for _ in range(_HALVINGS):
            t = (low + high) / 2
            beyond = self._half_width(factors, stdtr(self.seeds - 1, -t)) > mean
            low, high = (low, t) if beyond else (t, high)
        return float(2 * stdtr(self.seeds - 1, -high))

    def ratio_interval(self) -> Interval | None:
        """Of the first quantity's mean over the second's: all ratios r that first - r second allows to be 0.

        Returns:
            None where the second may be 0, so that nothing bounds the ratio.

        Source: Fieller, Journal of the Royal Statistical Society B 16 (1954).
        """
        # |first - r second| is at most its half-width between the roots of a r^2 - 2 b r + c
        excess = np.outer(self.means, self.means) - self._squares((1 - CONFIDENCE) / 2)
        (c, b), (_, a) = excess.tolist()
        if a <= 0:
            return None
        root = max(0.0, b * b - a * c) ** 0.5
        return Interval((b - root) / a, (b + root) / a)

    def _half_width(self, factors: Sequence[float], tail: float) -> float:
        """How far an interval reaches to either side that leaves out `tail` on each."""
        return float(np.sqrt(factors @ self._squares(tail) @ factors))

    def _squares(self, tail: float) -> Floats:
        """(Q, Q) matrix that, times the factors from both sides, is a half-width's square."""
        from scipy.special import stdtrit

        degrees = (self.seeds - 1, max(1, self.images - 1) if self.of_images.any() else self.seeds - 1)
        of_seeds, of_images = (float(stdtrit(freedom, tail)) for freedom in degrees)
        squares: Floats = of_seeds**2 * self.of_seeds + of_images**2 * self.of_images
        return squares


def _covariance(samples: Floats) -> Floats:
    """(Q, Q) covariance of (Q, n) samples."""
    return np.atleast_2d(np.cov(samples, ddof=1))
