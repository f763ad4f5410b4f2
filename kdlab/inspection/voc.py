"""PASCAL VOC's XML files: what the conversion to COCO leaves behind or takes away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdlab.datasets import _voc_xml
from kdlab.datasets._voc_xml import Annotation, Labels
from kdlab.inspection.findings import Found, Place


@dataclass(frozen=True)
class XmlFile:
    """An XML file with the split and the image that it belongs to."""

    split: str
    path: Path
    image: str


Read = Sequence[tuple[XmlFile, Annotation]]


def read(files: Sequence[XmlFile]) -> tuple[list[tuple[XmlFile, Annotation]], list[tuple[str, Place]]]:
    """The files with their content, and those that cannot be used."""
    read, wrong = [], []
    for file in files:
        try:
            found = _voc_xml.parse(file.path)
            details = [f"{what}: {case}" for what, case in found.faults]
        except OSError as error:
            details = [error.strerror or str(error)]
        if details:
            wrong.append(("xml-unreadable", Place(file.split, file.path.name, detail="; ".join(details))))
        else:
            read.append((file, found))
    return read, wrong


def words(read: Read) -> Found:
    """Folders and file names that are not the usual, and sizes that are missing."""
    folders = Counter(found.words["folder"] for _, found in read)
    usual = max(folders, key=folders.__getitem__, default="")
    for file, found in read:
        folder, filename, image = found.words["folder"], found.words["filename"], PurePosixPath(file.image)
        if folder != usual:
            yield "xml-folder", Place(file.split, file.path.name, detail=f"{folder}, most {usual}")
        if filename not in ("", image.name, image.stem):
            yield "xml-filename", Place(file.split, file.path.name, detail=filename)
        if min(found.size) <= 0:
            yield "xml-size", Place(file.split, file.path.name)


def flags(read: Read) -> Found:
    """Marks of objects that the conversion leaves behind, or that no object has."""
    objects = [(file.split, entry) for file, found in read for entry in found.objects]
    if objects and not any(entry.difficult for _, entry in objects):
        yield "xml-difficult", Place("", count=len(objects))
    for split, count in Counter(split for split, entry in objects if entry.truncated).items():
        yield "xml-truncated", Place(split, count=count)


def paths(read: Read) -> Found:
    """Absolute paths that are not here, by their first two folders, which name the machine and the user."""
    groups: Counter[str] = Counter()
    for _, found in read:
        path = found.words["path"].replace("\\", "/")
        is_absolute = path.startswith("/") or path[1:3] == ":/"
        if is_absolute and not Path(found.words["path"]).exists():
            groups["/".join(path.split("/")[:3])] += 1
    for top, count in groups.most_common():
        yield "xml-path", Place("", detail=f"{count} of {top}/...", count=count)


def one_based(read: Read) -> Found:
    """Boxes that end with their image, where the lowest corner of all boxes is 1."""
    boxes = [(file.split, entry.corners, found.size) for file, found in read for entry in found.objects]
    if min((min(corners[:2]) for _, corners, _ in boxes), default=0) != 1:
        return
    ends = [split for split, corners, size in boxes if corners[2] == size[0] or corners[3] == size[1]]
    for split, count in Counter(ends).items():
        yield "xml-one-based", Place(split, count=count)


CHECKS = (paths, words, flags, one_based)


def as_coco(read: Read, classes: Sequence[str]) -> Labels:
    """COCO labels of XML files that no split names, their classes behind those given."""
    others = {entry.name for _, found in read for entry in found.objects} - set(classes)
    images = [(file.image, str(file.path), found) for file, found in read]
    return _voc_xml.as_coco(images, [*classes, *sorted(others)])
