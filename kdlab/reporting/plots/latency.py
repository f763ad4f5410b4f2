"""AP against latency: what a student's speed costs, and what distillation gives back."""

from __future__ import annotations

from statistics import fmean

from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import (
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
)

_COLUMNS = ("arm", "latency_ms", "AP", "n")


def draw(comparison: Comparison) -> Plot | None:
    """A mark an arm and the teacher's, of many arms with names for the best alone; None without times."""
    points: dict[str, tuple[float, float, int]] = {}
    for arm in comparison.rows:
        latency, aps = comparison.latency_ms(arm), arm.over_seeds("AP")
        if latency is not None and aps:
            points[arm.name] = latency, fmean(aps), len(aps)
    if not points:
        return None
    # the legend has room for teacher, baseline, then the highest AP
    first = [arm.name for arm in (comparison.teacher, comparison.baseline) if arm and arm.name in points]
    rest = sorted((name for name in points if name not in first), key=lambda name: -points[name][1])
    named, others = first + rest[: TOGETHER - 1], rest[TOGETHER - 1 :]
    looks = look([arm for arm in comparison.arms if arm.name in named], comparison.baseline)
    if comparison.teacher:
        looks[comparison.teacher.name] = {"color": SOFT, "marker": "*"}
    grid = figure(WIDTH, 4.0)
    axes = grid.subplots()
    axes.set(xlabel="latency of an image (ms)", ylabel="AP (points)")
    for name in named:
        style = {"color": looks[name]["color"], "marker": looks[name]["marker"]}
        axes.plot(*points[name][:2], linestyle="", markersize=7, label=label(name), **style)
    if others:
        x, y = [points[name][0] for name in others], [points[name][1] for name in others]
        told = label(f"{len(others)} other arms")
        axes.plot(x, y, "o", color="#b0b0b0", markersize=4, zorder=1, label=told)
    axes.set_xlim(0, 1.1 * max(point[0] for point in points.values()))
    axes.margins(y=0.15)
    legend(grid, axes)
    caption = (
        "Median time of one image where the jobs ran. The students are one network and share it."
        " Mean AP over seeds."
    )
    if comparison.teacher and comparison.teacher.name in points:
        apart = comparison.latencies_apart
        when = "at different times: trust no ratio of the two" if apart else "in turns"
        caption += f" Teacher and students were measured {when}."
    rows = [(name, *point) for name, point in points.items()]
    return framed("AP against latency", of_what(comparison), caption, grid, _COLUMNS, rows)
