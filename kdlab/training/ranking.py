"""Agreement of two rankings of the priors that serve one object, for many objects at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def kendall_tau(first: Floats, second: Floats, group: Ints, groups: int) -> NDArray[np.float64]:
    """Kendall's tau-b of two score lists within each group, as `scipy.stats.kendalltau` has it.

    Args:
        first: (P,) scores by one model.
        second: (P,) scores of the same priors by another.
        group: (P,) the object of each, 0 to `groups` - 1, in any order.
        groups: how many there are, G.

    Returns:
        (G,) from -1, reversed, to 1; NaN below two priors and where a list holds one value only.
    """
    order = np.argsort(group, kind="stable")
    first, second, group = first[order], second[order], group[order]
    # every pair of a group once: each prior with those that follow it
    follow = np.bincount(group, minlength=groups).cumsum()[group] - np.arange(len(group)) - 1
    one = np.repeat(np.arange(len(group)), follow)
    other = one + 1 + np.arange(len(one)) - np.repeat(follow.cumsum() - follow, follow)
    signs = [np.sign(scores[one] - scores[other]) for scores in (first, second)]
    owner = group[one]
    agreed = np.bincount(owner, signs[0] * signs[1], groups)
    untied = [np.bincount(owner, sign != 0, groups) for sign in signs]
    with np.errstate(invalid="ignore"):
        tau: NDArray[np.float64] = agreed / np.sqrt(untied[0] * untied[1])
    return tau


def same_top(first: Floats, second: Floats, group: Ints, groups: int) -> NDArray[np.float64]:
    """Whether both score lists rank the same prior first, in each group.

    Args:
        first: (P,) scores by one model; of equal ones the first is the highest.
        second: (P,) scores of the same priors by another.
        group: (P,) the object of each, 0 to `groups` - 1, in any order.
        groups: how many there are, G.

    Returns:
        (G,) 1 or 0; NaN below two priors, where there is nothing to rank.
    """
    counts = np.bincount(group, minlength=groups)
    starts = counts.cumsum() - counts
    ranked = np.flatnonzero(counts > 1)
    tops = [np.lexsort((-scores, group))[starts[ranked]] for scores in (first, second)]
    same = np.full(groups, np.nan)
    same[ranked] = tops[0] == tops[1]
    return same
