"""Parallel coordinates: which values go together in the trials that came out high."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.ticker import LogLocator, MaxNLocator

from kdlab.reporting.plots.plot import INK, WIDTH, Plot, figure, framed
from kdlab.reporting.study import Dimension, Study, Trial, word
from kdlab.reporting.study_plots.marks import AP, WORTH, called, floor, looks, of_study, setting
from kdlab.reporting.tables import significant

_OFF = -0.13
"""Below the axes, where the lines of a method that was off go through."""
_TICK = 0.006
"""Length of a tick, as a part of the width."""
_MANY = 20
"""Lines from which on the lower half is of one pale colour, for the upper half to be seen."""
_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}


@dataclass(frozen=True)
class _Scale:
    """One of the vertical axes.

    Args:
        name: of the dimension.
        place: of a value, 0 below and 1 above.
        ticks: values with a number beside the axis, by what is written there.
    """

    name: str
    place: Callable[[Any], float]
    ticks: dict[str, Any]


def draw(study: Study) -> Plot | None:
    """A line a complete trial; None before there are two."""
    trials = sorted(study.complete, key=study.ap)
    if len(trials) < 2 or not study.dimensions:
        return None
    aps = [study.ap(trial) for trial in trials]
    low = floor(aps)
    scales = [_scale(one, trials) for one in study.dimensions]
    last = _numeric("AP", [max(ap, low) for ap in aps], log=False)
    grid = figure(max(WIDTH, 1.8 + 1.25 * len(scales)), 4.4)
    axes = grid.subplots()
    palest = min(median(aps) if len(aps) >= _MANY else low, max(aps) - 0.1)
    colours = ScalarMappable(Normalize(palest, max(aps)), _colours())
    for trial, colour in zip(trials, colours.to_rgba(numpy.array(aps)), strict=True):
        heights = [*(_height(trial, scale) for scale in scales), last.place(max(study.ap(trial), low))]
        _line(axes, study, trial, heights, colour)
    _frame(axes, [*scales, last], off=any(_is_off(trial, study) for trial in trials))
    _legend(axes, grid.get_figwidth())
    extend = "min" if min(aps) < palest else "neither"
    grid.colorbar(colours, ax=axes, label=AP, extend=extend, pad=0.02, aspect=28).outline.set_visible(False)
    columns = ("trial", "reference", *(one.name for one in study.dimensions), "AP")
    rows = [_row(study, trial) for trial in reversed(trials)]
    return framed("Values that go together", of_study(study), _caption(trials), grid, columns, rows)


def _caption(trials: Sequence[Trial]) -> str:
    """What the lines that are there mean."""
    pale = " Palest: the lower half." if len(trials) >= _MANY else ""
    dashed = " Dashed: references." if any(trial.note for trial in trials) else ""
    return f"A line a complete trial: dark is high.{pale} Thick: the best.{dashed} {WORTH}"


def _colours() -> Colormap:
    """The darker the higher, on paper too; without the lightest part, which is lost on white."""
    return ListedColormap(colormaps["cividis_r"]([0.08 + 0.92 * step / 255 for step in range(256)]))


def _scale(dimension: Dimension, trials: Sequence[Trial]) -> _Scale:
    values = [trial.params[dimension.name] for trial in trials if not trial.off(dimension.name)]
    if dimension.numeric:
        ends = [end for end in (dimension.low, dimension.high) if end is not None]
        return _numeric(dimension.name, [*ends, *values], dimension.log)
    words = list(dict.fromkeys(map(word, (*dimension.choices, *values))))
    heights = {name: (place + 0.5) / len(words) for place, name in enumerate(words)}
    return _Scale(dimension.name, lambda value: heights[word(value)], {name: name for name in words})


def _numeric(name: str, values: Sequence[float], log: bool) -> _Scale:
    low, high = min(values), max(values)
    log = log and low > 0
    straight: Callable[[float], float] = math.log if log else float
    span = straight(high) - straight(low)

    def place(value: float) -> float:
        return (straight(value) - straight(low)) / span if span else 0.5

    locator = LogLocator(numticks=6) if log else MaxNLocator(nbins=5)
    within = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    ticks = within if len(within) > 1 else [low, high]
    return _Scale(name, place, {significant(tick, 3): tick for tick in ticks})


def _height(trial: Trial, scale: _Scale) -> float:
    return _OFF if trial.off(scale.name) else scale.place(trial.params[scale.name])


def _is_off(trial: Trial, study: Study) -> bool:
    return any(trial.off(one.name) for one in study.dimensions)


def _line(axes: Axes, study: Study, trial: Trial, heights: list[float], colour: Any) -> None:
    style: dict[str, Any] = {
        "color": colour,
        "linewidth": 0.9,
        "zorder": 2,
    }
    if trial.number in (special := looks(study)):
        style |= {"linewidth": 1.6, "dashes": (4, 2), "label": called(study, trial), "zorder": 4}
        style |= {"marker": special[trial.number]["marker"], "markersize": 4}
    if (best := study.best) and trial.number == best.number:
        style |= {"linewidth": 3.2, "label": called(study, trial), "zorder": 3}
    axes.plot(range(len(heights)), heights, **style)


def _frame(axes: Axes, scales: Sequence[_Scale], *, off: bool) -> None:
    """The vertical axes with their numbers and names."""
    unit = _TICK * (len(scales) - 1)
    for x, scale in enumerate(scales):
        axes.plot([x, x], [0, 1], color=INK, linewidth=0.9, zorder=6)
        for told, value in scale.ticks.items():
            height = scale.place(value)
            # beside the last axis there are no lines to its right
            side, align = (unit, "left") if x == len(scales) - 1 else (-unit, "right")
            axes.plot([x, x + side], [height, height], color=INK, linewidth=0.9, zorder=6)
            axes.text(x + 1.6 * side, height, told, ha=align, va="center", size=7, zorder=7, bbox=_BOX)
    if off:
        axes.text(-1.6 * unit, _OFF, "off", ha="right", va="center", size=7, bbox=_BOX)
    axes.set_xticks(range(len(scales)), [scale.name.replace(".", "\n.") for scale in scales])
    axes.set_xlim(-8 * unit, len(scales) - 1 + 10 * unit)
    axes.set_ylim(_OFF - 0.05 if off else -0.04, 1.04)
    axes.yaxis.set_visible(False)
    axes.tick_params(bottom=False)
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _legend(axes: Axes, inches: float) -> None:
    """The lines that have names, above the axes in as many columns as fit."""
    names = axes.get_legend_handles_labels()[1]
    columns = int((inches - 1.0) / (0.75 + 0.05 * max(map(len, names))))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8, handlelength=4)


def _row(study: Study, trial: Trial) -> list[str | float]:
    values = [setting(trial, dimension) for dimension in study.dimensions]
    return [trial.number, trial.note, *values, study.ap(trial)]
