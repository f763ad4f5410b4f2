"""The format of a folder's labels, and the `dataset:` of a recipe that reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from kdlab.datasets import _yolo_yaml, yolo
from kdlab.datasets._coco_labels import grouped
from kdlab.datasets.base import PARTS, first_of
from kdlab.datasets.coco import first_image, load_labels
from kdlab.drafting import foreign
from kdlab.drafting.foreign import Labels
from kdlab.drafting.walk import Tree, below, by_role, image_folders, is_file, role
from kdlab.errors import UsageError

KNOWN = "COCO JSON, PASCAL VOC XML, CVAT XML, LabelMe JSON, YOLO with a data.yaml of names and train"
_LISTS = {"train": ("train", "trainval"), "val": ("val", "test")}
"""Names of the lists of VOC to learn from and to measure on, the first that is there."""
_NAMES, _TRAIN = (re.compile(rb"(?<![\w.-])[\"']?%s[\"']?\s*:" % key) for key in (b"names", b"train"))
_UNPARSED_FIX = "write them again as UTF-8, or take them away"
_SHOWN = 8
_TEST_FOR_VAL = "there is no validation split: the test images take its place"


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
    kinds = _kinds(tree)
    looks = {"coco": _coco, "voc": _voc, "cvat": _cvat, "labelme": _labelme}
    found = [look(tree, kinds[kind]) for kind, look in looks.items() if kind in kinds]
    if layout := _yolo(tree):
        found.append(layout)
    if not found:
        fix = f"export the labels as one of these: {KNOWN}, which names the classes"
        raise UsageError(
            "there are no labels of a known format below this folder",
            where=str(tree.root),
            got=tree.told(),
            fix=fix,
        )
    if len(found) > 1:
        got = " and ".join(layout.kind for layout in found)
        fix = "name a folder that holds the labels of one format"
        raise UsageError("there are labels of several formats", where=str(tree.root), got=got, fix=fix)
    aside = f"left aside, for no format is known that has them: {first_of(kinds.get('', []), _SHOWN)}"
    return replace(found[0], told=(*found[0].told, aside)) if "" in kinds else found[0]


def _kinds(tree: Tree) -> dict[str, list[str]]:
    """JSON and XML files by their format, "" where it is none that is known.

    Raises:
        UsageError: beginnings of XML files do not parse.
    """
    kinds: dict[str, list[str]] = {}
    cases: list[tuple[str, str, str]] = []
    for path in tree.files.get(".json", []):
        kinds.setdefault(_json_kind(tree.root / path), []).append(path)
    for path in tree.files.get(".xml", []):
        try:
            kinds.setdefault(_xml_kind(tree.root / path), []).append(path)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            cases.append(("XML files that do not parse", f"{path}: {error}", _UNPARSED_FIX))
    if cases:
        raise UsageError(faults=grouped(cases, str(tree.root)))
    return kinds


def _text(path: Path) -> bytes:
    """Content in which keys can be looked for: that of UTF-16 and UTF-32 differs from UTF-8 in its NULs."""
    return path.read_bytes().replace(b"\0", b"")


def _json_kind(path: Path) -> str:
    content = _text(path)
    if all(key in content for key in (b'"images"', b'"annotations"', b'"categories"')):
        return "coco"
    labelme = b'"shapes"' in content and (b'"imagePath"' in content or b'"imageData"' in content)
    return "labelme" if labelme else ""


def _xml_kind(path: Path) -> str:
    with path.open("rb") as file:
        for _, node in ElementTree.iterparse(file, events=("start",)):
            # VOC's reader says what is wrong with a namespace
            if node.tag.rpartition("}")[2].lower() == "annotation":
                return "voc"
            return "cvat" if node.tag == "annotations" else ""
    return ""


def _only(tree: Tree, paths: Sequence[str], what: str) -> str:
    """The one path.

    Raises:
        UsageError: there are several.
    """
    if len(paths) > 1:
        got, fix = first_of(paths, _SHOWN), "leave one of them there, or put what they hold into one"
        raise UsageError(f"there are several {what}", where=str(tree.root), got=got, fix=fix)
    return paths[0]


def _coco(tree: Tree, files: Sequence[str]) -> Layout:
    labels = _objects(files)
    roles = by_role(labels)
    measured = "val" if "val" in roles else "test"
    if {"train", measured} <= roles.keys():
        options: dict[str, str] = {}
        for part, kind in (("train", "train"), ("val", measured)):
            path = _only(tree, roles[kind], f"COCO files for {kind}")
            options |= {f"{part}_images": _images_of(tree, path), f"{part}_labels": path}
        told = (_TEST_FOR_VAL,) * (measured == "test")
        told += _unused(files, options.values())
        return Layout("COCO JSON", {"name": "coco", **options}, told=told)
    if len(labels) > 1:
        fix = "call the files of the splits train and val, or leave one file there"
        known = ", ".join(labels[:8])
        what = "several COCO files, and their names do not say which is for training"
        raise UsageError(what, where=str(tree.root), known=known, fix=fix)
    path = labels[0]
    folder = _images_of(tree, path)

    def read() -> Labels:
        data = load_labels(tree.root / path)
        for image in data["images"]:
            image["file_name"] = (PurePosixPath(folder) / image["file_name"]).as_posix()
            image.pop("role", None)
        return foreign.with_roles(data)

    return Layout("COCO JSON", labels=read, told=_unused(files, [path]))


def _unused(files: Sequence[str], used: Collection[str]) -> tuple[str, ...]:
    others = [path for path in files if path not in used]
    return (f"COCO files that are not used: {first_of(others, _SHOWN)}",) if others else ()


def _objects(files: Sequence[str]) -> list[str]:
    """COCO files without the captions and keypoints beside a file of their split that is called instances."""

    def place(path: str) -> tuple[PurePosixPath, str]:
        return PurePosixPath(path).parent, role(path)

    instances = [path for path in files if "instances" in PurePosixPath(path).name]
    places = set(map(place, instances))
    return [path for path in files if path in instances or place(path) not in places]


def _images_of(tree: Tree, labels: str) -> str:
    """The folder, relative to the root, to which the file names of a COCO file are relative.

    Raises:
        UsageError: its first image is nowhere, or in several folders.
    """
    name = first_image(tree.root / labels).get("file_name")
    if not isinstance(name, str) or not name:
        # says what is wrong with the file
        load_labels(tree.root / labels)
    name = str(name)
    folders = {folder.rstrip("/") or "." for folder in tree.stems}
    folders |= {".", *(str(PurePosixPath(folder).parent) for folder in folders)}
    holding = [folder for folder in sorted(folders) if is_file(tree.root / folder / name)]
    # ../images/a.jpg is one file, from wherever one looks
    same = {(tree.root / folder / name).resolve(): folder for folder in reversed(holding)}
    found = image_folders(labels, [*same.values()])
    where = str(tree.root / labels)
    if not found:
        fix = "put the images below this folder, as the labels name them"
        got = f"{name}  {foreign.similar(tree, name)}".rstrip()
        raise UsageError("the images of these labels are not there", where=where, got=got, fix=fix)
    if len(found) > 1:
        fix = "take the other folders away, or call the right one images"
        what = f"{name} is in several folders, and nothing says which one these labels mean"
        raise UsageError(what, where=where, got=first_of(sorted(found), _SHOWN), fix=fix)
    return found[0]


def _voc(tree: Tree, files: Sequence[str]) -> Layout:
    folders = sorted({str(PurePosixPath(path).parent) for path in files})
    lists: dict[str, list[str]] = {}
    usual = {name for names in _LISTS.values() for name in names}
    texts = [path for path in tree.files.get(".txt", []) if PurePosixPath(path).stem in usual]
    for path in below(texts, "main"):
        lists.setdefault(PurePosixPath(path).stem, []).append(path)
    learned, measured = (next((name for name in names if name in lists), "") for names in _LISTS.values())
    images = foreign.of_xml(tree, files[0])
    if len(folders) == 1 and len(images) == 1 and learned and measured:
        train = _only(tree, lists[learned], f"lists of images for {learned}")
        val = _only(tree, lists[measured], f"lists of images for {measured}")
        # a stem may be followed by 1 or -1, and may have spaces
        lines = [line for path in (train, val) for line in _lines(tree.root / path)]
        listed = {stem for line in lines for stem in (line.strip(), line.split()[0], line.rsplit(None, 1)[0])}
        others = len({PurePosixPath(path).stem for path in files} - listed)
        section = {
            "name": "voc",
            "images": str(PurePosixPath(images[0]).parent),
            "annotations": folders[0],
            "splits": str(PurePosixPath(train).parent),
            "train": [learned],
            "val": [measured],
        }
        told = (_TEST_FOR_VAL,) * (measured == "test")
        told += (f"labelled images in neither list, left out: {others}",) * (others > 0)
        return Layout("PASCAL VOC XML", section, told=told)
    return Layout("PASCAL VOC XML", labels=lambda: foreign.voc(tree, files))


def _lines(path: Path) -> list[str]:
    # what is wrong with a list is told where it is read for good
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]


def _cvat(tree: Tree, files: Sequence[str]) -> Layout:
    return Layout("CVAT XML", labels=lambda: foreign.cvat(tree, files))


def _labelme(tree: Tree, files: Sequence[str]) -> Layout:
    return Layout("LabelMe JSON", labels=lambda: foreign.labelme(tree, files))


def _yolo(tree: Tree) -> Layout | None:
    paths = [*tree.files.get(".yaml", []), *tree.files.get(".yml", [])]
    texts = {path: _text(tree.root / path) for path in paths}
    named = [path for path, text in texts.items() if _NAMES.search(text) and _TRAIN.search(text)]
    if not named:
        return None
    path = _only(tree, named, "YAML files with names and train")
    section = {"name": "yolo", "data": path}
    try:
        said = _yolo_yaml.read(tree.root / path, PARTS)
        base = (tree.root / path).parent / said.path
        learned, measured = ({(base / text).resolve() for text in said.splits[part]} for part in PARTS)
        if learned != measured:
            return Layout("YOLO text files", section)
    except UsageError:
        # what is wrong besides a missing val is told by the next line
        said = _yolo_yaml.read(tree.root / path, ["train"])
        with suppress(UsageError):
            test = _yolo_yaml.read(tree.root / path, ["test"]).splits["test"]
            beside = PurePosixPath(path).parent
            bases = (beside / said.path, beside, PurePosixPath())
            places = [
                next((base / one for base in bases if (tree.root / base / one).exists()), PurePosixPath(one))
                for one in test
            ]
            section |= {"val": [place.as_posix() for place in places]}
            return Layout("YOLO text files", section, told=(_TEST_FOR_VAL,))
    train = said.splits["train"]

    def read() -> Labels:
        files = yolo.prepare(root=str(tree.root), data=path, train=train, val=train)
        return load_labels(files.train.labels)

    return Layout("YOLO text files", labels=read, told=("data.yaml names no other images to measure on",))
