"""AP of the trials in the order in which they were asked for: whether the search still finds better ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdlab.reporting.plots.plot import INK, SOFT, WIDTH, Plot, figure, framed, label, legend
from kdlab.reporting.study import Study
from kdlab.reporting.study_plots.marks import (
    AP,
    OTHER,
    WORTH,
    at_edge,
    below,
    end,
    floor,
    looks,
    mark,
    mark_special,
    of_study,
)

_COLUMNS = ("trial", "reference", "state", "AP", "epochs", "best_so_far")


def draw(study: Study) -> Plot | None:
    """A mark a trial and the best so far as a line; None before a trial was measured."""
    aps = {trial.number: ap for trial in study.trials if (ap := end(study, trial)) is not None}
    if not aps:
        return None
    low = _floor(study, aps)
    grid = figure(WIDTH, 3.9)
    axes = grid.subplots()
    axes.set(xlabel="trial", ylabel=AP)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    last = study.trials[-1].number
    axes.set_xlim(-0.5 - 0.02 * last, last + 0.5 + 0.02 * last)
    best = _best_so_far(study)
    _line(axes, best, study)
    _trials(axes, study, aps, low)
    legend(grid, axes)
    hollow = "Hollow: pruned, at its last AP. " if any(one.state == "pruned" for one in study.trials) else ""
    caption = f"{hollow}{WORTH}{below(list(aps.values()), low)}"
    return framed("Trials", of_study(study), caption, grid, _COLUMNS, list(_rows(study, aps, best)))


def _floor(study: Study, aps: dict[int, float]) -> float:
    """What the scale has to show of the trials that came to their end, and of those that did not."""
    ended = {trial.number for trial in study.complete}
    whole = [ap for number, ap in aps.items() if number in ended]
    parts = [ap for number, ap in aps.items() if number not in ended]
    return min([*([floor(whole)] if whole else []), *([floor(parts, far=1.0)] if parts else [])])


def _best_so_far(study: Study) -> dict[int, float]:
    numbers = [trial.number for trial in study.complete]
    return dict(zip(numbers, accumulate(map(study.ap, study.complete), max), strict=True))


def _line(axes: Axes, best: dict[int, float], study: Study) -> None:
    if best:
        last = max(trial.number for trial in study.trials)
        axes.step(
            [*best, last],
            [*best.values(), max(best.values())],
            where="post",
            color=INK,
            linewidth=1.1,
            label=label("best so far"),
        )


def _trials(axes: Axes, study: Study, aps: dict[int, float], low: float) -> None:
    special = looks(study)
    plain = [trial for trial in study.trials if trial.number not in special]
    for state, style in (
        ("complete", OTHER),
        ("pruned", OTHER | {"color": SOFT, "markerfacecolor": "none", "markeredgewidth": 0.9}),
    ):
        points = [
            (trial.number, aps[trial.number])
            for trial in plain
            if trial.state == state and trial.number in aps
        ]
        mark(axes, points, low, label=label(state), **style)
    failed = [trial.number for trial in study.trials if trial.state == "failed"]
    at_edge(failed, axes, marker="x", color=SOFT, markersize=5, label=label("failed"))
    mark_special(axes, study, {number: (number, ap) for number, ap in aps.items()}, low)


def _rows(study: Study, aps: dict[int, float], best: dict[int, float]) -> Iterator[list[str | float]]:
    so_far = math.nan
    for trial in study.trials:
        so_far = best.get(trial.number, so_far)
        ap = aps.get(trial.number, math.nan)
        epochs = math.nan if trial.epochs is None else trial.epochs
        yield [trial.number, trial.note, trial.state, ap, epochs, so_far]
