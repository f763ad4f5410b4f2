"""How large each term of a loss is beside the detection loss, and the weights that follow from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from kdlab.tuning.space import WEIGHT, Dimension

ITERATIONS = 100
"""Steps of the job that measures it; the second half counts."""
LOWEST, HIGHEST = 0.01, 3.0
"""Where a weight is searched: where its weighted term is so many times the detection loss."""


def shares(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The size of each method instance's term at weight 1, as a multiple of the detection loss.

    Args:
        losses: the course of a job as its result has it: "loss", and for each term "loss_<term>", weighted,
            and "raw_<term>"; a term "fgd.foreground" is a part of the instance "fgd".

    Returns:
        One number an instance; those that are 0 or not finite are left out, for no weight follows from them.
    """
    course = losses[len(losses) // 2 :]
    if not course:
        return {}
    raw = {name.removeprefix("raw_") for name in course[0] if name.startswith("raw_")}
    instances = {term: term.partition(".")[0] for term in sorted(raw)}
    detection = fmean(step["loss"] - sum(step[f"loss_{term}"] for term in instances) for step in course)
    if detection == 0:
        return {}
    found: dict[str, float] = {}
    for term, instance in instances.items():
        found[instance] = found.get(instance, 0.0) + fmean(step[f"raw_{term}"] for step in course) / detection
    return {instance: share for instance, share in found.items() if share > 0 and math.isfinite(share)}


def following(space: Sequence[Dimension], measured: Sequence[Mapping[str, float]]) -> tuple[Dimension, ...]:
    """The space with the range of each weight as its term's size says.

    Args:
        space: what is searched; ranges that the recipe gives stay.
        measured: `shares` of each student that is tried; the ranges of all of them count.
    """
    return tuple(
        _fitted(one, [share[one.owner] for share in measured if one.owner in share]) for one in space
    )


def _fitted(one: Dimension, sizes: Sequence[float]) -> Dimension:
    if one.key != WEIGHT or one.given or not sizes:
        return one
    return replace(one, low=one.rounded(LOWEST / max(sizes)), high=one.rounded(HIGHEST / min(sizes)))
