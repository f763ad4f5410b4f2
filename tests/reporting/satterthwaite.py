"""The interval that kdlab does not give: one variance with the degrees of freedom of Satterthwaite."""

from __future__ import annotations

import numpy as np
from scipy import stats


def satterthwaite(of_seeds: np.ndarray, of_images: np.ndarray, seeds: int, images: int) -> np.ndarray:
    """Half-widths of 95 % intervals by the variances of a mean over seeds and over images.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    variance = of_seeds + of_images
    degrees = variance**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1))
    half: np.ndarray = stats.t.ppf(0.975, degrees) * np.sqrt(variance)
    return half
