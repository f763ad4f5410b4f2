"""AP against the second objective: what is given up of one for the other."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from kdlab.reporting.plots.plot import COLOURS, INK, WIDTH, Plot, figure, framed, label, legend
from kdlab.reporting.study import Study
from kdlab.reporting.study_plots.marks import AP, WORTH, below, called, looks, lowest, mark, of_study

_NUMBERED = 12
"""Trials of a front that have room for their numbers."""


def draw(study: Study) -> Plot | None:
    """A mark a complete trial, those of the front joined; None with one objective."""
    if len(study.objectives) < 2 or not study.complete:
        return None
    name = study.objectives[1]
    points = {trial.number: (trial.values[1], study.ap(trial)) for trial in study.complete}
    aps = [ap for _, ap in points.values()]
    low = lowest(study, aps)
    grid = figure(WIDTH, 4.0)
    axes = grid.subplots()
    axes.set(xlabel="latency of an image (ms)" if name == "latency" else name, ylabel=AP)
    axes.margins(0.08, 0.12)
    _front(axes, study, points)
    _others(axes, study, points, low)
    legend(grid, axes)
    front = {trial.number for trial in study.front}
    caption = f"Up and to the left is better. {WORTH}{below(aps, low)}"
    rows = [(one.number, one.note, *points[one.number], int(one.number in front)) for one in study.complete]
    columns = ("trial", "reference", name, "AP", "on_front")
    return framed(f"AP against {name}", of_study(study), caption, grid, columns, rows)


def _front(axes: Axes, study: Study, points: dict[int, tuple[float, float]]) -> None:
    """What no other trial surpasses, as a staircase: the highest AP for at most so much latency."""
    xs, ys = zip(*(points[trial.number] for trial in study.front), strict=True)
    axes.step(xs, ys, where="post", color=COLOURS[1], linewidth=1.4)
    axes.plot(xs, ys, "o", color=COLOURS[1], markersize=6.5, markeredgecolor=INK, label=label("Pareto front"))
    if len(xs) <= _NUMBERED:
        for trial, x, y in zip(study.front, xs, ys, strict=True):
            place: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "size": 8}
            axes.annotate(str(trial.number), (x, y), (-3, 5), **place)


def _others(axes: Axes, study: Study, points: dict[int, tuple[float, float]], low: float) -> None:
    special, front = looks(study), {trial.number for trial in study.front}
    surpassed = [point for number, point in points.items() if number not in {*special, *front}]
    mark(axes, surpassed, low, marker="o", color="#a0a0a0", markersize=4, zorder=1, label=label("surpassed"))
    ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.4}
    for trial in study.complete:
        if trial.number in special:
            name = called(study, trial)
            mark(axes, [points[trial.number]], low, label=name, **special[trial.number], **ring)
