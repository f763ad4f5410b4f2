"""PASCAL VOC's XML files: what the conversion to COCO leaves behind or takes away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from kdlab.inspection.findings import Found, Place

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class XmlFile:
    """An XML file with the split and the image that it belongs to."""

    split: str
    path: Path
    image: str


@dataclass(frozen=True)
class Annotation:
    """What an XML file says.

    Args:
        file: which one.
        words: the texts of <path>, <folder>, <filename>.
        size: recorded width and height, 0 where there is none.
        objects: name, corners, difficult and truncated of each object that has a box.
    """

    file: XmlFile
    words: dict[str, str]
    size: tuple[int, int]
    objects: list[tuple[str, tuple[int, ...], bool, bool]]


def read(files: Sequence[XmlFile]) -> tuple[list[Annotation], list[tuple[str, Place]]]:
    """The files, and those that cannot be read."""
    read, found = [], []
    for file in files:
        try:
            tree = ElementTree.fromstring(file.path.read_bytes())
            read.append(_annotation(file, tree))
        except (OSError, ElementTree.ParseError, ValueError, OverflowError) as error:
            found.append(("xml-unreadable", Place(file.split, file.path.name, detail=str(error))))
    return read, found


def _annotation(file: XmlFile, tree: ElementTree.Element) -> Annotation:
    words = {name: tree.findtext(name, "").strip() for name in ("path", "folder", "filename")}
    width, height = (int(tree.findtext(f"size/{side}", "").strip() or 0) for side in ("width", "height"))
    objects = []
    for node in tree.findall("object"):
        corners = tuple(int(float(node.findtext(f"bndbox/{corner}", ""))) for corner in _CORNERS)
        flags = [node.findtext(flag, "").strip() == "1" for flag in ("difficult", "truncated")]
        objects.append((node.findtext("name", "").strip(), corners, flags[0], flags[1]))
    return Annotation(file, words, (width, height), objects)


def check(read: Sequence[Annotation]) -> Found:
    """All checks of XML files, over all splits at once."""
    yield from _paths(read)
    folders = Counter(found.words["folder"] for found in read)
    usual = max(folders, key=folders.__getitem__, default="")
    for found in read:
        file, words = found.file, found.words
        if words["folder"] != usual:
            yield "xml-folder", Place(file.split, file.path.name, detail=f"{words['folder']}, most {usual}")
        if words["filename"] and not _is_name(words["filename"], file.image):
            yield "xml-filename", Place(file.split, file.path.name, detail=words["filename"])
        if min(found.size) <= 0:
            yield "xml-size", Place(file.split, file.path.name)
    yield from _flags(read)
    yield from _one_based(read)


def _is_name(word: str, image: str) -> bool:
    name = PurePosixPath(image)
    return word in (name.name, name.stem)


def _paths(read: Sequence[Annotation]) -> Found:
    """Grouped by the first two folders, which name the machine and the user."""
    groups: Counter[str] = Counter()
    for found in read:
        path = found.words["path"].replace("\\", "/")
        is_absolute = path.startswith("/") or path[1:3] == ":/"
        if is_absolute and not Path(found.words["path"]).exists():
            groups["/".join(path.split("/")[:3])] += 1
    for top, count in groups.most_common():
        yield "xml-path", Place("", detail=f"{count} of {top}/...", count=count)


def _flags(read: Sequence[Annotation]) -> Found:
    objects = [(found.file.split, difficult, cut) for found in read for _, _, difficult, cut in found.objects]
    if objects and not any(difficult for _, difficult, _ in objects):
        yield "xml-difficult", Place("", count=len(objects))
    for split, count in Counter(split for split, _, cut in objects if cut).items():
        yield "xml-truncated", Place(split, count=count)


def _one_based(read: Sequence[Annotation]) -> Found:
    lows = [value for found in read for _, corners, *_ in found.objects for value in corners[:2]]
    if not lows or min(lows) != 1:
        return
    counts = Counter(
        found.file.split
        for found in read
        for _, (_, _, right, bottom), *_ in found.objects
        if right == found.size[0] or bottom == found.size[1]
    )
    for split, count in counts.items():
        yield "xml-one-based", Place(split, count=count)


def as_coco(read: Sequence[Annotation], classes: Sequence[str]) -> dict[str, Any]:
    """COCO labels of XML files that no split names; ids count from 1, corners lose 1."""
    names = [*classes, *sorted({name for found in read for name, *_ in found.objects} - set(classes))]
    number = {name: place for place, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, found in enumerate(read, start=1):
        width, height = found.size
        image = {"id": image_id, "file_name": found.file.image, "width": width, "height": height}
        images.append(image | {"xml": str(found.file.path)})
        for name, (left, top, right, bottom), difficult, _ in found.objects:
            box = [left - 1, top - 1, right - left, bottom - top]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "bbox": box}
            annotations.append(entry | {"category_id": number[name], "iscrowd": int(difficult)})
    categories = [{"id": place, "name": name} for name, place in number.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
