"""One image as all models see it: the box that each keeps of an object, and the prior behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kdlab.reporting.diagnosis import Scene
from kdlab.reporting.plots.plot import COLOURS, Plot, figure, framed

if TYPE_CHECKING:
    from kdlab.jobs.diagnosis import Finds

_COLUMNS = ("model", "object", "class", "met", "score", "prior", "prior_x", "prior_y")
_ACROSS = 4
_PANEL = 2.3
"""Inches of a panel's side."""
_LARGEST = 2.0
"""Anchors are drawn up to so many times their object's side: larger ones would hide the picture."""
_CAPTION = (
    "Dashed: the labelled object. Solid, with its score: the box of its class that NMS keeps at IoU 0.5 or "
    "more. Cross: the centre of the prior behind it; dotted: its anchor, where that is not far larger than "
    "the object. Met: share of the ten IoU thresholds at which the evaluation matched a detection, mean over "
    "the objects."
)


def draw(scene: Scene) -> Plot:
    """A panel a model, the teacher first; objects keep their colour in all of them."""
    down = math.ceil(len(scene.models) / _ACROSS)
    across = math.ceil(len(scene.models) / down)
    height, width = scene.pixels.shape[:2]
    grid = figure(0.2 + _PANEL * across, 1.1 + (0.2 + _PANEL * min(2.0, height / width)) * down)
    panels = [*grid.subplots(down, across, squeeze=False).flat]
    rows: list[list[str | float]] = []
    for axes, (name, finds) in zip(panels, scene.models.items(), strict=False):
        met = f", met {10 * finds.met.mean():.0f} %" if len(finds.met) else ""
        axes.set_title(f"{name}{met}", loc="left")
        show(axes, scene.pixels)
        for place, box in enumerate(scene.boxes):
            _object(axes, box, COLOURS[place % len(COLOURS)], finds, place, scene.names[place])
        rows += _numbers(name, scene, finds)
    for spare in panels[len(scene.models) :]:
        spare.remove()
    return framed("Kept boxes", scene.title, _CAPTION, grid, _COLUMNS, rows)


def show(axes: Axes, pixels: Any) -> None:
    """Draw an image (H, W, 3) RGB alone."""
    axes.imshow(pixels, interpolation="nearest")
    bare(axes)


def bare(axes: Axes) -> None:
    """Take ticks, grid and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def outline(
    axes: Axes, box: Sequence[float], colour: str, style: str, width: float = 1.2, depth: int = 1
) -> None:
    """Draw the edges of a box (4,) xyxy in pixels, whose first is centred at 0; over what is less deep."""
    left, top, right, bottom = (float(edge) - 0.5 for edge in box)
    edges = Rectangle(
        (left, top), right - left, bottom - top, fill=False, ec=colour, ls=style, lw=width, zorder=depth
    )
    edges.set_path_effects(_halo(width))
    axes.add_patch(edges)


def _halo(width: float) -> list[Any]:
    """A line's light edge, without which it would vanish on pixels of its own colour."""
    return [patheffects.withStroke(linewidth=width + 1.2, foreground="white", alpha=0.8)]


def _object(axes: Axes, box: Any, colour: str, finds: Finds, place: int, name: str) -> None:
    outline(axes, box, colour, "--", 0.9)
    if np.isnan(finds.score[place]):
        _word(axes, box[0], box[3], "missed", colour, "bottom")
        return
    kept = finds.box[place]
    outline(axes, kept, colour, "-", 1.4)
    _word(axes, kept[0], kept[1], f"{name} {finds.score[place]:.2f}", colour, "bottom")
    if finds.prior[place] < 0:
        return
    prior = finds.prior_box[place]
    centre = (prior[:2] + prior[2:]) / 2 - 0.5
    axes.plot(*centre, "+", color=colour, ms=7, mew=1.6, path_effects=_halo(1.6))
    side, largest = (prior[2:] - prior[:2]).max(), _LARGEST * (box[2:] - box[:2]).max()
    if 0 < side <= largest:
        outline(axes, prior, colour, ":", 0.9)


def _word(axes: Axes, x: float, y: float, text: str, colour: str, side: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    axes.text(x, y, text, size=5.5, color=colour, va=side, bbox=box, clip_on=True)


def _numbers(name: str, scene: Scene, finds: Finds) -> list[list[str | float]]:
    centres = (finds.prior_box[:, :2] + finds.prior_box[:, 2:]) / 2
    return [
        [
            *(name, place, scene.names[place], finds.met[place] / 10, float(finds.score[place])),
            *(int(finds.prior[place]), *map(float, centres[place])),
        ]
        for place in range(len(scene.boxes))
    ]
