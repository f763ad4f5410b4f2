"""What the plots of a study have in common: how its trials look, and what is too low to be on a scale."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from kdlab.reporting.plots.plot import COLOURS, INK, label
from kdlab.reporting.study import Dimension, Study, Trial, word

AP = "AP on the tuning split (points)"
WORTH = "One seed, images of the training set: no numbers for a paper."
OTHER = {"marker": "o", "color": COLOURS[0], "markersize": 4, "markeredgewidth": 0}
"""A complete trial like any other."""
BEST = {"marker": "*", "color": COLOURS[1], "markersize": 12, "markeredgecolor": INK, "zorder": 5}
_COLOURS = [COLOURS[place] for place in (2, 3, 5, 4)]
_MARKERS = ("D", "^", "P", "X", "p")
"""Of references: what is neither the best's nor other trials'; together 20 that differ."""
_NAME = 28
"""Characters of a reference's name in a legend."""
_NEAR = 5.0
"""Points below the median that are never off the scale."""


def of_study(study: Study) -> str:
    """ "GFL R18 -> R9, 14 of 20 trials complete, seed 0"."""
    return f"{study.title}, {len(study.complete)} of {len(study.trials)} trials complete, seed {study.seed}"


def looks(study: Study) -> dict[int, dict[str, Any]]:
    """Colour and marker of each reference trial by number; the one without methods is black."""
    looks: dict[int, dict[str, Any]] = {}
    others = [trial for trial in study.trials if trial.note and not trial.plain]
    for place, trial in enumerate(others):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        looks[trial.number] = {"color": colour, "marker": marker}
    if plain := study.without_methods:
        looks[plain.number] = {"color": INK, "marker": "s"}
    return looks


def called(study: Study, trial: Trial) -> str:
    """A trial for a legend: "best: trial 7 (published)  32.8"."""
    best, note = study.best, textwrap.shorten(trial.note, _NAME, placeholder="...")
    if best is not None and trial.number == best.number:
        name = f"best: trial {trial.number}{f' ({note})' * bool(note)}"
    else:
        name = note or f"trial {trial.number}"
    known = trial.number in {one.number for one in study.complete}
    return label(f"{name}  {study.ap(trial):.1f}" if known else name)


def setting(trial: Trial, dimension: Dimension) -> str:
    """A value for a file of numbers, "" where the method was off."""
    if trial.off(dimension.name):
        return ""
    value = trial.params[dimension.name]
    return f"{value:.6g}" if dimension.numeric else word(value)


def floor(aps: Sequence[float], far: float = 4.0) -> float:
    """The lowest AP that a scale has to show, so that a collapsed trial does not flatten all others.

    Args:
        aps: of the trials, in points.
        far: times the distance from the median to the highest that is shown below the median, where that is
            more than a few points.
    """
    middle = median(aps)
    least = middle - max(far * (max(aps) - middle), _NEAR)
    return min(ap for ap in aps if ap >= least)


def lowest(study: Study, aps: Sequence[float]) -> float:
    """As `floor`, but no reference is left out."""
    return min([floor(aps), *(study.ap(trial) for trial in study.complete if trial.note)])


def end(study: Study, trial: Trial) -> float | None:
    """AP at the end of a trial or where it stopped; None where it was never measured."""
    ended = trial.number in {one.number for one in study.complete}
    return study.ap(trial) if ended else trial.last_ap


def mark_special(axes: Axes, study: Study, points: dict[int, tuple[float, float]], low: float) -> None:
    """The reference trials and, on top of all, the best: each with its name, by where they stand."""
    best, special = study.best, looks(study)
    for trial in study.trials:
        if trial.number not in points or (best and trial.number == best.number):
            continue
        if trial.number in special:
            hollow = {} if trial.state == "complete" else {"markerfacecolor": "none"}
            style = {"markersize": 7, **special[trial.number], **hollow}
            mark(axes, [points[trial.number]], low, label=called(study, trial), **style)
    if best and best.number in points:
        mark(axes, [points[best.number]], low, label=called(study, best), **BEST)


def mark(axes: Axes, points: Sequence[tuple[float, float]], low: float, **style: Any) -> None:
    """A mark a point; those below `low` are triangles at the lower edge."""
    seen = [(x, y) for x, y in points if y >= low]
    if seen:
        axes.plot(*zip(*seen, strict=True), linestyle="", **style)
        style["label"] = None
    at_edge([x for x, y in points if y < low], axes, **style | {"marker": "v"})


def at_edge(xs: Sequence[float], axes: Axes, **style: Any) -> None:
    """Marks at the lower edge of the axes, for what has no place on their scale."""
    if xs:
        edge = [0.025] * len(xs)
        axes.plot(xs, edge, linestyle="", transform=axes.get_xaxis_transform(), **style)


def below(aps: Sequence[float], low: float) -> str:
    """What the caption says of the trials that are off the scale."""
    count = sum(ap < low for ap in aps)
    return f" Triangles at the edge: {count} below {low:.1f}." if count else ""
