"""Maps of P and F side by side: where a student's predictions and features differ from the teacher's."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from kdlab.reporting.diagnosis import Scene
from kdlab.reporting.plots.kept_boxes import bare, outline, show
from kdlab.reporting.plots.plot import COLOURS, Plot, figure, framed

_COLUMNS = ("model", "stride", "P", "F", "correlation")
_PANEL = 1.45
_MAP = "viridis"
_CAPTION = (
    "P: squared difference of class probabilities in a cell, mean over classes and anchors. F: squared "
    "difference of features after the best 1x1 map of the student, mean over channels. Maps of a level share "
    "their scale, from 0 to the largest of them; r: correlation of the two over the cells of this image."
)


def draw(scene: Scene) -> Plot | None:
    """A row a level, P and F of each student side by side; None of an image whose maps were not kept."""
    maps = {name: own for name, own in scene.maps.items() if own}
    if not maps:
        return None
    levels = len(next(iter(maps.values())))
    names = [name for name, own in maps.items() if own[0][1] is not None]
    height, width = scene.pixels.shape[:2]
    row = 0.15 + _PANEL * min(2.0, max(0.5, height / width))
    grid = figure(0.4 + _PANEL * (1 + len(maps) + len(names)), 1.1 + row * levels)
    axes = grid.subplots(levels, 1 + len(maps) + len(names), squeeze=False)
    show(axes[0, 0], scene.pixels)
    for place, box in enumerate(scene.boxes):
        outline(axes[0, 0], box, COLOURS[place % len(COLOURS)], "--", 0.9)
    for spare in axes[1:, 0]:
        spare.remove()
    rows: list[list[str | float]] = []
    for level, panels in enumerate(axes[:, 1:]):
        # the scale of a level's maps, by letter
        scales = {
            letter: max(float(own[level][place].max()) for own in maps.values())
            for place, letter in ((1, "P"), (2, "F"))
            if place == 2 or names
        }
        free = iter(panels)
        for name, own in maps.items():
            stride, prediction, feature = own[level]
            r = _correlation(prediction, feature)
            told = f", r {r:.2f}" if r == r else ""
            for letter, values in (("P", prediction), ("F", feature)):
                if values is not None:
                    below = f"to {scales[letter]:.2g}{told if letter == 'F' else ''}"
                    title = "" if level else f"{letter} {name}"
                    _map(next(free), values, scales[letter], title, below)
            means = float("nan") if prediction is None else float(prediction.mean()), float(feature.mean())
            rows.append([name, stride, *means, r])
        panels[0].set_ylabel(f"stride {stride}")
    return framed("Differences to the teacher", scene.title, _CAPTION, grid, _COLUMNS, rows)


def _map(axes: Axes, values: Any, largest: float, title: str, below: str) -> None:
    axes.imshow(values, cmap=_MAP, vmin=0, vmax=max(largest, 1e-12), interpolation="nearest")
    axes.set_title(title)
    axes.set_xlabel(below, size=7)
    bare(axes)


def _correlation(prediction: Any, feature: Any) -> float:
    """NaN where one of them is missing or flat."""
    if prediction is None or prediction.size < 2 or not (prediction.std() and feature.std()):
        return float("nan")
    return float(np.corrcoef(prediction.ravel(), feature.ravel())[0, 1])
