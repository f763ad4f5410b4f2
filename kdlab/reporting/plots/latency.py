"""AP against latency: what a student's speed costs, and what distillation gives back."""

from __future__ import annotations

from statistics import fmean, median

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
)

_COLUMNS = ("arm", "latency_ms", "AP", "n")


def draw(comparison: Comparison) -> Plot | None:
    """A mark an arm and the teacher's, of many arms with names for the best alone; None without times."""
    teachers = [comparison.teacher] if comparison.teacher else []
    points = {arm.name: _point(arm) for arm in finished([*teachers, *comparison.arms]) if _times(arm)}
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
    caption = "Median time of the model alone, batch of one image, over seeds; mean AP over seeds."
    rows = [(name, *point) for name, point in points.items()]
    return framed("AP against latency", comparison, caption, grid, _COLUMNS, rows)


def _times(arm: Arm) -> list[float]:
    timings = [result.timing for result in arm.results.values()]
    return [1000 * timing["latency_s"] for timing in timings if "latency_s" in timing]


def _point(arm: Arm) -> tuple[float, float, int]:
    """Latency in ms, AP in points, seeds."""
    return median(_times(arm)), fmean(arm.over_seeds("metrics", "AP")), len(_times(arm))


def _named(
    comparison: Comparison, points: dict[str, tuple[float, float, int]]
) -> tuple[list[str], list[str]]:
    """Names that the legend has room for, and the rest: teacher, baseline, then the highest AP."""
    first = [arm.name for arm in (comparison.teacher, comparison.baseline) if arm and arm.name in points]
    rest = sorted((name for name in points if name not in first), key=lambda name: -points[name][1])
    room = TOGETHER - 1
    return [*first, *rest[:room]], rest[room:]
