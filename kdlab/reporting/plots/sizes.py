"""AP by the size of objects: where an arm's gain comes from."""

from __future__ import annotations

from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import COLOURS, INK, SOFT, WIDTH, Plot, figure, finished, framed, of_what

_SIZES = {"APs": "small, below 32x32 px", "APm": "medium", "APl": "large, from 96x96 px"}
_COLUMNS = ("arm", "size", "AP", "AP_min", "AP_max", "n")


def draw(comparison: Comparison) -> Plot | None:
    """Axes for each size that has objects, a line an arm."""
    arms = finished(comparison.rows)
    sizes = [size for size in _SIZES if any(arm.over_seeds(size) for arm in arms)]
    if not sizes:
        return None
    grid = figure(max(WIDTH, 1.6 + 2.3 * len(sizes)), 1.6 + 0.26 * len(arms))
    places = list(grid.subplots(1, len(sizes), sharey=True, squeeze=False).flat)
    rows: list[list[str | float]] = []
    for axes, size in zip(places, sizes, strict=True):
        axes.set_title(_SIZES[size], loc="left")
        axes.set_xlabel(f"{size} (points)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        for place, arm in enumerate(arms):
            if values := arm.over_seeds(size):
                _mark(axes, place, values, arm, comparison)
                rows.append([arm.name, size, fmean(values), min(values), max(values), len(values)])
    places[0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    places[0].set_ylim(len(arms) - 0.5, -0.5)
    several = any(len(arm.results) > 1 for arm in arms)
    caption = "Mark: mean over seeds. Line: from the lowest to the highest seed." if several else "One seed."
    if comparison.baseline:
        caption += f" Dashed: {comparison.baseline.name}."
    return framed("AP by object size", of_what(comparison), caption, grid, _COLUMNS, rows)


def _mark(axes: Axes, place: int, values: list[float], arm: Arm, comparison: Comparison) -> None:
    mean = fmean(values)
    colour, marker = COLOURS[0], "o"
    if arm is comparison.teacher:
        colour, marker = SOFT, "D"
    elif comparison.baseline is not None and arm.name == comparison.baseline.name:
        colour, marker = INK, "s"
        axes.axvline(mean, color=INK, linewidth=0.9, dashes=(3, 2))
    axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=2)
    axes.plot(mean, place, marker, color=colour, markersize=6)
