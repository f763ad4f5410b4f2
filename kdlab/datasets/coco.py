"""Any folder of images with labels in COCO JSON files, COCO 2017 by default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kdlab.datasets._coco_labels import category_names, label_faults
from kdlab.datasets.base import DatasetFiles, Split, fingerprint, not_there, root_folder, unreadable
from kdlab.errors import Fault, UsageError

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
        root: the dataset's folder; the other paths are relative to it.
        train_images: folder of the training images.
        val_images: folder of the validation images.
        train_labels: COCO JSON file of the training images.
        val_labels: COCO JSON file of the validation images, with the same categories.

    Raises:
        UsageError: all that is missing, or all that is wrong with the labels, at once.
        MachineError: a file is there and cannot be read.
    """
    base = root_folder(root)
    train = Split(base / train_images, base / train_labels)
    val = Split(base / val_images, base / val_labels)
    folders = {"train_images": train.images, "val_images": val.images}
    files = {"train_labels": train.labels, "val_labels": val.labels}
    try:
        faults = [not_there(name, path, "folder") for name, path in folders.items() if not path.is_dir()]
        faults += [not_there(name, path, "file") for name, path in files.items() if not path.is_file()]
        if faults:
            raise UsageError(faults=faults)
        classes = _shared_classes(train.labels, val.labels)
        return DatasetFiles("coco", classes, train, val, fingerprint([train, val]))
    except OSError as error:
        raise unreadable(error, base) from error


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
    learned, measured = found
    if learned != measured:
        only_train = dict(sorted(learned.items() - measured.items()))
        only_val = dict(sorted(measured.items() - learned.items()))
        raise UsageError(
            "the categories differ from those of the training labels",
            where=str(val),
            got=f"only here: {only_val or 'none'}; only in training: {only_train or 'none'}",
            fix="give both files the same categories, with the same ids",
        )
    return tuple(name for _, name in sorted(learned.items()))


def _categories(labels: Path) -> dict[int, str]:
    """Name of each category id; the other labels are checked too where the file is small.

    Of a large file the value of "categories" is read without parsing the rest, where that can be told. A file
    cut short must not pass, so the end of the object has to be there.

    Raises:
        UsageError: see `load_labels`.
    """
    content = labels.read_bytes()
    places = [] if len(content) <= _PARSE_WHOLE_BYTES else [m.end() for m in _CATEGORIES.finditer(content)]
    try:
        if len(places) == 1 and content[-64:].rstrip().endswith(b"}"):
            return category_names(json.JSONDecoder().raw_decode(content[places[0] :].decode())[0])
        return category_names(_checked(content, labels)["categories"])
    except ValueError as error:
        raise _not_coco(labels, error) from error


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
        raise _not_coco(labels, error) from error
    for box in data["annotations"]:
        if box.get("area") is None:
            box["area"] = max(box["bbox"][2], 0) * max(box["bbox"][3], 0)
        box["iscrowd"] = int(bool(box.get("iscrowd")))
    return data


def _not_coco(labels: Path, error: ValueError) -> UsageError:
    fix = "write it again as COCO JSON, or fetch it again if it was cut short"
    return UsageError(str(error), where=str(labels), fix=fix)


def _checked(content: bytes, labels: Path) -> dict[str, Any]:
    """The parsed content of a file whose images and annotations are right.

    Raises:
        ValueError: not JSON, or not of COCO's form.
        UsageError: see `load_labels`.
    """
    try:
        data: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise ValueError(f"this file is not JSON: {error}") from error
    for key in ("categories", "images", "annotations"):
        if not isinstance(data, dict) or data.get(key) is None:
            raise ValueError(f'this file has no "{key}"')
    if not isinstance(data["images"], list) or not isinstance(data["annotations"], list):
        raise ValueError('"images" or "annotations" is not a list')
    if faults := list(label_faults(data, str(labels))):
        raise UsageError(faults=faults)
    return data
