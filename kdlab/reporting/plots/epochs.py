"""AP by epoch: how fast each arm learns, and whether it was still learning at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import (
    COLOURS,
    INK,
    SOFT,
    TOGETHER,
    WIDTH,
    Plot,
    figure,
    finished,
    framed,
    label,
    legend,
    look,
    of_what,
    panels,
)

_BANDS = 3
_COLUMNS = ("arm", "epoch", "AP", "AP_min", "AP_max", "n")


@dataclass(frozen=True)
class _Moment:
    """AP of an arm after an epoch: mean, smallest and largest over `n` seeds."""

    epoch: int
    mean: float
    low: float
    high: float
    n: int


def draw(comparison: Comparison) -> Plot | None:
    """A line an arm, all in one pair of axes or, where they are many, each beside the baseline."""
    curves = {arm.name: curve for arm in finished(comparison.arms) if (curve := _curve(comparison, arm))}
    if not curves:
        return None
    several = any(moment.n > 1 for curve in curves.values() for moment in curve)
    # bands of more would hide one another
    together = len(curves) <= (_BANDS if several else TOGETHER)
    grid = (_together if together else _apart)(comparison, curves)
    caption = "Line: mean over seeds. Band: from the lowest to the highest seed." if several else "One seed."
    if not together:
        caption += " Marks: the arm that the panel names. Thin: baseline. Dashed: the teacher at its end."
    rows = [[name, *vars(moment).values()] for name, curve in curves.items() for moment in curve]
    return framed("AP by epoch", of_what(comparison), caption, grid, _COLUMNS, rows)


def _curve(comparison: Comparison, arm: Arm) -> list[_Moment]:
    """AP at each evaluation, over the seeds that had it."""
    found: dict[int, list[float]] = {}
    for result in arm.results.values():
        for one in comparison.curves[result.id].evaluations:
            if "AP" in one.metrics:
                found.setdefault(one.epoch, []).append(one.metrics["AP"])
    return [
        _Moment(epoch, fmean(values), min(values), max(values), len(values))
        for epoch, values in sorted(found.items())
    ]


def _together(comparison: Comparison, curves: dict[str, list[_Moment]]) -> Figure:
    looks = look(comparison.arms, comparison.baseline)
    grid = figure(WIDTH, 4.2)
    axes = grid.subplots()
    axes.set(xlabel="epoch", ylabel="AP (points)")
    for name, curve in curves.items():
        _line(axes, curve, label=label(_with_end(name, curve)), **looks[name])
    _teacher(axes, comparison)
    legend(grid, axes)
    return grid


def _apart(comparison: Comparison, curves: dict[str, list[_Moment]]) -> Figure:
    baseline = comparison.baseline.name if comparison.baseline else ""
    names = [name for name in curves if name != baseline]
    titles = [_with_end(name, curves[name]) for name in names]
    grid, places = panels(titles, "epoch", "AP (points)")
    for axes, name in zip(places, names, strict=True):
        if baseline in curves:
            _line(axes, curves[baseline], color=INK, linewidth=0.9)
        _line(axes, curves[name], color=COLOURS[0], marker="o", markersize=3)
        _teacher(axes, comparison)
    return grid


def _with_end(name: str, curve: Sequence[_Moment]) -> str:
    return f"{name}  {curve[-1].mean:.1f}"


def _line(axes: Axes, curve: Sequence[_Moment], **style: Any) -> None:
    epochs = [moment.epoch for moment in curve]
    axes.plot(epochs, [moment.mean for moment in curve], **style)
    if any(moment.n > 1 for moment in curve):
        low, high = [moment.low for moment in curve], [moment.high for moment in curve]
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _teacher(axes: Axes, comparison: Comparison) -> None:
    """The teacher's AP at its own end, across all epochs of the students."""
    found = comparison.teacher.over_seeds("AP") if comparison.teacher else []
    if found:
        axes.axhline(
            fmean(found),
            color=SOFT,
            linewidth=1.0,
            dashes=(2, 2),
            label=label(f"teacher  {fmean(found):.1f}"),
        )
