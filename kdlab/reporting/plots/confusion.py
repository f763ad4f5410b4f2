"""Confusion matrices: which classes each arm takes for one another, and for the background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kdlab.reporting.comparison import Comparison
from kdlab.reporting.error_table import BACKGROUND, matrices
from kdlab.reporting.plots.plot import WIDTH, Plot, figure, framed, of_what
from kdlab.reporting.tables import printable
from kdlab.reporting.tide import CONFUSED_SCORE, FOREGROUND

_MOST = 20
"""Classes that a panel shows; of more, those that students confuse most."""
_A_ROW, _MOST_PANELS = 3, 9
_NUMBERED = 12
"""Classes up to which fields have their numbers in them."""
_DARK = 0.6
"""Share from which a field is too dark for black text."""
_COLUMNS = ("arm", "object", "detection", "count", "share")


def draw(comparison: Comparison) -> Plot | None:
    """A panel an arm, the teacher's first: a row an object's class, a column what it is taken for."""
    found = matrices(comparison)
    if not found:
        return None
    names = [*map(printable, comparison.classes), BACKGROUND]
    chosen = _chosen(found, len(names) - 1)
    shown = min(_MOST_PANELS, len(found))
    columns = min(_A_ROW, shown)
    rows = math.ceil(shown / columns)
    side = max(WIDTH / _A_ROW, 0.9 + (0.29 if len(chosen) <= _NUMBERED else 0.17) * len(chosen))
    grid = figure(max(WIDTH, side * columns), 1.0 + (side + 0.45) * rows)
    # a row's labels are not to touch the next one's titles
    grid.set_layout_engine("constrained", h_pad=0.12)
    axes = list(grid.subplots(rows, columns, squeeze=False, sharey=True).flat)
    told: list[list[str | float]] = []
    for place, (arm, matrix) in enumerate(found.items()):
        shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-9)
        if place < shown:
            _panel(axes[place], arm, shares[np.ix_(chosen, chosen)], [names[one] for one in chosen])
        for i, j in np.argwhere(matrix > 0).tolist():
            told.append([arm, names[i], names[j], float(matrix[i, j]), float(shares[i, j])])
    for first in axes[::columns]:
        first.set_ylabel("object", size=8)
    for spare in axes[shown:]:
        spare.remove()
    caption = (
        f"Percent of the objects of a row's class, mean over seeds; score {CONFUSED_SCORE:g} or more, IoU "
        f"{FOREGROUND:g}. Last column: objects not found. Last row: detections on no object, percent of them."
    )
    if left := len(names) - len(chosen):
        caption += f" {left} classes that are confused less are left out."
    if len(found) > shown:
        caption += f" {len(found) - shown} more arms are in the CSV."
    return framed("Confusion", of_what(comparison), caption, grid, _COLUMNS, told)


def _chosen(found: dict[str, Any], classes: int) -> list[int]:
    """Places of the classes to show and of the background, in the order of the labels."""
    students = [matrix for name, matrix in found.items() if name != "teacher"] or [*found.values()]
    between = sum(matrix[:classes, :classes] for matrix in students)
    wrong = between.sum(0) + between.sum(1) - 2 * between.diagonal()
    most = np.argsort(-wrong, kind="stable")[:_MOST]
    return [*sorted(most.tolist()), classes]


def _panel(axes: Axes, arm: str, shares: Any, names: Sequence[str]) -> None:
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(arm, loc="left")
    size = 7 if len(names) <= _NUMBERED else 5.5
    axes.set_xticks(range(len(names)), names, rotation=90, size=size)
    axes.set_yticks(range(len(names)), names, size=size)
    axes.grid(False)
    axes.set_xlabel("detection", size=8)
    if len(names) > _NUMBERED:
        return
    for i, j in np.argwhere(shares >= 0.005).tolist():
        ink = "white" if shares[i, j] > _DARK else "black"
        axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", size=6, color=ink)
