"""Labels of formats that no dataset of a recipe reads as they are, as one COCO file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

from kdlab.datasets import _images
from kdlab.datasets._coco_labels import UNPRINTABLE, grouped, is_number, is_printable, is_size
from kdlab.datasets._coco_objects import unmeant
from kdlab.datasets._voc_xml import Entry, converted
from kdlab.datasets.base import first_of
from kdlab.drafting.walk import Tree, image_folders, is_file, role
from kdlab.errors import UsageError

Labels = dict[str, Any]
"""The content of a COCO file; an image may have a "role", its split."""
Box = tuple[str, float, float, float, float]
"""Class, left, top, width and height in pixels."""
Point = tuple[float, float]
Case = tuple[str, str, str]
"""Kind, place and fix of something wrong."""

_MEND = "mend it, or take the file away"
_VIDEO = "XML files of CVAT with a <track> or without an <image>, as those for video are"
_VIDEO_FIX = "export it as CVAT for images, or as COCO"
_CUBOID = ("tl1", "bl1", "tr1", "br1", "tl2", "bl2", "tr2", "br2")
_NO_SHAPES = ("tag", "attribute")
"""Elements of CVAT's images that are of the whole image."""
_MOST_FOLDERS = 50
"""Folders in which a file of a similar name is looked for."""


class Labelled(NamedTuple):
    """An image with its boxes, its labels file, and the split that this names; paths below the folder."""

    labels: str
    image: str
    size: tuple[int, int]
    boxes: list[Box]
    subset: str = ""


class _WrongError(Exception):
    """Raised with a case."""


def voc(tree: Tree, files: Sequence[str]) -> Labels:
    """PASCAL VOC's XML files, each with the image of its stem beside it or in any other folder.

    Raises:
        UsageError: all that is wrong with them.
    """
    entries: list[Entry] = []
    cases: list[Case] = []
    for path in files:
        with _told(cases, path):
            image = _one(tree, path, of_xml(tree, path), PurePosixPath(path).stem)
            entries.append(Entry(image, path, (tree.root / image).stat().st_size))
    cases += _twice((entry.image, entry.xml) for entry in entries)
    _refuse(cases, tree.root)
    _, labels = converted(tree.root, {"train": entries}, ())
    return with_roles(labels["train"])


def of_xml(tree: Tree, path: str) -> list[str]:
    """Images of a VOC file's stem; of several in one folder the one that it names."""
    places = by_stem(tree, path)
    if len({PurePosixPath(place).parent for place in places}) == 1 < len(places):
        named = ElementTree.fromstring((tree.root / path).read_bytes()).findtext("filename", "").strip()
        return [place for place in places if PurePosixPath(place).name == named] or places
    return places


def cvat(tree: Tree, files: Sequence[str]) -> Labels:
    """CVAT's XML for images: boxes, and other shapes as the boxes around them.

    Raises:
        UsageError: all that is wrong with them.
    """
    found: list[Labelled] = []
    cases: list[Case] = []
    for path in files:
        try:
            root = ElementTree.fromstring((tree.root / path).read_bytes())
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            cases.append(("XML files that do not parse", f"{path}: {error}", _MEND))
            continue
        if root.find("track") is not None:
            cases.append((_VIDEO, path, _VIDEO_FIX))
        for node in root.iter("image"):
            name = node.get("name", "").replace("\\", "/")
            with _told(cases, f"{path}: {name}"):
                image = _one(tree, path, _by_name(tree, path, name), name)
                size = int(node.get("width", "")), int(node.get("height", ""))
                if not all(map(is_size, size)):
                    raise ValueError(f"the size is {size[0]}x{size[1]}")
                boxes = [_cvat_box(shape) for shape in node if shape.tag not in _NO_SHAPES]
                found.append(Labelled(path, image, size, boxes, node.get("subset", "")))
    if not (found or cases):
        cases.append((_VIDEO, files[0], _VIDEO_FIX))
    return _labels_of(tree, found, cases)


def _cvat_box(shape: ElementTree.Element) -> Box:
    name = shape.get("label", "")
    if shape.tag != "skeleton":
        return around(name, _cvat_points(shape))
    parts = [part for part in shape if part.tag not in _NO_SHAPES and part.get("outside") != "1"]
    return around(name, [point for part in parts for point in _cvat_points(part)])


def _cvat_points(shape: ElementTree.Element) -> list[Point]:
    """Points of a shape between which all of it lies; a rotation is in degrees, about its middle."""

    def numbers(*keys: str) -> list[float]:
        return [float(shape.attrib[key]) for key in keys]

    angle = math.radians(float(shape.get("rotation", "0")))
    if shape.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        if left > right or top > bottom:
            raise ValueError("xtl is above xbr, or ytl above ybr: swapped corners?")
        return _turned([(left, top), (right, top), (right, bottom), (left, bottom)], angle)
    if shape.tag == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        across = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
        down = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
        return [(x - across, y - down), (x + across, y + down)]
    if shape.tag == "mask":
        left, top, width, height = numbers("left", "top", "width", "height")
        return [(left, top), (left + width, top + height)]
    if shape.tag == "cuboid":
        xs, ys = (numbers(*(axis + corner for corner in _CUBOID)) for axis in "xy")
        return [*zip(xs, ys, strict=True)]
    if shape.tag in ("polygon", "polyline", "points"):
        pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
        return [(float(x), float(y)) for x, y in pairs]
    raise ValueError(f"<{shape.tag}> is no shape that is known")


def _turned(corners: list[Point], angle: float) -> list[Point]:
    if not angle:
        return corners
    points = [complex(*corner) for corner in corners]
    middle = sum(points) / len(points)
    turn = complex(math.cos(angle), math.sin(angle))
    turned = [middle + (point - middle) * turn for point in points]
    # CVAT writes hundredths
    return [(round(point.real, 2), round(point.imag, 2)) for point in turned]


def labelme(tree: Tree, files: Sequence[str]) -> Labels:
    """LabelMe's JSON files, one an image: rectangles, and other shapes as the boxes around them.

    Raises:
        UsageError: all that is wrong with them.
    """
    found: list[Labelled] = []
    cases: list[Case] = []
    for path in files:
        with _told(cases, path):
            data = json.loads((tree.root / path).read_bytes())
            boxes = [_shape(shape) for shape in data["shapes"]]
            name = str(data.get("imagePath") or "").replace("\\", "/")
            places = _by_name(tree, path, name) or by_stem(tree, path)
            image = _one(tree, path, places, name or PurePosixPath(path).stem)
            size = data.get("imageWidth"), data.get("imageHeight")
            if not all(map(is_size, size)):
                size = _own_size(tree.root, image)
            found.append(Labelled(path, image, size, boxes))
    return _labels_of(tree, found, cases)


def _own_size(root: Path, image: str) -> tuple[int, int]:
    try:
        return _images.header(root / image).shown
    except (_images.UnreadableError, OSError) as error:
        raise _WrongError("images that cannot be read", f"{image}: {error}", _MEND) from error


def _shape(shape: dict[str, Any]) -> Box:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if shape.get("shape_type") == "circle" and len(points) == 2:
        (x, y), edge = points[0], points[1]
        radius = ((edge[0] - x) ** 2 + (edge[1] - y) ** 2) ** 0.5
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    if not isinstance(shape["label"], str):
        raise ValueError(f"a label is no text: {shape['label']!r}")
    return around(shape["label"], points)


def around(name: str, points: Sequence[Point]) -> Box:
    """The box around points (x, y).

    Raises:
        ValueError: there are none, one is no place in an image, or no class can have this name.
    """
    if not name.strip():
        raise ValueError("a label is blank")
    if not is_printable(name):
        raise ValueError(f"a label {UNPRINTABLE}: {name!a}")
    if not points:
        raise ValueError(f"{name}: a shape without points")
    if odd := [point for point in points if not all(map(is_number, point))]:
        raise ValueError(f"{name}: no place in an image: {odd[0]}")
    xs, ys = zip(*points, strict=True)
    return name, min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _labels_of(tree: Tree, found: Sequence[Labelled], cases: Sequence[Case]) -> Labels:
    """The labels as one COCO file.

    Raises:
        UsageError: there are cases, an image is labelled twice, or the boxes cannot be meant.
    """
    _refuse([*cases, *_twice((one.image, one.labels) for one in found)], tree.root)
    labels = as_coco(found)
    if faults := unmeant(labels, str(tree.root)):
        raise UsageError(faults=faults)
    return with_roles(labels)


def as_coco(found: Sequence[Labelled]) -> Labels:
    """A COCO file; classes are sorted by name, ids count from 1."""
    names = sorted({box[0] for one in found for box in one.boxes})
    labels: Labels = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    for number, (_, image, (width, height), boxes, subset) in enumerate(found, 1):
        # one called "default" says nothing
        known = {"role": said} if (said := role(f"{subset}/-")) else {}
        labels["images"].append({"id": number, "file_name": image, "width": width, "height": height, **known})
        for name, left, top, w, h in boxes:
            place = {"id": len(labels["annotations"]) + 1, "image_id": number}
            place |= {"category_id": names.index(name) + 1, "iscrowd": 0}
            labels["annotations"].append(place | {"bbox": [left, top, w, h], "area": w * h})
    return labels


def with_roles(labels: Labels) -> Labels:
    """The labels, each image with the split that its folder names, unless it has one."""
    for image in labels["images"]:
        image.setdefault("role", role(str(PurePosixPath(image["file_name"]).parent) + "/-"))
    return labels


def by_stem(tree: Tree, labels: str) -> list[str]:
    """Images of a labels file's stem, in its own folder or any other; several where nothing decides."""
    stem = PurePosixPath(labels).stem
    folders = [folder for folder, stems in tree.stems.items() if stem in stems]
    return [
        f"{folder}{name}" for folder in image_folders(labels, folders) for name in tree.stems[folder][stem]
    ]


def _by_name(tree: Tree, labels: str, name: str) -> list[str]:
    """The image that a labels file names, relative to the file, to the root, or by its last part alone."""
    above = PurePosixPath(labels).parent
    for path in (above / name, above / "images" / name, PurePosixPath("images") / name, PurePosixPath(name)):
        if (
            name
            and not path.is_absolute()
            and is_file(tree.root / path)
            and (image := _inside(tree.root, path))
        ):
            return [image]
    last = PurePosixPath(name)
    folders = [folder for folder, stems in tree.stems.items() if last.name in stems.get(last.stem, ())]
    return [f"{folder}{last.name}" for folder in image_folders(labels, folders)]


def _one(tree: Tree, labels: str, places: Sequence[str], name: str) -> str:
    """The image of a labels file.

    Raises:
        _WrongError: it is nowhere, or may be one of several.
    """
    if len(places) == 1:
        return places[0]
    if places:
        fix = "take the other folder away, or call the right one images"
        if len({PurePosixPath(place).parent for place in places}) == 1:
            fix = "take the others away, as masks into a folder of their own, or name the image in the labels"
        raise _WrongError("labels whose image may be one of several", f"{labels}: {first_of(places, 3)}", fix)
    case = f"{labels}: {similar(tree, name) or name}"
    raise _WrongError("labels whose image is not there", case, "put the images there, named as in the labels")


def similar(tree: Tree, name: str) -> str:
    """ "no such file; there is 'a.jpg' (upper or lower case)" of a name that is nowhere as it is; else ""."""
    folders = [*tree.stems][:_MOST_FOLDERS]
    return next(filter(None, (_images.elsewhere(tree.root / folder, name) for folder in folders)), "")


def _inside(root: Path, path: PurePosixPath) -> str | None:
    resolved = (root / path).resolve()
    return (
        resolved.relative_to(root.resolve()).as_posix() if resolved.is_relative_to(root.resolve()) else None
    )


@contextmanager
def _told(cases: list[Case], place: str) -> Iterator[None]:
    """Add to the cases what is wrong with an image's labels."""
    try:
        yield
    except _WrongError as error:
        cases.append(error.args)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else f"{error}"
        cases.append(("labels that cannot be read", f"{place}: {why}", _MEND))


def _twice(pairs: Iterable[tuple[str, str]]) -> Iterator[Case]:
    """A case for each image of several labels; what one of them has is background in the other."""
    files: dict[str, list[str]] = {}
    for image, labels in pairs:
        files.setdefault(image, []).append(labels)
    for image, listed in files.items():
        if len(listed) > 1:
            case = f"{image}: {first_of(listed, 3)}"
            yield (
                "images that are labelled more than once",
                case,
                "keep one of them, or mend the names in them",
            )


def _refuse(cases: Sequence[Case], root: Path) -> None:
    if faults := [*grouped(cases, str(root))]:
        raise UsageError(faults=faults)
