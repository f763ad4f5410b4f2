"""VOC's XML files as COCO labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kdlab.errors import Fault, UsageError, suggestion

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SHOWN = 20
_TURNED = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""

Labels = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An image of a split: its files relative to the root, and the image's size in bytes."""

    image: str
    xml: str
    size_bytes: int


def converted(
    root: Path, entries: dict[str, list[Entry]], classes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """The classes, and the COCO labels of train and val.

    Raises:
        UsageError: all that is wrong with the XML files, the first twenty in words.
    """
    faults: list[Fault] = []
    read = {part: [_read(root, entry, faults) for entry in listed] for part, listed in entries.items()}
    named = {
        found["name"]: image["xml"]
        for images in read.values()
        for image, objects in images
        for found in objects
    }
    order = tuple(classes) or tuple(sorted(named))
    faults += [
        Fault(
            f"class {name} is not in dataset.classes",
            where=str(root / named[name]),
            known=", ".join(order),
            fix=suggestion(name, order) or "add it, or leave dataset.classes out",
        )
        for name in sorted(named.keys() - set(order))
    ]
    if not named and not faults:
        faults.append(Fault("no XML file has an object", where=str(root), fix="choose other splits"))
    if len(faults) > _SHOWN:
        faults = [*faults[:_SHOWN], Fault(f"and {len(faults) - _SHOWN} more faults of the XML files")]
    if faults:
        raise UsageError(faults=faults)
    return order, {part: _coco(images, order) for part, images in read.items()}


def _read(root: Path, entry: Entry, faults: list[Fault]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image and its objects as COCO has them, but for the ids; what is wrong is added to `faults`."""
    path = root / entry.xml
    image: dict[str, Any] = {"file_name": entry.image, "xml": entry.xml}
    objects: list[dict[str, Any]] = []
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError) as error:
        fix = "write the file again, or take its stem out of the split"
        faults.append(Fault("this XML file does not parse", where=str(path), got=str(error), fix=fix))
        return image, objects
    try:
        image["width"], image["height"] = _size(tree, root / entry.image)
    except ValueError as error:
        faults.append(Fault(str(error), where=str(path), fix="give <size> a whole width and height"))
    for number, node in enumerate(tree.findall("object")):
        try:
            objects.append(_object(node))
        except (ValueError, OverflowError) as error:
            fix = "mend the object, or remove it"
            faults.append(Fault(f"object {number} (from 0) {error}", where=str(path), fix=fix))
    return image, objects


def _size(tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Width and height as recorded; the image's own, as it is shown, where none or 0 is."""
    words = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    try:
        width, height = (int(word or 0) for word in words)
    except ValueError as error:
        raise ValueError(f"<size> is not of whole numbers: {' x '.join(words)}") from error
    if width > 0 and height > 0:
        return width, height
    from PIL import Image, UnidentifiedImageError  # few files need it

    try:
        with Image.open(image) as opened:
            size: tuple[int, int] = opened.size
            return size[::-1] if opened.getexif().get(0x0112) in _TURNED else size
    except UnidentifiedImageError as error:
        raise ValueError(f"there is no <size>, and {image.name} cannot be read") from error


def _object(node: ElementTree.Element) -> dict[str, Any]:
    """An object's class and box, in the words of COCO.

    Corners lose their fraction and then 1, as in mmdet's XMLDataset, so that xmin = xmax is a box of width 0.

    Raises:
        ValueError: what it lacks.
        OverflowError: a corner is infinite.
    """
    name = node.findtext("name", "").strip()
    if not name:
        raise ValueError("has no <name>")
    if node.find("bndbox") is None:
        raise ValueError(f"({name}) has no <bndbox>")
    words = [node.findtext(f"bndbox/{corner}", "").strip() for corner in _CORNERS]
    try:
        left, top, right, bottom = (int(float(word)) - 1 for word in words)
    except (ValueError, OverflowError) as error:
        shown = ", ".join(f"{corner} {word!r}" for corner, word in zip(_CORNERS, words, strict=True))
        raise ValueError(f"({name}) has a box that is not of numbers: {shown}") from error
    flag = node.findtext("difficult", "").strip() or "0"
    if flag not in ("0", "1"):
        raise ValueError(f"({name}) has a <difficult> that is neither 0 nor 1: {flag!r}")
    width, height = right - left, bottom - top
    box = {"bbox": [left, top, width, height], "area": max(width, 0) * max(height, 0), "iscrowd": int(flag)}
    return {"name": name, **box, **({"difficult": 1} if flag == "1" else {})}


def _coco(read: list[tuple[dict[str, Any], list[dict[str, Any]]]], classes: Sequence[str]) -> dict[str, Any]:
    """A whole COCO file: all ids count from 1, objects stand in the order of their XML file."""
    category = {name: number for number, name in enumerate(classes, start=1)}
    annotations: list[dict[str, Any]] = []
    for image_id, (_, objects) in enumerate(read, start=1):
        for found in objects:
            kept = {key: value for key, value in found.items() if key != "name"}
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category[found["name"]]}
            annotations.append(ids | kept)
    return {
        "images": [{"id": number, **image} for number, (image, _) in enumerate(read, start=1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in category.items()],
    }
