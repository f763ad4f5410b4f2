"""Gains class by class: whom an arm helps and whom it hurts."""

from __future__ import annotations

import math
from statistics import fmean

from matplotlib.axes import Axes

from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import LEAST, WIDTH, Plot, figure, finished, framed, of_what, signed
from kdlab.reporting.tables import printable

_MOST = 30
_DARK = 0.65
"""Of the largest gain: from here on a field is too dark for black text."""
_COLUMNS = ("class", "arm", "dAP", "n")

_Gains = dict[str, tuple[float, int]]
"""Mean gain in points and number of seeds by class."""


def draw(comparison: Comparison) -> Plot | None:
    """A field an arm and class; of many classes those that change most."""
    baseline = comparison.baseline
    if baseline is None:
        return None
    pairs = [(arm, comparison.rival(arm)) for arm in finished(comparison.arms) if not arm.plain]
    gains = {arm.name: found for arm, rival in pairs if rival and (found := _gains(arm, rival))}
    if not gains:
        return None
    by_class: dict[str, list[float]] = {}
    for found in gains.values():
        for name, (gain, _) in found.items():
            by_class.setdefault(name, []).append(gain)
    ranked = sorted(by_class, key=lambda name: (-max(map(abs, by_class[name])), name))
    chosen = sorted(ranked[:_MOST], key=lambda name: (-fmean(by_class[name]), name))
    grid = figure(max(WIDTH, 1.8 + 0.42 * len(gains)), 1.9 + 0.24 * len(chosen))
    _fields(grid.subplots(), gains, chosen)
    caption = f"AP minus {baseline.name}'s, mean over the seeds that both have; the largest changes first."
    caption += " Blue: a gain. Red: a loss."
    if left := len(ranked) - len(chosen):
        caption += f" {left} more classes change less in every arm."
    rows = [(name, arm, *found[name]) for name in chosen for arm, found in gains.items() if name in found]
    what = f"Gains over {baseline.name} by class (AP points)"
    return framed(what, of_what(comparison), caption, grid, _COLUMNS, rows)


def _gains(arm: Arm, baseline: Arm) -> _Gains:
    found: dict[str, list[float]] = {}
    for seed in arm.results.keys() & baseline.results:
        own, plain = arm.results[seed].last.per_class, baseline.results[seed].last.per_class
        for name in own.keys() & plain.keys():
            found.setdefault(name, []).append(own[name] - plain[name])
    return {name: (fmean(values), len(values)) for name, values in found.items()}


def _fields(axes: Axes, gains: dict[str, _Gains], chosen: list[str]) -> None:
    none = (math.nan, 0)
    values = [[found.get(name, none)[0] for found in gains.values()] for name in chosen]
    known = [value for row in values for value in row if not math.isnan(value)]
    most = max(LEAST, *map(abs, known))
    axes.imshow(values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            # the sign is in the text too, for those who see no colour
            shown = "" if math.isnan(value) else signed(value)
            ink = "white" if abs(value) > _DARK * most else "black"
            axes.text(x, y, shown, ha="center", va="center", size=7, color=ink)
    axes.set_yticks(range(len(chosen)), list(map(printable, chosen)))
    axes.set_xticks(range(len(gains)), list(gains), rotation=40, ha="left", rotation_mode="anchor")
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
