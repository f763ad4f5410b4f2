"""PASCAL VOC's XML files, and the COCO labels that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kdlab.errors import Fault, UsageError, suggestion

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SHOWN = 20
TURNED = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""

Labels = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """An image of a split: its files relative to the root, and the image's size in bytes."""

    image: str
    xml: str
    size_bytes: int


@dataclass(frozen=True)
class Object:
    """An object as its XML file has it; corners are xmin, ymin, xmax, ymax without their fractions."""

    name: str
    corners: tuple[int, ...]
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class Annotation:
    """The content of an XML file.

    Args:
        words: the texts of <path>, <folder>, <filename>.
        size: recorded width and height, 0 where there is none.
        objects: those that can be used.
        faults: all that cannot.
    """

    words: dict[str, str]
    size: tuple[int, int] = (0, 0)
    objects: tuple[Object, ...] = ()
    faults: tuple[Fault, ...] = ()


def parse(path: Path, image: Path | None = None) -> Annotation:
    """The content of an XML file.

    Args:
        path: the file.
        image: the file whose own size counts where none is recorded.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, ValueError) as error:
        fix = "write the file again, or take its stem out of the split"
        fault = Fault("this XML file does not parse", where=str(path), got=str(error), fix=fix)
        return Annotation({}, faults=(fault,))
    words = {name: tree.findtext(name, "").strip() for name in ("path", "folder", "filename")}
    size, objects, faults = (0, 0), [], []
    try:
        size = _size(tree, image)
    except ValueError as error:
        faults.append(Fault(str(error), where=str(path), fix="give <size> a whole width and height"))
    for number, node in enumerate(tree.findall("object")):
        try:
            objects.append(_object(node))
        except ValueError as error:
            fix = "mend the object, or remove it"
            faults.append(Fault(f"object {number} (from 0) {error}", where=str(path), fix=fix))
    return Annotation(words, size, tuple(objects), tuple(faults))


def _size(tree: ElementTree.Element, image: Path | None) -> tuple[int, int]:
    """Width and height as recorded; the image's own, as it is shown, where none or 0 is."""
    words = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    try:
        width, height = (int(word or 0) for word in words)
    except ValueError as error:
        raise ValueError(f"<size> is not of whole numbers: {' x '.join(words)}") from error
    if image is None or min(width, height) > 0:
        return width, height
    from PIL import Image, UnidentifiedImageError  # few files need it

    try:
        with Image.open(image) as opened:
            width, height = opened.size
            return (height, width) if opened.getexif().get(0x0112) in TURNED else (width, height)
    except UnidentifiedImageError as error:
        raise ValueError(f"there is no <size>, and {image.name} cannot be read") from error


def _object(node: ElementTree.Element) -> Object:
    """An object of an XML file.

    Raises:
        ValueError: what it lacks.
    """
    name = node.findtext("name", "").strip()
    if not name:
        raise ValueError("has no <name>")
    if node.find("bndbox") is None:
        raise ValueError(f"({name}) has no <bndbox>")
    words = [node.findtext(f"bndbox/{corner}", "").strip() for corner in _CORNERS]
    try:
        corners = tuple(int(float(word)) for word in words)
    except (ValueError, OverflowError) as error:
        shown = ", ".join(f"{corner} {word!r}" for corner, word in zip(_CORNERS, words, strict=True))
        raise ValueError(f"({name}) has a box that is not of numbers: {shown}") from error
    difficult = node.findtext("difficult", "").strip() or "0"
    if difficult not in ("0", "1"):
        raise ValueError(f"({name}) has a <difficult> that is neither 0 nor 1: {difficult!r}")
    return Object(name, corners, difficult == "1", node.findtext("truncated", "").strip() == "1")


def converted(
    root: Path, entries: dict[str, list[Entry]], classes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """The classes, and the COCO labels of train and val.

    Raises:
        UsageError: all that is wrong with the XML files, the first twenty in words.
    """
    faults: list[Fault] = []
    files: dict[str, str] = {}
    read: dict[str, list[tuple[Entry, Annotation]]] = {part: [] for part in entries}
    for part, listed in entries.items():
        for entry in listed:
            found = parse(root / entry.xml, root / entry.image)
            read[part].append((entry, found))
            faults += found.faults
            files |= {named.name: entry.xml for named in found.objects}
    order = tuple(classes or sorted(files))
    for name in sorted(files.keys() - set(order)):
        fix = suggestion(name, order) or "add it, or leave dataset.classes out"
        what = f"class {name} is not in dataset.classes"
        faults.append(Fault(what, where=str(root / files[name]), known=", ".join(order), fix=fix))
    if not files and not faults:
        faults.append(Fault("no XML file has an object", where=str(root), fix="choose other splits"))
    if len(faults) > _SHOWN:
        faults[_SHOWN:] = [Fault(f"and {len(faults) - _SHOWN} more faults of the XML files")]
    if faults:
        raise UsageError(faults=faults)
    return order, {
        part: as_coco([(entry.image, entry.xml, found) for entry, found in pairs], order)
        for part, pairs in read.items()
    }


def as_coco(images: Sequence[tuple[str, str, Annotation]], classes: Sequence[str]) -> Labels:
    """A whole COCO file: all ids count from 1, objects stand in the order of their XML file.

    Corners lose 1, as in mmdet's XMLDataset, so that xmin = xmax is a box of width 0.

    Args:
        images: file name, XML file and content of each.
        classes: in the order of their ids.
    """
    category = {name: number for number, name in enumerate(classes, start=1)}
    labels: Labels = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in category.items()],
    }
    for image_id, (file_name, xml, found) in enumerate(images, start=1):
        names = {"id": image_id, "file_name": file_name, "xml": xml}
        labels["images"].append(names | {"width": found.size[0], "height": found.size[1]})
        for entry in found.objects:
            left, top, right, bottom = entry.corners
            box = {
                "id": len(labels["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category[entry.name],
                "bbox": [left - 1, top - 1, right - left, bottom - top],
                "area": max(right - left, 0) * max(bottom - top, 0),
                "iscrowd": int(entry.difficult),
            }
            labels["annotations"].append(box | ({"difficult": 1} if entry.difficult else {}))
    return labels
