"""Detections of all models side by side: a row an image, a column a model, the labelled objects first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from kdlab.reporting.plots.kept_boxes import bare, outline
from kdlab.reporting.plots.plot import COLOURS, WIDTH, Plot, figure, framed, signed
from kdlab.reporting.predictions import Predictions, Seen
from kdlab.reporting.tables import printable

ROWS = 4
"""Images of a page."""
_NARROW, _WIDE = 2.3, 4.6
"""Inches of a panel, of many and of one beside another."""
_HEAD, _FOOT = 0.45, 0.9
_FLAT, _TALL = 0.4, 1.6
"""Height over width of a panel at least and at most."""
_NEAR, _LONG = 0.06, 0.2
"""Height and length of the words at a box, as shares of the image."""
_SIZES, _MANY = (6.5, 5.0), 8
"""Points of the words at few and at many boxes."""
_WHAT = {
    "best": "Images in which the arms gain most over the baseline",
    "worst": "Images in which the arms lose most against the baseline",
    "": "Detections",
}
_CAPTION = (
    "Boxes with a score of {threshold:g} or more, each with its class and score; a class keeps its colour."
)
_WITH_LABELS = " AP: of this image alone, mean over the classes in it and IoU 0.50 to 0.95, all scores."
_WITH_BASELINE = " In brackets: the difference to the baseline."
_LETTERS = 14
"""Of a file's or a model's name on an inch."""


def pages(found: Predictions, read: Callable[[Seen], Any]) -> Iterator[Plot]:
    """Pages of up to `ROWS` images each; those that gain and those that lose are on pages of their own.

    Args:
        found: what to draw.
        read: (H, W, 3) RGB of an image.
    """
    for group, images in groupby(found.images, key=lambda image: image.group):
        own = list(images)
        for start in range(0, len(own), ROWS):
            yield _page(found, own[start : start + ROWS], _WHAT[group], read)


def _page(found: Predictions, images: Sequence[Seen], what: str, read: Callable[[Seen], Any]) -> Plot:
    across = len(found.models) + found.labelled
    panel = max(_NARROW, min(_WIDE, WIDTH / across))
    shapes = [min(_TALL, max(_FLAT, image.height / image.width)) for image in images]
    grid = figure(0.3 + panel * across, _FOOT + sum(_HEAD + panel * shape for shape in shapes))
    panels = grid.subplots(len(images), across, squeeze=False, height_ratios=shapes)
    for row, image, shape in zip(panels, images, shapes, strict=True):
        pixels, places = read(image), list(row)
        places[0].set_ylabel(_end_of(image.name, panel * shape), size=7)
        if found.labelled:
            objects = image.objects or ()
            title = "not labelled" if image.objects is None else f"labels\n{_boxes(len(objects), 'object')}"
            _draw(places.pop(0), pixels, title, [(row, found.classes[int(row[4])]) for row in objects])
        for axes, model in zip(places, found.models, strict=True):
            shown = image.shown(model, found.threshold)
            words = [f"{found.classes[int(label)]} {score:.2f}" for *_, score, label in shown]
            title = f"{_end_of(model, panel)}\n{_told(found, image, model, len(shown))}"
            _draw(axes, pixels, title, list(zip(shown, words, strict=True)))
    caption = _CAPTION.format(threshold=found.threshold)
    if found.labelled:
        caption += _WITH_LABELS + (_WITH_BASELINE if found.baseline else "")
    return framed(what, found.title, caption, grid, (), ())


def _told(found: Predictions, image: Seen, model: str, boxes: int) -> str:
    """ "AP 84.2 (+12.0), 5 boxes"."""
    ap, base = image.ap.get(model), image.ap.get(found.baseline or "")
    if ap is None:
        return _boxes(boxes, "box")
    against = "" if base is None or model == found.baseline else f" ({signed(ap - base)})"
    return f"AP {ap:.1f}{against}, {_boxes(boxes, 'box')}"


def _end_of(name: str, inches: float) -> str:
    """As much of a name as there is room for; of a path the file, of an arm its options and its seed."""
    name, room = printable(name), int(_LETTERS * inches)
    return name if len(name) <= room else f"...{name[3 - room :]}"


def _boxes(count: int, what: str) -> str:
    plural = {"box": "boxes", "object": "objects"}
    return f"{count} {what if count == 1 else plural[what]}"


def _draw(axes: Axes, pixels: Any, title: str, rows: Sequence[tuple[Sequence[float], str]]) -> None:
    """An image with a frame and words at each box, the first on top; a row ends in its label."""
    axes.set_title(title, loc="left", size=8)
    axes.imshow(pixels)
    bare(axes)
    near, end = _NEAR * max(pixels.shape[:2]), (1 - _LONG) * pixels.shape[1]
    size = _SIZES[len(rows) > _MANY]
    written: list[tuple[float, float]] = []
    for (x, y, width, height, *_, label), text in rows:
        colour = COLOURS[int(label) % len(COLOURS)]
        depth = 2 + len(rows) - len(written)
        outline(axes, (x, y, x + width, y + height), colour, "-", 0.9, depth)
        taken = any(abs(x - left) < near and abs(y - top) < near for left, top in written)
        written.append((x, y))
        # above the box, inside it at the image's edge, and below it where another box has its words above
        place, side = (y + height, "top") if taken else (y, "top" if y < near else "bottom")
        ink = "white" if _is_dark(colour) else "black"
        box = {"facecolor": colour, "edgecolor": "none", "alpha": 0.85, "pad": 0.7}
        # at the right edge flush with the box's other side
        at, flush = (min(x + width, pixels.shape[1]), "right") if x > end else (x, "left")
        axes.text(
            at, place, text, size=size, color=ink, va=side, ha=flush, bbox=box, clip_on=True, zorder=depth
        )


def _is_dark(colour: str) -> bool:
    """Whether white words are read better on it than black ones."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
