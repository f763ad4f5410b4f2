"""Where AP50 is lost: each kind of error by arm."""

from __future__ import annotations

from statistics import fmean

from matplotlib.axes import Axes

from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import COLOURS, INK, LEAST, SOFT, Plot, framed, of_what, panels, signed
from kdlab.reporting.tide import KINDS

_COLUMNS = ("error", "arm", "dAP50", "low", "high", "n")


def draw(comparison: Comparison) -> Plot | None:
    """A panel an error and a bar an arm, the teacher on top."""
    found = {arm.name: [*comparison.lost_of(arm).values()] for arm in comparison.rows}
    found = {name: own for name, own in found.items() if own}
    if not found:
        return None
    grid, axes = panels(list(KINDS.values()), "AP50 points", "")
    height = 1.0 + 0.2 * len(found)
    grid.set_figheight(1.2 + 2 * max(1.2, height))
    rows: list[list[str | float]] = []
    for panel, (key, word) in zip(axes, KINDS.items(), strict=True):
        for place, (name, own) in enumerate(found.items()):
            values = [one.gains[key] for one in own]
            rows.append([word, name, fmean(values), min(values), max(values), len(values)])
            _mark(panel, place, values, _colour(comparison, name))
        panel.set_yticks(range(len(found)), list(found))
    axes[0].set_ylim(len(found) - 0.4, -0.6)
    axes[0].set_xlim(0, max(LEAST, 1.25 * axes[0].get_xlim()[1]))
    caption = "Points that AP50 would gain if that error alone were put right (TIDE); they do not add up."
    if any(len(own) > 1 for own in found.values()):
        caption += " Bar: mean over seeds. Rings: single seeds."
    return framed("Where AP50 is lost", of_what(comparison), caption, grid, _COLUMNS, rows)


def _colour(comparison: Comparison, name: str) -> str:
    if comparison.baseline is not None and name == comparison.baseline.name:
        return INK
    return SOFT if comparison.teacher is not None and name == comparison.teacher.name else COLOURS[0]


def _mark(axes: Axes, place: int, values: list[float], colour: str) -> None:
    mean = fmean(values)
    axes.barh(place, mean, height=0.62, color=colour, alpha=0.75)
    if len(values) > 1:
        axes.plot(values, [place] * len(values), "o", mfc="white", mec=INK, mew=0.6, ms=3)
    told = signed(mean).removeprefix("+")
    axes.annotate(told, (max(values), place), (4, 0), textcoords="offset points", va="center", size=7)
