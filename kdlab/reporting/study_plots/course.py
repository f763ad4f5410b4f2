"""AP by epoch, a line a trial: whether pruning stopped those that were behind."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdlab.reporting.plots.plot import COLOURS, INK, SOFT, WIDTH, Plot, figure, framed, legend
from kdlab.reporting.study import Study, Trial
from kdlab.reporting.study_plots.marks import AP, WORTH, called, looks, of_study

_COLUMNS = ("trial", "reference", "state", "epoch", "AP")
_SHADE = "#b8b8b8"
_STAR = {"marker": "*", "markersize": 10, "markeredgecolor": INK, "markeredgewidth": 0.7}
_ENDS: dict[str, dict[str, Any]] = {
    "pruned": {"marker": "o", "markerfacecolor": "white"},
    "failed": {"marker": "x"},
}
_NAMES = {"pruned": "Rings", "failed": "Crosses"}


def draw(study: Study) -> Plot | None:
    """All trials that were measured; None where none was measured twice."""
    if not any(len(trial.course) > 1 for trial in study.trials):
        return None
    grid = figure(WIDTH, 4.2)
    axes = grid.subplots()
    axes.set(xlabel="epoch", ylabel=AP)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    special = looks(study)
    for trial in study.trials:
        if trial.course:
            _line(axes, study, trial, special.get(trial.number))
    legend(grid, axes)
    rows = [
        (trial.number, trial.note, trial.state, epoch, ap)
        for trial in study.trials
        for epoch, ap in sorted(trial.course.items())
    ]
    return framed("AP by epoch", of_study(study), _caption(study), grid, _COLUMNS, rows)


def _caption(study: Study) -> str:
    """What the marks that are there mean."""
    shown = [trial for trial in study.trials if trial.course]
    parts = ["Thick: the best."] if study.best else []
    if not all(trial.note for trial in shown):
        parts.append("Grey: trials that the search chose.")
    states = {trial.state for trial in shown}
    parts += [f"{name}: {state}." for state, name in _NAMES.items() if state in states]
    return " ".join([*parts, WORTH])


def _line(axes: Axes, study: Study, trial: Trial, look: dict[str, Any] | None) -> None:
    epochs, aps = zip(*sorted(trial.course.items()), strict=True)
    best = study.best
    if best is not None and trial.number == best.number:
        style: dict[str, Any] = {"color": COLOURS[1], "linewidth": 3, "zorder": 4, **_STAR}
        axes.plot(epochs, aps, label=called(study, trial), **style)
    elif look:
        axes.plot(epochs, aps, label=called(study, trial), zorder=5, **look)
    else:
        axes.plot(epochs, aps, color=_SHADE, linewidth=0.6)
        if trial.state in _ENDS:
            end = {"color": SOFT, "markersize": 3.5, "markeredgewidth": 0.7, **_ENDS[trial.state]}
            axes.plot(epochs[-1], aps[-1], **end)
