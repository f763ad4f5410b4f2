"""Loss terms over time: which of them pulls, beside what detection itself asks for."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from kdlab.jobs.result import Curves
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import COLOURS, DASHES, INK, Plot, finished, framed, label, of_what, panels

_COLUMNS = ("arm", "term", "iteration", "loss", "n")
_DETECTION = "detection"
_LEGEND_LINE = 0.1
"""Of a panel's height."""
_FEW = 1000
"""Largest over smallest loss up to which the scale has numbers between the powers of ten."""

_Curve = dict[int, list[float]]
"""Values over seeds by iteration."""


def draw(comparison: Comparison) -> Plot | None:
    """A panel an arm: the detector's own loss and each method's term with its weight."""
    curves = {arm.name: _curves(comparison, arm) for arm in finished(comparison.arms)}
    curves = {name: terms for name, terms in curves.items() if terms}
    if not curves:
        return None
    grid, places = panels(list(curves), "iteration", "loss")
    looks = _looks(curves)
    for axes, (arm, terms) in zip(places, curves.items(), strict=True):
        _panel(axes, terms, looks[arm])
    _scale(places[0], max(map(len, curves.values())))
    caption = (
        "Mean over seeds of each term with its weight, as it enters the gradient, averaged between reports. "
        "Detection: the sum of the detector's own terms. What is not above 0 has no place on this scale."
    )
    return framed("Loss terms", of_what(comparison), caption, grid, _COLUMNS, list(_rows(curves)))


def _curves(comparison: Comparison, arm: Arm) -> dict[str, _Curve]:
    """The course of each term over all seeds, detection first."""
    curves: dict[str, _Curve] = {}
    for result in arm.results.values():
        for iteration, terms in _terms(comparison.curves[result.id]):
            for name, value in terms.items():
                curves.setdefault(name, {}).setdefault(iteration, []).append(value)
    return curves


def _terms(of_job: Curves) -> Iterator[tuple[int, dict[str, float]]]:
    """A job's loss in parts, report by report: a method's term is one that also has a raw value."""
    for report in of_job.losses:
        methods = {
            name.removeprefix("raw_"): report[f"loss_{name.removeprefix('raw_')}"]
            for name in report
            if name.startswith("raw_")
        }
        yield int(report["iteration"]), {_DETECTION: report["loss"] - sum(methods.values()), **methods}


def _looks(curves: dict[str, dict[str, _Curve]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Colour and dash of each term of each arm; the same in all panels if there are enough of them."""
    terms = list(dict.fromkeys(name for arm in curves.values() for name in arm if name != _DETECTION))
    looks = {}
    for arm, own in curves.items():
        places = terms if len(terms) <= len(COLOURS) else [name for name in own if name != _DETECTION]
        turns = {name: place % len(COLOURS) for place, name in enumerate(places)}
        looks[arm] = {name: {"color": COLOURS[turn], "dashes": DASHES[turn]} for name, turn in turns.items()}
        looks[arm][_DETECTION] = {"color": INK}
    return looks


def _panel(axes: Axes, terms: dict[str, _Curve], looks: dict[str, dict[str, Any]]) -> None:
    for name, curve in terms.items():
        shown = {iteration: fmean(values) for iteration, values in curve.items() if fmean(values) > 0}
        axes.plot([*shown], [*shown.values()], linewidth=1.2, label=label(name), **looks[name])
    axes.legend(loc="upper right", fontsize=7, handlelength=3, borderpad=0, labelspacing=0.2)


def _scale(axes: Axes, terms: int) -> None:
    """A logarithmic scale with room above the curves for a legend of so many terms."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    taken = min(0.5, _LEGEND_LINE * terms)
    high *= (high / low) ** (taken / (1 - taken))
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high / low < _FEW else (1.0,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _rows(curves: dict[str, dict[str, _Curve]]) -> Iterator[list[str | float]]:
    for arm, terms in curves.items():
        for term, curve in terms.items():
            for iteration, values in sorted(curve.items()):
                yield [arm, term, iteration, fmean(values), len(values)]
