"""Size of each term of a loss relative to the detection loss, and the ranges of weights that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from kdlab.jobs.study import WEIGHT, Dimension

ITERATIONS = 100
"""Steps of the job that measures it; the second half counts."""
LOWEST, HIGHEST = 0.01, 3.0
"""A weight is searched where its weighted term is so many times the detection loss."""


def shares(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The size of each method instance's term at weight 1, as a multiple of the detection loss.

    Args:
        losses: of a job as its curves have them: "loss", and for each term "loss_<term>", weighted,
            and "raw_<term>"; a term "fgd.foreground" is a part of the instance "fgd".

    Returns:
        One number an instance; those that are 0 or not finite are left out, for no weight follows from them.
    """
    steps = losses[len(losses) // 2 :]
    if not steps:
        return {}
    terms = sorted(name.removeprefix("raw_") for name in steps[0] if name.startswith("raw_"))
    detection = fmean(step["loss"] - sum(step[f"loss_{term}"] for term in terms) for step in steps)
    if detection == 0:
        return {}
    found: dict[str, float] = {}
    for term in terms:
        instance = term.partition(".")[0]
        found[instance] = found.get(instance, 0.0) + fmean(step[f"raw_{term}"] for step in steps) / detection
    return {instance: share for instance, share in found.items() if share > 0 and math.isfinite(share)}


def following(space: Sequence[Dimension], measured: Sequence[Mapping[str, float]]) -> tuple[Dimension, ...]:
    """The space with the range of each weight as its term's size says.

    Args:
        space: what is searched; ranges that the recipe gives stay.
        measured: `shares` of each student that is tried; the ranges of all of them count.
    """
    found = []
    for one in space:
        sizes = [share[one.owner] for share in measured if one.owner in share]
        if one.key == WEIGHT and sizes and not one.given:
            low, high = one.rounded(LOWEST / max(sizes)), one.rounded(HIGHEST / min(sizes))
            one = replace(one, low=low, high=high)
        found.append(one)
    return tuple(found)
