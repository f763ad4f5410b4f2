"""Loss terms and their shares of the gradient over time: which pulls, beside what detection asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from kdlab.jobs.result import Curves
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots.plot import COLOURS, DASHES, INK, Plot, framed, label, of_what, panels

_COLUMNS = ("arm", "term", "iteration", "loss", "n")
_DETECTION = "detection"
_SHARE = "share_"
_LEGEND_LINE = 0.1
"""Of a panel's height."""
_SPAN = 1e-6
"""Of the largest loss; below it lies what rounding left of none, which would stretch the scale to 1e-17."""
_FEW = 1000
"""Largest over smallest loss up to which the scale has numbers between the powers of ten."""

_Curve = dict[int, list[float]]
"""Values over seeds by iteration."""


def draw(comparison: Comparison) -> Plot | None:
    """A panel for the teacher and each arm: the detector's own loss, each method's term with its weight."""
    curves = _gathered(comparison, _terms)
    if not curves:
        return None
    means = _means(curves)
    least = _SPAN * max(max(curve.values()) for curve in means.values())
    grid, places = panels(list(curves), "iteration", "loss")
    looks = _looks(curves)
    rows: list[list[str | float]] = []
    for axes, (name, parts) in zip(places, curves.items(), strict=True):
        for term, curve in parts.items():
            own = means[name, term]
            shown = {iteration: mean for iteration, mean in own.items() if mean > max(0.0, least)}
            axes.plot([*shown], [*shown.values()], linewidth=1.2, label=label(term), **looks[name][term])
            rows += [[name, term, place, own[place], len(curve[place])] for place in sorted(curve)]
        axes.legend(loc="upper right", fontsize=7, handlelength=3, borderpad=0, labelspacing=0.2)
    _scale(places[0], max(map(len, curves.values())))
    caption = (
        "Mean over seeds of each term with its weight, as it enters the gradient, averaged between reports. "
        "Detection: the sum of the detector's own terms. "
        "What is below a millionth of the largest loss has no place on this scale."
    )
    return framed("Loss terms", of_what(comparison), caption, grid, _COLUMNS, rows)


def draw_shares(comparison: Comparison) -> Plot | None:
    """A panel for each arm: each method's share of the gradient, in percent; None where nobody looked."""
    curves = _gathered(comparison, _shares)
    if not curves:
        return None
    grid, places = panels(list(curves), "iteration", "share of the gradient, %")
    means, looks = _means(curves), _looks(curves)
    rows: list[list[str | float]] = []
    for axes, (name, parts) in zip(places, curves.items(), strict=True):
        for term, curve in parts.items():
            own = means[name, term]
            axes.plot([*own], [*own.values()], linewidth=1.2, label=label(term), **looks[name][term])
            rows += [[name, term, place, own[place], len(curve[place])] for place in sorted(curve)]
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", fontsize=7, handlelength=3, borderpad=0, labelspacing=0.2)
    caption = (
        "Mean over seeds of each method's share of the gradient's L1 norm on the student's neck, "
        "of single steps, mostly 50 apart; what is left to 100 % is detection's own."
    )
    columns = ("arm", "term", "iteration", "share", "n")
    return framed("Shares of the gradient", of_what(comparison), caption, grid, columns, rows)


def _gathered(
    comparison: Comparison, told: Callable[[Curves], Iterator[tuple[int, dict[str, float]]]]
) -> dict[str, dict[str, _Curve]]:
    """Curves by arm and term, of arms that have any."""
    curves: dict[str, dict[str, _Curve]] = {}
    for arm in comparison.rows:
        for result in arm.results.values():
            for iteration, terms in told(comparison.curves[result.id]):
                for term, value in terms.items():
                    curve = curves.setdefault(arm.name, {}).setdefault(term, {})
                    curve.setdefault(iteration, []).append(value)
    return curves


def _means(curves: dict[str, dict[str, _Curve]]) -> dict[tuple[str, str], dict[int, float]]:
    return {
        (name, term): {iteration: fmean(values) for iteration, values in curve.items()}
        for name, parts in curves.items()
        for term, curve in parts.items()
    }


def _shares(of_job: Curves) -> Iterator[tuple[int, dict[str, float]]]:
    """A job's shares of the gradient, of the reports in whose steps somebody looked."""
    for report in of_job.losses:
        shares = {name: value for name, value in report.items() if name.startswith(_SHARE)}
        if shares:
            yield (
                int(report["iteration"]),
                {name.removeprefix(_SHARE): value for name, value in shares.items()},
            )


def _terms(of_job: Curves) -> Iterator[tuple[int, dict[str, float]]]:
    """A job's loss in parts, report by report: a method's term is one that also has a raw value."""
    for report in of_job.losses:
        names = [name.removeprefix("raw_") for name in report if name.startswith("raw_")]
        methods = {name: report[f"loss_{name}"] for name in names}
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
