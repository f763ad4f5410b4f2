"""Ultralytics' label files, a line an object, and the COCO labels that they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlab.datasets import _images
from kdlab.datasets._coco_labels import grouped, is_printable
from kdlab.datasets._coco_objects import unmeant
from kdlab.datasets.base import NOT_REGULAR, content_of, is_odd
from kdlab.errors import Fault, UsageError

_ROUNDING = 1e-3
"""How far numbers and boxes reach out of 0 to 1 because their digits were cut."""
_PIXELS_FROM = 2.0
_FEW, _NEARLY, _OUT = 3, 0.9, 0.05
"""Boxes that are too few to tell corners from sizes, the share that is nearly all, and what reaches out."""
_DECIMALS = 4
"""Digits of boxes in pixels; finer is the noise of the multiplication."""

_TEXT = "lines with text among the numbers"
_NOT_FINITE = "lines with nan, inf or a number that is too large"
_COUNT = "lines that are neither a box (class cx cy w h) nor a polygon (class x1 y1 x2 y2 x3 y3 ...)"
_NO_CLASS = "lines whose class is no whole number from 0 on"
_PAST = "lines whose class is not among the names"
_IN_PIXELS = "lines whose numbers look like pixels"
_OUTSIDE = "lines with a number outside 0 to 1"
_CORNERS = "lines that are likely class x1 y1 x2 y2, two corners"
_UNREADABLE = "images whose size cannot be read"
_FIXES = {
    _TEXT: "write numbers alone, with a point and with blanks between them",
    _NOT_FINITE: "mend the lines, or remove them",
    _COUNT: "write five numbers, or the class and the corners of a polygon",
    _NO_CLASS: "write the number of the class, counted from 0",
    _IN_PIXELS: "divide x and width by the width of the image, y and height by its height",
    _OUTSIDE: "write fractions of the image, with the centre inside of it",
    _CORNERS: "write class cx cy w h: the centre, the width and the height",
    _UNREADABLE: "mend the image, or take it out of its split",
}
_COUNT_FIXES = {
    4: "write the number of the class before the box",
    6: "is the last one a confidence? take it out",
}
Labels = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An image of a split.

    Args:
        image: its file, relative to the root.
        txt: the label file that belongs to it, there or not.
        has_txt: whether it is there; an image without one has no objects.
        size_bytes: of the image.
    """

    image: str
    txt: str
    has_txt: bool
    size_bytes: int


@dataclass(frozen=True)
class Object:
    """An object as its line has it.

    Args:
        label: the number of its class.
        box: left, top, width and height as fractions of the image.
        line: number of the line, from 1.
        polygon: whether the line has a polygon, whose bounding box this is.
    """

    label: int
    box: tuple[float, float, float, float]
    line: int
    polygon: bool


class _WrongError(ValueError):
    """Raised with the kind of a fault and its fix."""


def parse(text: str, classes: int) -> tuple[list[Object], list[tuple[int, str, str, str]]]:
    """The objects of a label file, and line, kind, text and fix of each line that is wrong.

    Args:
        text: of the file; blank lines are passed over.
        classes: how many there are.
    """
    objects, wrong = [], []
    for line, content in enumerate(text.splitlines(), start=1):
        if words := content.split():
            try:
                objects.append(_object(words, classes, line))
            except _WrongError as error:
                what, fix = error.args
                shown = " ".join(words)
                wrong.append((line, what, shown if is_printable(shown) else ascii(shown), fix))
    return objects, wrong


def _object(words: list[str], classes: int, line: int) -> Object:
    """The object of a line.

    Raises:
        _WrongError: what is wrong with it.
    """
    try:
        label, *numbers = map(float, words)
    except ValueError as error:
        raise _WrongError(_TEXT, _FIXES[_TEXT]) from error
    if "_" in "".join(words):
        raise _WrongError(_TEXT, _FIXES[_TEXT])
    if not all(map(math.isfinite, (label, *numbers))):
        raise _WrongError(_NOT_FINITE, _FIXES[_NOT_FINITE])
    if len(numbers) < 4 or len(numbers) % 2:
        raise _WrongError(_COUNT, _COUNT_FIXES.get(len(words), _FIXES[_COUNT]))
    if label < 0 or not label.is_integer():
        raise _WrongError(_NO_CLASS, _FIXES[_NO_CLASS])
    if label >= classes:
        raise _WrongError(_PAST, f"the last is {classes - 1}: add its name, or mend the lines")
    if max(numbers) > _PIXELS_FROM:
        raise _WrongError(_IN_PIXELS, _FIXES[_IN_PIXELS])
    if min(numbers) < -_ROUNDING or max(numbers) > 1 + _ROUNDING:
        raise _WrongError(_OUTSIDE, _FIXES[_OUTSIDE])
    return Object(int(label), _box(numbers), line, len(numbers) > 4)


def _box(numbers: list[float]) -> tuple[float, float, float, float]:
    """Left, top, width and height; a border that lies outside by no more than rounding is the image's."""
    if len(numbers) > 4:
        xs, ys = numbers[::2], numbers[1::2]
        sides = [(min(xs), max(xs)), (min(ys), max(ys))]
    else:
        centre, size = numbers[:2], [max(side, 0.0) for side in numbers[2:]]
        sides = [(at - side / 2, at + side / 2) for at, side in zip(centre, size, strict=True)]
    (left, right), (top, bottom) = ((_inside(low), _inside(high)) for low, high in sides)
    return left, top, right - left, bottom - top


def _inside(place: float) -> float:
    return min(max(place, 0.0), 1.0) if -_ROUNDING <= place <= 1 + _ROUNDING else place


def converted(root: Path, entries: dict[str, list[Entry]], names: Sequence[str]) -> dict[str, Labels]:
    """The COCO labels of train and val; all ids count from 1, objects stand in the order of their lines.

    Args:
        root: what the entries are relative to.
        entries: the images of each split.
        names: of the classes, in the order of their numbers.

    Raises:
        UsageError: each kind of what is wrong with lines and images, with its number and the first few; or no
            object is left.
        OSError: a label file cannot be read.
    """
    cases: list[tuple[str, str, str]] = []
    labels = {part: _as_coco(root, listed, names, cases) for part, listed in entries.items()}
    faults: list[Fault] = [*grouped(dict.fromkeys(cases), str(root))]
    if not faults:
        for part, content in labels.items():
            if _are_corners(content):
                what, fix = f"{_CORNERS}: nearly all", _FIXES[_CORNERS]
                faults.append(Fault(what, where=f"{root}  dataset.{part}", fix=fix))
                continue
            faults += unmeant(content, f"{root}  dataset.{part}")
    if faults:
        raise UsageError(faults=faults)
    return labels


def _are_corners(labels: Labels) -> bool:
    """True where nearly all lines can be two corners, and a quarter of their boxes reach out of the image."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in labels["images"]}
    corners = beyond = 0
    for box in labels["annotations"]:
        places = list(zip(box["bbox"][:2], box["bbox"][2:], sizes[box["image_id"]], strict=True))
        corners += all(low + length / 2 < length for low, length, _ in places)
        beyond += any(low < -_OUT * side or low + length > (1 + _OUT) * side for low, length, side in places)
    return corners > max(_FEW, _NEARLY * len(labels["annotations"])) and 4 * beyond >= corners


def _as_coco(
    root: Path, entries: Sequence[Entry], names: Sequence[str], cases: list[tuple[str, str, str]]
) -> Labels:
    """A whole COCO file; kind, place and fix of all that is wrong are added to `cases`."""
    labels: Labels = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    for image_id, entry in enumerate(entries, start=1):
        try:
            width, height = _size(root / entry.image)
        except _images.UnreadableError as error:
            cases.append((_UNREADABLE, f"{entry.image}: {error}", _FIXES[_UNREADABLE]))
            width = height = 1
        image = {"id": image_id, "file_name": entry.image, "txt": entry.txt}
        labels["images"].append(image | {"width": width, "height": height})
        text = content_of(root / entry.txt).decode("utf-8-sig", "replace") if entry.has_txt else ""
        objects, wrong = parse(text, len(names))
        cases += [(what, f"{entry.txt}:{line}: {got}", fix) for line, what, got, fix in wrong]
        for found in objects:
            sides = zip(found.box, (width, height, width, height), strict=True)
            box = [round(share * side, _DECIMALS) for share, side in sides]
            labels["annotations"].append(
                {
                    "id": len(labels["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": found.label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "line": found.line,
                }
                | ({"polygon": 1} if found.polygon else {})
            )
    return labels


def _size(image: Path) -> tuple[int, int]:
    """Width and height of an image as it is shown, which the numbers of its labels are fractions of.

    Raises:
        _images.UnreadableError: it has none.
    """
    if is_odd(image):
        raise _images.UnreadableError(NOT_REGULAR)
    return _images.header(image).shown
