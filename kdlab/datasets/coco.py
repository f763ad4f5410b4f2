"""Any folder of images with labels in COCO JSON files, COCO 2017 by default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from kdlab.datasets._coco_labels import category_names, label_faults
from kdlab.datasets.base import DatasetFiles, Split, fingerprint, not_there, user_path
from kdlab.errors import Fault, MachineError, UsageError

# A file of this size parses in well under a second; COCO's 450 MB take ten and several GB of memory.
_PARSE_WHOLE_BYTES = 32 * 2**20
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')


def prepare(
    *,
    root: str,
    train_images: str = "train2017",
    val_images: str = "val2017",
    train_labels: str = "annotations/instances_train2017.json",
    val_labels: str = "annotations/instances_val2017.json",
) -> DatasetFiles:
    """Find the files and read the classes; nothing is written.

    Args:
        root: the data set's folder; the other paths are relative to it.
        train_images: folder of the training images.
        val_images: folder of the validation images.
        train_labels: COCO JSON file of the training images.
        val_labels: COCO JSON file of the validation images, with the same categories.

    Raises:
        UsageError: all that is missing, or all that is wrong with the labels, at once.
        MachineError: a file is there and cannot be read.
    """
    base = user_path(root)
    folders = {"train_images": base / train_images, "val_images": base / val_images}
    labels = {"train_labels": base / train_labels, "val_labels": base / val_labels}
    train = Split(folders["train_images"], labels["train_labels"])
    val = Split(folders["val_images"], labels["val_labels"])
    try:
        if faults := list(_missing(base, folders, labels)):
            raise UsageError(faults=faults)
        classes = _shared_classes(train.labels, val.labels)
        return DatasetFiles("coco", classes, train, val, fingerprint([train, val]))
    except OSError as error:
        raise MachineError(
            f"this part of the data set cannot be read: {error.strerror or error}",
            where=str(error.filename or base),
            fix="check its permissions, and that its disk is mounted",
        ) from error


def _missing(base: Path, folders: dict[str, Path], labels: dict[str, Path]) -> Iterator[Fault]:
    """A fault for each path that is not there; only the root's where that is the cause of all."""
    if not base.is_dir():
        fix = "set dataset.root to the folder that holds the images and annotations"
        yield Fault("dataset.root is not a folder", where=str(base), fix=fix)
        return
    for option, path in folders.items():
        if not path.is_dir():
            yield not_there(option, path, "folder")
    for option, path in labels.items():
        if not path.is_file():
            yield not_there(option, path, "file")


def _shared_classes(train: Path, val: Path) -> tuple[str, ...]:
    """Class names in the order of the category ids, the same in both files."""
    found: list[dict[int, str]] = []
    faults: list[Fault] = []
    for labels in (train, val):
        try:
            found.append(_categories(labels))
        except UsageError as error:
            faults += error.faults
    if faults:
        raise UsageError(faults=faults)
    if found[0] != found[1]:
        only_train, only_val = (dict(sorted(a.items() - b.items())) for a, b in (found, found[::-1]))
        raise UsageError(
            "the categories differ from those of the training labels",
            where=str(val),
            got=f"only here: {only_val or 'none'}; only in training: {only_train or 'none'}",
            fix="give both files the same categories, with the same ids",
        )
    return tuple(name for _, name in sorted(found[0].items()))


def _categories(labels: Path) -> dict[int, str]:
    """Name of each category id; the other labels are checked too where the file is small.

    Raises:
        UsageError: see `load_labels`.
    """
    content = labels.read_bytes()
    try:
        found = _lone_categories(content) if len(content) > _PARSE_WHOLE_BYTES else None
        return category_names(_checked(content, labels)["categories"] if found is None else found)
    except ValueError as error:
        raise _unreadable(labels, error) from error


def _lone_categories(content: bytes) -> Any | None:
    """The value of "categories" without parsing the rest, or None where only a whole parse can tell.

    A file cut short must not pass, so the end of the object has to be there.
    """
    places = [match.end() for match in _CATEGORIES.finditer(content)]
    if len(places) != 1 or not content[-64:].rstrip().endswith(b"}"):
        return None
    return json.JSONDecoder().raw_decode(content[places[0] :].decode())[0]


def load_labels(labels: Path) -> dict[str, Any]:
    """The content of a COCO JSON file; an annotation that lacks `area` gets w * h, one without `iscrowd` 0.

    Raises:
        UsageError: all kinds of fault at once, each with how often it occurs and the first few places.
        OSError: the file cannot be read.
    """
    try:
        data = _checked(labels.read_bytes(), labels)
        category_names(data["categories"])
    except ValueError as error:
        raise _unreadable(labels, error) from error
    for box in data["annotations"]:
        if box.get("area") is None:
            box["area"] = max(box["bbox"][2], 0) * max(box["bbox"][3], 0)
        box["iscrowd"] = int(bool(box.get("iscrowd")))
    return data


def _unreadable(labels: Path, error: ValueError) -> UsageError:
    fix = "write it again as COCO JSON, or fetch it again if it was cut short"
    return UsageError(str(error), where=str(labels), fix=fix)


def _checked(content: bytes, labels: Path) -> dict[str, Any]:
    """The parsed content of a file whose images and annotations are right.

    Raises:
        ValueError: not JSON, or not of COCO's form.
        UsageError: see `load_labels`.
    """
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ValueError(f"this file is not JSON: {error}") from error
    for key in ("categories", "images", "annotations"):
        if not isinstance(data, dict) or data.get(key) is None:
            raise ValueError(f'this file has no "{key}"')
    if not isinstance(data["images"], list) or not isinstance(data["annotations"], list):
        raise ValueError('"images" or "annotations" is not a list')
    if faults := list(label_faults(data, str(labels))):
        raise UsageError(faults=faults)
    return cast("dict[str, Any]", data)
