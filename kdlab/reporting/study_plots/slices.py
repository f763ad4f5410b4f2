"""AP against each dimension: where the good values are, and whether the range was wide enough."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from kdlab.reporting.plots.plot import INK, SOFT, Plot, framed, label, legend, panels
from kdlab.reporting.study import Dimension, State, Study, Trial, word
from kdlab.reporting.study_plots.marks import (
    OTHER,
    WORTH,
    at_edge,
    below,
    called,
    looks,
    lowest,
    mark,
    mark_special,
    of_study,
    setting,
)

_COLUMNS = ("dimension", "trial", "reference", "value", "AP")
_GOLDEN = 0.618034
"""Multiples of it, modulo 1, spread evenly however many there are: jitter without chance."""
_LEGEND = 2.0
"""Inches."""
_LABELS = 75
"""Characters of labels below a whole row of panels."""
_ROOM = 0.05
"""Of its width that an axis has beyond its range, on both sides."""
_DECADE, _DECADES = 10, 100
"""Highest over lowest value from which on a logarithmic axis has its numbers at powers of ten and their
threefold, and at powers of ten alone."""


def draw(study: Study) -> Plot | None:
    """A panel a dimension, each with the trials that have a value there; None before a trial is complete."""
    shown = [one for one in study.dimensions if any(not trial.off(one.name) for trial in study.complete)]
    if not shown:
        return None
    aps = [study.ap(trial) for trial in study.complete]
    low = lowest(study, aps)
    grid, places = panels([one.name for one in shown], "", "AP (points)", share_x=False, beside=_LEGEND)
    for axes, dimension in zip(places, shown, strict=True):
        _panel(axes, study, dimension, low)
    places[0].margins(y=0.12)
    legend(grid, *places)
    rows = [
        (one.name, trial.number, trial.note, setting(trial, one), study.ap(trial))
        for one in shown
        for trial in study.complete
        if not trial.off(one.name)
    ]
    pruned = " Ticks at the edge: where pruned ones were." if _states(study, "pruned") else ""
    caption = f"Trials at their end.{pruned}{below(aps, low)} {WORTH}"
    return framed("AP on the tuning split by dimension", of_study(study), caption, grid, _COLUMNS, rows)


def _panel(axes: Axes, study: Study, dimension: Dimension, low: float) -> None:
    places = _places(axes, study, dimension)
    special = looks(study)
    points = {
        one.number: (places[one.number], study.ap(one)) for one in study.complete if one.number in places
    }
    _plain(axes, study)
    others = [point for number, point in points.items() if number not in special]
    mark(axes, others, low, label=label("complete"), **OTHER)
    pruned = [places[one.number] for one in _states(study, "pruned") if one.number in places]
    at_edge(pruned, axes, marker="|", color=SOFT, markersize=6, label=label("pruned"))
    mark_special(axes, study, points, low)


def _states(study: Study, state: State) -> list[Trial]:
    return [trial for trial in study.trials if trial.state == state]


def _places(axes: Axes, study: Study, dimension: Dimension) -> dict[int, float]:
    """Where each trial that has a value stands on the horizontal axis, which gets its scale."""
    values = {one.number: one.params[dimension.name] for one in study.trials if not one.off(dimension.name)}
    if not dimension.numeric:
        return _columns(axes, dimension, values)
    ends = [*values.values(), *(end for end in (dimension.low, dimension.high) if end is not None)]
    # the range is shown as far as it was searched, for a best value at its end asks for a wider one
    low, high = min(ends), max(ends)
    if dimension.log and low > 0:
        _logarithmic(axes, low, high)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        room = _ROOM * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
    return values


def _columns(axes: Axes, dimension: Dimension, values: dict[int, Any]) -> dict[int, float]:
    words = list(dict.fromkeys(map(word, (*dimension.choices, *values.values()))))
    grid = axes.get_gridspec()
    room = _LABELS // ((grid.ncols if grid else 1) * len(words))
    broken = [textwrap.fill(one, max(6, room)) for one in words]
    axes.set_xticks(range(len(words)), broken)
    axes.set_xlim(-0.6, len(words) - 0.4)
    return {
        number: words.index(word(value)) + 0.5 * ((number * _GOLDEN) % 1 - 0.5)
        for number, value in values.items()
    }


def _logarithmic(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    room = (high / low) ** _ROOM if high > low else 2.0
    axes.set_xlim(low / room, high * room)
    if high / low >= _DECADE:
        subs = (1.0,) if high / low >= _DECADES else (1.0, 3.0)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter(FuncFormatter(_power))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Axes, study: Study) -> None:
    """The trial without methods has no value on any axis: a line across."""
    plain = study.without_methods
    if plain is not None and plain.number in {trial.number for trial in study.complete}:
        name = called(study, plain)
        axes.axhline(study.ap(plain), color=INK, linewidth=1.0, dashes=(3, 2), label=name)


def _power(value: float, place: int | None) -> str:
    """ "0.001", "1e-5": what a narrow axis has room for."""
    return f"{value:g}".replace("e-0", "e-")
