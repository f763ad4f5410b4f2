"""PASCAL VOC's XML files, and the COCO labels that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from kdlab.datasets._coco_labels import UNPRINTABLE, grouped, is_number, is_printable, is_size
from kdlab.datasets._coco_objects import unmeant
from kdlab.datasets.base import content_of
from kdlab.errors import Fault, UsageError, suggestion

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_UNPARSED = "XML files that do not parse"
_NOT_VOC = "XML files without an <annotation>"
_NAMESPACE = "XML files with a namespace, whose tags no reader of VOC knows"
_NO_SIZE = "XML files whose <size> is not of whole numbers from 0 to a million"
_UNREADABLE = "XML files without a <size>, whose image cannot be read"
_STRAY = "XML files with a <bndbox> that is in no <object>"
_NO_NAME, _NO_BOX = "objects without a <name>", "objects without a <bndbox>"
_ODD_NAME = f"objects whose <name> {UNPRINTABLE}"
_NO_NUMBERS = "objects whose box is not of numbers"
_SWAPPED = "objects whose xmin is above xmax, or ymin above ymax: swapped corners?"
_DIFFICULT = "objects whose <difficult> is neither 0 nor 1"
_MEND = "mend the objects, or remove them"
_FIXES = {
    _UNPARSED: "write them again as UTF-8, or take their stems out of the split",
    _NAMESPACE: "take xmlns out of <annotation>",
    _NOT_VOC: "write VOC's XML, or take their stems out of the split",
    _STRAY: "write each as <object> directly below <annotation>, in small letters and without xmlns",
    _NO_SIZE: "give <size> a whole width and height",
    _UNREADABLE: "give <size> a width and height, or mend the image",
    _SWAPPED: "swap them; where they hold x, y, width and height, add xmin to xmax and ymin to ymax",
    _DIFFICULT: "write 0 or 1, or remove it: it is then 0",
}
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
        faults: kind and place of all that cannot.
    """

    words: dict[str, str]
    size: tuple[int, int] = (0, 0)
    objects: tuple[Object, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()


class _WrongError(ValueError):
    """Raised with the kind of a fault, and what was got."""


def parse(path: Path, image: Path | None = None) -> Annotation:
    """The content of an XML file.

    Args:
        path: the file.
        image: the file whose own size counts where none is recorded.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        tree = ElementTree.fromstring(content_of(path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return Annotation({}, faults=((_UNPARSED, f"{path.name}: {error}"),))
    if tree.tag.startswith("{"):
        return Annotation({}, faults=((_NAMESPACE, f"{path.name}: {tree.tag}"),))
    if tree.tag != "annotation" and tree.find("object") is None:
        return Annotation({}, faults=((_NOT_VOC, f"{path.name}: <{tree.tag}>"),))
    strays = [
        place.tag
        for child in tree
        if child.tag != "object"
        for place in child.iter()
        if place.tag.rpartition("}")[2].lower() == "bndbox"
    ]
    if strays:
        return Annotation({}, faults=((_STRAY, f"{path.name}: {len(strays)}"),))
    words = {name: tree.findtext(name, "").strip() for name in ("path", "folder", "filename")}
    size, objects, faults = (0, 0), [], []
    try:
        size = _size(tree, image)
    except _WrongError as error:
        faults.append((error.args[0], f"{path.name}: {error.args[1]}"))
    for number, node in enumerate(tree.findall("object")):
        try:
            objects.append(_object(node))
        except _WrongError as error:
            faults.append((error.args[0], f"{path.name} object {number} (from 0): {error.args[1]}"))
    return Annotation(words, size, tuple(objects), tuple(faults))


def _size(tree: ElementTree.Element, image: Path | None) -> tuple[int, int]:
    """Width and height as recorded; the image's own, as it is shown, where none or 0 is."""
    words = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    try:
        width, height = (int(word or 0) for word in words)
    except ValueError as error:
        raise _WrongError(_NO_SIZE, " x ".join(words)) from error
    if not all(side == 0 or is_size(side) for side in (width, height)):
        raise _WrongError(_NO_SIZE, " x ".join(words))
    if image is None or min(width, height) > 0:
        return width, height
    from kdlab.datasets import _images  # few files need it

    try:
        return _images.header(image).shown
    except _images.UnreadableError as error:
        raise _WrongError(_UNREADABLE, f"{image.name}: {error}") from error


def _object(node: ElementTree.Element) -> Object:
    """An object of an XML file.

    Raises:
        _WrongError: what it lacks.
    """
    name = node.findtext("name", "").strip()
    if not name:
        raise _WrongError(_NO_NAME, "no <name>")
    if not is_printable(name):
        raise _WrongError(_ODD_NAME, ascii(name))
    if node.find("bndbox") is None:
        raise _WrongError(_NO_BOX, name)
    words = [node.findtext(f"bndbox/{corner}", "").strip() for corner in _CORNERS]
    shown = f"{name}, " + ", ".join(f"{key} {word!r}" for key, word in zip(_CORNERS, words, strict=True))
    try:
        corners = tuple(int(float(word)) for word in words)
    except (ValueError, OverflowError) as error:
        raise _WrongError(_NO_NUMBERS, shown) from error
    if not all(map(is_number, corners)):
        raise _WrongError(_NO_NUMBERS, shown)
    if corners[0] > corners[2] or corners[1] > corners[3]:
        raise _WrongError(_SWAPPED, shown)
    difficult = node.findtext("difficult", "").strip() or "0"
    if difficult not in ("0", "1"):
        raise _WrongError(_DIFFICULT, f"{name}, {difficult!r}")
    return Object(name, corners, difficult == "1", node.findtext("truncated", "").strip() == "1")


def converted(
    root: Path, entries: dict[str, list[Entry]], classes: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """The classes, and the COCO labels of train and val.

    Raises:
        UsageError: each kind of what is wrong with the XML files, with its number and the first few; or no
            object is left.
    """
    cases: list[tuple[str, str]] = []
    files: dict[str, str] = {}
    read: dict[str, list[tuple[Entry, Annotation]]] = {part: [] for part in entries}
    for part, listed in entries.items():
        for entry in listed:
            found = parse(root / entry.xml, root / entry.image)
            read[part].append((entry, found))
            cases += found.faults
            files |= {named.name: entry.xml for named in found.objects}
    faults = [*grouped(((what, case, _FIXES.get(what, _MEND)) for what, case in cases), str(root))]
    order = tuple(classes or sorted(files))
    for name in sorted(files.keys() - set(order)):
        fix = suggestion(name, order) or "add it, or leave dataset.classes out"
        what = f"class {name} is not in dataset.classes"
        faults.append(Fault(what, where=str(root / files[name]), known=", ".join(order), fix=fix))
    if not files and not faults:
        faults.append(Fault("no XML file has an object", where=str(root), fix="choose other splits"))
    if faults:
        raise UsageError(faults=faults)
    labels = {
        part: as_coco([(entry.image, entry.xml, found) for entry, found in pairs], order)
        for part, pairs in read.items()
    }
    for part, content in labels.items():
        faults += unmeant(content, f"{root}  dataset.{part}")
    if faults:
        raise UsageError(faults=faults)
    return order, labels


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
