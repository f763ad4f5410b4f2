"""AP by epoch: how fast each arm learns, and whether it was still learning at the end."""

from __future__ import annotations

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
    framed,
    label,
    legend,
    look,
    of_what,
    panels,
)

_BANDS = 3
_COLUMNS = ("arm", "epoch", "AP", "AP_min", "AP_max", "n")


_Curve = dict[int, list[float]]
"""AP of the seeds of an arm by epoch."""


def draw(comparison: Comparison) -> Plot | None:
    """A line an arm, all in one pair of axes or, where they are many, each beside the baseline."""
    curves = {arm.name: curve for arm in comparison.arms if (curve := _curve(comparison, arm))}
    if not curves:
        return None
    several = any(len(aps) > 1 for curve in curves.values() for aps in curve.values())
    # bands of more would hide one another
    together = len(curves) <= (_BANDS if several else TOGETHER)
    caption = "Line: mean over seeds. Band: from the lowest to the highest seed." if several else "One seed."
    if together:
        grid = _together(comparison, curves)
    else:
        grid = _apart(comparison, curves)
        caption += " Marks: the arm that the panel names. Thin: baseline. Dashed: the teacher at its end."
    taught = _curve(comparison, comparison.teacher) if comparison.teacher else {}
    if taught:
        caption += " Dotted: the teacher over its own epochs."
    rows: list[list[str | float]] = []
    for name, curve in {"teacher": taught, **curves}.items():
        for epoch, aps in curve.items():
            rows.append([name, epoch, fmean(aps), min(aps), max(aps), len(aps)])
    return framed("AP by epoch", of_what(comparison), caption, grid, _COLUMNS, rows)


def _curve(comparison: Comparison, arm: Arm) -> _Curve:
    """AP of an arm's seeds by epoch; {} where nothing was measured."""
    found: _Curve = {}
    for result in arm.results.values():
        for one in comparison.curves[result.id].evaluations:
            if "AP" in one.metrics:
                found.setdefault(one.epoch, []).append(one.metrics["AP"])
    return dict(sorted(found.items()))


def _together(comparison: Comparison, curves: dict[str, _Curve]) -> Figure:
    looks = look(comparison.arms, comparison.baseline)
    grid = figure(WIDTH, 4.2)
    axes = grid.subplots()
    axes.set(xlabel="epoch", ylabel="AP (points)")
    for name, curve in curves.items():
        _line(axes, curve, label=label(_with_end(name, curve)), **looks[name])
    _teacher(axes, comparison)
    legend(grid, axes)
    return grid


def _apart(comparison: Comparison, curves: dict[str, _Curve]) -> Figure:
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


def _with_end(name: str, curve: _Curve) -> str:
    *_, last = curve.values()
    return f"{name}  {fmean(last):.1f}"


def _line(axes: Axes, curve: _Curve, **style: Any) -> None:
    seeds = curve.values()
    if len(curve) == 1:
        style = {"marker": ".", **style}
    axes.plot([*curve], [fmean(aps) for aps in seeds], **style)
    if any(len(aps) > 1 for aps in seeds):
        ends = [min(aps) for aps in seeds], [max(aps) for aps in seeds]
        axes.fill_between([*curve], *ends, color=style["color"], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _teacher(axes: Axes, comparison: Comparison) -> None:
    """The teacher's AP at its own end, across all epochs of the students, and on the way there."""
    found = comparison.teacher.over_seeds("AP") if comparison.teacher else []
    if found:
        end = fmean(found)
        told = label(f"teacher  {end:.1f}")
        axes.axhline(end, color=SOFT, linewidth=1.0, dashes=(2, 2), label=told)
        curve = _curve(comparison, comparison.teacher) if comparison.teacher else {}
        axes.plot([*curve], [fmean(aps) for aps in curve.values()], color=SOFT, linewidth=1.0, dashes=(1, 2))
