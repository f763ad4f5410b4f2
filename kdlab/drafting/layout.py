"""The format of a folder's labels, and the `dataset:` of a recipe that reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from kdlab.datasets import _yolo_yaml, yolo
from kdlab.datasets.coco import first_image, load_labels
from kdlab.drafting import foreign
from kdlab.drafting.foreign import Labels
from kdlab.drafting.walk import Tree, one_each, role
from kdlab.errors import UsageError

KNOWN = "COCO JSON, PASCAL VOC XML, CVAT XML, LabelMe JSON, YOLO with a data.yaml"
_LISTS = ("train", "val", "test")
_NAMES = re.compile(rb"^names\s*:", re.MULTILINE)


@dataclass(frozen=True)
class Layout:
    """What was found.

    Args:
        kind: the format, for people.
        dataset: the section of a recipe where the folder has both splits; else empty.
        labels: reads all labels as one COCO file whose file names are relative to the folder, where it has
            not. An image's "role" is its split, where the folder says one.
        told: what a person should know of it.
    """

    kind: str
    dataset: dict[str, Any] = field(default_factory=dict)
    labels: Callable[[], Labels] | None = None
    told: tuple[str, ...] = ()


def find(tree: Tree) -> Layout:
    """The layout of a folder.

    Raises:
        UsageError: it holds no images, no labels that are known, or several kinds of them.
    """
    if not tree.stems:
        fix = "name the folder that holds the images and their labels"
        raise UsageError(
            "there are no images below this folder", where=str(tree.root), got=tree.told(), fix=fix
        )
    found = [layout for look in (_yolo, _coco, _voc, _cvat, _labelme) if (layout := look(tree))]
    if not found:
        fix = f"export the labels as one of these: {KNOWN}, which names the classes"
        raise UsageError(
            "there are no labels of a known format below this folder",
            where=str(tree.root),
            got=tree.told(),
            fix=fix,
        )
    if len(found) > 1:
        kinds = " and ".join(layout.kind for layout in found)
        fix = "name a folder that holds the labels of one format"
        raise UsageError("there are labels of several formats", where=str(tree.root), got=kinds, fix=fix)
    return found[0]


def _coco(tree: Tree) -> Layout | None:
    labels = [path for path in tree.files.get(".json", []) if _is_coco(tree.root / path)]
    if not labels:
        return None
    by_role = one_each(labels)
    told = []
    if "val" not in by_role and {"train", "test"} <= by_role.keys():
        by_role["val"] = by_role["test"]
        told.append("there is no validation split: the test images take its place")
    if {"train", "val"} <= by_role.keys():
        options = {f"{part}_images": _images_of(tree, by_role[part]) for part in ("train", "val")}
        options |= {f"{part}_labels": by_role[part] for part in ("train", "val")}
        return Layout("COCO JSON", {"name": "coco", **options}, told=tuple(told))
    if len(labels) > 1:
        fix = "call the files of the splits train and val, or leave one file there"
        known = ", ".join(labels[:8])
        what = "several COCO files, and their names do not say which is for training"
        raise UsageError(what, where=str(tree.root), known=known, fix=fix)
    [path] = labels
    folder = _images_of(tree, path)

    def read() -> Labels:
        data = load_labels(tree.root / path)
        for image in data["images"]:
            image["file_name"] = (PurePosixPath(folder) / image["file_name"]).as_posix()
        return data

    return Layout("COCO JSON", labels=read)


def _is_coco(path: Path) -> bool:
    content = path.read_bytes()
    return all(key in content for key in (b'"images"', b'"annotations"', b'"categories"'))


def _images_of(tree: Tree, labels: str) -> str:
    """The folder, relative to the root, to which the file names of a COCO file are relative.

    Raises:
        UsageError: its first image is nowhere.
    """
    name = str(first_image(tree.root / labels).get("file_name", ""))
    above = str(PurePosixPath(labels).parent)
    folders = sorted({folder.rstrip("/") or "." for folder in tree.stems})
    # the nearest first: beside the labels, then where the path has the same role
    folders.sort(key=lambda folder: (folder != above, role(f"{folder}/x") != role(labels), folder.count("/")))
    for folder in [*folders, ".", *{str(PurePosixPath(one).parent) for one in folders}]:
        if name and (tree.root / folder / name).is_file():
            return folder
    fix = "put the images below this folder, as the labels name them"
    raise UsageError(
        "the images of these labels are not there", where=str(tree.root / labels), got=name, fix=fix
    )


def _voc(tree: Tree) -> Layout | None:
    files = [path for path in tree.files.get(".xml", []) if _root_tag(tree.root / path) == "annotation"]
    if not files:
        return None
    folders = sorted({str(PurePosixPath(path).parent) for path in files})
    lists = (path for path in tree.files.get(".txt", []) if PurePosixPath(path).stem in _LISTS)
    by_role = one_each(lists)
    images = _beside(tree, files[0])
    if len(folders) == 1 and images is not None and "train" in by_role and {"val", "test"} & by_role.keys():
        measured = "val" if "val" in by_role else "test"
        splits = PurePosixPath(by_role["train"]).parent
        section = {
            "name": "voc",
            "images": images,
            "annotations": folders[0],
            "splits": str(splits),
            "train": ["train"],
            "val": [measured],
        }
        return Layout("PASCAL VOC XML", section)
    return Layout("PASCAL VOC XML", labels=lambda: foreign.voc(tree, files))


def _beside(tree: Tree, xml: str) -> str | None:
    """The folder of the image that bears an XML file's stem."""
    stem = PurePosixPath(xml).stem
    own = str(PurePosixPath(xml).parent)
    folders = [folder for folder, stems in tree.stems.items() if stem in stems]
    folders.sort(key=lambda folder: (folder.rstrip("/") or ".") != own)
    return (folders[0].rstrip("/") or ".") if folders else None


def _cvat(tree: Tree) -> Layout | None:
    files = [path for path in tree.files.get(".xml", []) if _root_tag(tree.root / path) == "annotations"]
    return Layout("CVAT XML", labels=lambda: foreign.cvat(tree, files)) if files else None


def _labelme(tree: Tree) -> Layout | None:
    files = [path for path in tree.files.get(".json", []) if _is_labelme(tree.root / path)]
    return Layout("LabelMe JSON", labels=lambda: foreign.labelme(tree, files)) if files else None


def _is_labelme(path: Path) -> bool:
    content = path.read_bytes()[: 2**20]
    return b'"shapes"' in content and (b'"imagePath"' in content or b'"imageData"' in content)


@cache
def _root_tag(path: Path) -> str:
    """Of an XML file; "" of one that does not begin as XML."""
    try:
        with path.open("rb") as file:
            for _, node in ElementTree.iterparse(file, events=("start",)):
                return node.tag
    except ElementTree.ParseError:
        # told where it is read
        return "annotation"
    return ""


def _yolo(tree: Tree) -> Layout | None:
    paths = [*tree.files.get(".yaml", []), *tree.files.get(".yml", [])]
    named = [path for path in paths if _NAMES.search((tree.root / path).read_bytes())]
    if not named:
        return None
    path = min(named, key=lambda path: (path.count("/"), path))
    section = {"name": "yolo", "data": path}
    try:
        said = _yolo_yaml.read(tree.root / path, ["train", "val"])
        if said.splits["train"] != said.splits["val"]:
            return Layout("YOLO text files", section)
    except UsageError:
        # what is wrong besides a missing val is told by the next line
        said = _yolo_yaml.read(tree.root / path, ["train"])
    train = said.splits["train"]

    def read() -> Labels:
        files = yolo.prepare(root=str(tree.root), data=path, train=train, val=train)
        return load_labels(files.train.labels)

    return Layout("YOLO text files", labels=read, told=("data.yaml names no other images to measure on",))
