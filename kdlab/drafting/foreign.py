"""Labels of formats that no dataset of a recipe reads as they are, as one COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from kdlab.datasets import _images
from kdlab.datasets._coco_labels import grouped
from kdlab.datasets._voc_xml import Entry, converted
from kdlab.drafting.walk import Tree, role
from kdlab.errors import UsageError

Labels = dict[str, Any]
"""The content of a COCO file; an image may have a "role", its split."""
Box = tuple[str, float, float, float, float]
"""Class, left, top, width and height in pixels."""

_MEND = "mend it, or take the file away"


def voc(tree: Tree, files: Sequence[str]) -> Labels:
    """PASCAL VOC's XML files, each with the image of its stem beside it or in any other folder.

    Raises:
        UsageError: all that is wrong with them.
    """
    entries, lacking = [], []
    for path in files:
        image = _image_of(tree, path)
        if image is None:
            lacking.append(("XML files without an image of their name", path, "put the images there"))
        else:
            entries.append(Entry(image, path, (tree.root / image).stat().st_size))
    _refuse(lacking, tree.root)
    _, labels = converted(tree.root, {"train": entries}, ())
    return _with_roles(labels["train"])


def cvat(tree: Tree, files: Sequence[str]) -> Labels:
    """CVAT's XML for images: boxes, and polygons as the boxes around them.

    Raises:
        UsageError: all that is wrong with them.
    """
    found: list[tuple[str, tuple[int, int], list[Box]]] = []
    cases: list[tuple[str, str, str]] = []
    for path in files:
        try:
            root = ElementTree.fromstring((tree.root / path).read_bytes())
        except ElementTree.ParseError as error:
            cases.append(("XML files that do not parse", f"{path}: {error}", _MEND))
            continue
        for node in root.iter("image"):
            name = node.get("name", "")
            image = _named(tree, path, name)
            if image is None:
                cases.append(("images that are not there", f"{path}: {name}", "put the images there"))
                continue
            try:
                size = int(node.get("width", "")), int(node.get("height", ""))
                boxes = list(_cvat_boxes(node))
            except ValueError as error:
                cases.append(("images whose numbers cannot be read", f"{path}: {name}: {error}", _MEND))
                continue
            found.append((image, size, boxes))
    if not (found or cases):
        fix = "export it as CVAT for images, or as COCO"
        cases.append(("XML files of CVAT without an <image>, as those for video are", files[0], fix))
    _refuse(cases, tree.root)
    return _with_roles(as_coco(found))


def _cvat_boxes(node: ElementTree.Element) -> Iterator[Box]:
    for one in node:
        if one.tag == "box":
            left, top, right, bottom = (float(one.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
            yield one.get("label", ""), left, top, right - left, bottom - top
        elif one.tag in ("polygon", "polyline", "points"):
            pairs = [pair.split(",") for pair in one.get("points", "").split(";")]
            yield around(one.get("label", ""), [(float(x), float(y)) for x, y in pairs])


def labelme(tree: Tree, files: Sequence[str]) -> Labels:
    """LabelMe's JSON files, one an image: rectangles, and other shapes as the boxes around them.

    Raises:
        UsageError: all that is wrong with them.
    """
    found: list[tuple[str, tuple[int, int], list[Box]]] = []
    cases: list[tuple[str, str, str]] = []
    for path in files:
        try:
            data = json.loads((tree.root / path).read_bytes())
            boxes = [_shape(shape) for shape in data["shapes"]]
        except (ValueError, KeyError, TypeError) as error:
            cases.append(("files that cannot be read", f"{path}: {type(error).__name__}: {error}", _MEND))
            continue
        name = str(data.get("imagePath") or "").replace("\\", "/")
        image = _named(tree, path, name) or _image_of(tree, path)
        if image is None:
            cases.append(("images that are not there", f"{path}: {name}", "put the images there"))
            continue
        size = data.get("imageWidth"), data.get("imageHeight")
        if not all(isinstance(side, int) and side > 0 for side in size):
            try:
                size = _images.header(tree.root / image).shown
            except (_images.UnreadableError, OSError) as error:
                cases.append(("images that cannot be read", f"{image}: {error}", _MEND))
                continue
        found.append((image, size, boxes))
    _refuse(cases, tree.root)
    return _with_roles(as_coco(found))


def _shape(shape: dict[str, Any]) -> Box:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if shape.get("shape_type") == "circle" and len(points) == 2:
        (x, y), edge = points[0], points[1]
        radius = ((edge[0] - x) ** 2 + (edge[1] - y) ** 2) ** 0.5
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    return around(str(shape["label"]), points)


def around(name: str, points: Sequence[tuple[float, float]]) -> Box:
    """The box around points (x, y).

    Raises:
        ValueError: there are none.
    """
    if not points:
        raise ValueError("a shape without points")
    xs, ys = zip(*points, strict=True)
    return name, min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def as_coco(found: Sequence[tuple[str, tuple[int, int], Sequence[Box]]]) -> Labels:
    """A COCO file of (image, (width, height), boxes); classes are sorted by name, ids count from 1."""
    names = sorted({box[0] for _, _, boxes in found for box in boxes})
    labels: Labels = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }
    for number, (image, (width, height), boxes) in enumerate(found, 1):
        labels["images"].append({"id": number, "file_name": image, "width": width, "height": height})
        for name, left, top, w, h in boxes:
            place = {"id": len(labels["annotations"]) + 1, "image_id": number}
            place |= {"category_id": names.index(name) + 1, "iscrowd": 0}
            labels["annotations"].append(place | {"bbox": [left, top, w, h], "area": w * h})
    return labels


def _with_roles(labels: Labels) -> Labels:
    for image in labels["images"]:
        image["role"] = role(str(PurePosixPath(image["file_name"]).parent) + "/-")
    return labels


def _image_of(tree: Tree, labels: str) -> str | None:
    """The image that bears the stem of a labels file: beside it, else in the only folder that has one."""
    place = PurePosixPath(labels)
    own = "" if str(place.parent) == "." else f"{place.parent}/"
    folders = [folder for folder, stems in tree.stems.items() if place.stem in stems]
    if own in folders:
        folders = [own]
    if len(folders) > 1:
        # annotations/train beside images/train
        folders = [folder for folder in folders if role(f"{folder}-") == role(labels)][:1]
    return f"{folders[0]}{tree.stems[folders[0]][place.stem]}" if folders else None


def _named(tree: Tree, labels: str, name: str) -> str | None:
    """The image that a labels file names, relative to the file, to the root, or by its last part alone."""
    above = PurePosixPath(labels).parent
    for path in (above / name, above / "images" / name, PurePosixPath("images") / name, PurePosixPath(name)):
        if name and not path.is_absolute() and (tree.root / path).is_file():
            return _inside(tree.root, path)
    last = PurePosixPath(name)
    places = [
        f"{folder}{last.name}" for folder, stems in tree.stems.items() if stems.get(last.stem) == last.name
    ]
    return places[0] if len(places) == 1 else None


def _inside(root: Path, path: PurePosixPath) -> str | None:
    resolved = (root / path).resolve()
    return (
        resolved.relative_to(root.resolve()).as_posix() if resolved.is_relative_to(root.resolve()) else None
    )


def _refuse(cases: list[tuple[str, str, str]], root: Path) -> None:
    if faults := [*grouped(cases, str(root))]:
        raise UsageError(faults=faults)
