"""AP against latency: what a student's speed costs, and what distillation gives back."""

from __future__ import annotations

from statistics import fmean

from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import (
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
)

_COLUMNS = ("arm", "latency_ms", "AP", "n")


def draw(comparison: Comparison) -> Plot | None:
    """A mark an arm and the teacher's, of many arms with names for the best alone; None without times."""
    teachers = [comparison.teacher] if comparison.teacher else []
    arms = finished([*teachers, *comparison.arms])
    points = {arm.name: point for arm in arms if (point := _point(comparison, arm))}
    if not points:
        return None
    named, others = _named(comparison, points)
    looks = look([arm for arm in comparison.arms if arm.name in named], comparison.baseline)
    looks |= {arm.name: {"color": SOFT, "marker": "*"} for arm in teachers}
    grid = figure(WIDTH, 4.0)
    axes = grid.subplots()
    axes.set(xlabel="latency of an image (ms)", ylabel="AP (points)")
    for name in named:
        style = {"color": looks[name]["color"], "marker": looks[name]["marker"]}
        axes.plot(*points[name][:2], linestyle="", markersize=7, label=label(name), **style)
    if others:
        x, y = [points[name][0] for name in others], [points[name][1] for name in others]
        axes.plot(
            x, y, "o", color="#b0b0b0", markersize=4, zorder=1, label=label(f"{len(others)} other arms")
        )
    axes.set_xlim(0, 1.1 * max(point[0] for point in points.values()))
    axes.margins(y=0.15)
    legend(grid, axes)
    caption = (
        "Median time of one image where the jobs ran. The students are one network and share it."
        " Mean AP over seeds."
    )
    rows = [(name, *point) for name, point in points.items()]
    return framed("AP against latency", of_what(comparison), caption, grid, _COLUMNS, rows)


def _point(comparison: Comparison, arm: Arm) -> tuple[float, float, int] | None:
    """Latency in ms, AP in points, seeds; None where one is not known."""
    latency, aps = comparison.latency_ms(arm), arm.over_seeds("AP")
    return None if latency is None or not aps else (latency, fmean(aps), len(aps))


def _named(
    comparison: Comparison, points: dict[str, tuple[float, float, int]]
) -> tuple[list[str], list[str]]:
    """Names that the legend has room for, and the rest: teacher, baseline, then the highest AP."""
    first = [arm.name for arm in (comparison.teacher, comparison.baseline) if arm and arm.name in points]
    rest = sorted((name for name in points if name not in first), key=lambda name: -points[name][1])
    room = TOGETHER - 1
    return [*first, *rest[:room]], rest[room:]
