"""Any folder of images with labels in COCO JSON files, COCO 2017 by default."""

from __future__ import annotations

import json
import mmap
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdlab.datasets._coco_labels import category_cases, grouped, label_faults
from kdlab.datasets._coco_objects import complete, unmeant
from kdlab.datasets.base import (
    DatasetFiles,
    Split,
    content_of,
    fingerprint,
    not_there,
    root_folder,
    unreadable,
)
from kdlab.errors import Fault, UsageError

# A file of this size parses in well under a second; COCO's 450 MB take ten and several GB of memory.
_PARSE_WHOLE_BYTES = 32 * 2**20
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*(?=\{)')
_LONGEST_ENTRY = 2**16
_WRITE = "write it again as COCO JSON"


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
        taken = {path for path in (*folders.values(), *files.values()) if path.exists()}
        absent = [(name, path, "folder") for name, path in folders.items() if not path.is_dir()]
        absent += [(name, path, "file") for name, path in files.items() if not path.is_file()]
        faults = [not_there(*which, taken) for which in absent]
        if faults:
            raise UsageError(faults=faults)
        classes = _shared_classes(train.labels, val.labels)
        seal = fingerprint([train, val])
        return DatasetFiles("coco", classes, train.sealed(), val.sealed(), seal)
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
        alike = _composed(only_train) == _composed(only_val)
        forms = ": the same names in another Unicode form (NFC, NFD)" if alike else ""
        raise UsageError(
            "the categories differ from those of the training labels",
            where=str(val),
            got=f"only here: {only_val or 'none'}; only in training: {only_train or 'none'}{forms}",
            fix="give both files the same categories, with the same ids",
        )
    return tuple(name for _, name in sorted(learned.items()))


def _composed(names: dict[int, str]) -> dict[int, str]:
    return {number: unicodedata.normalize("NFC", name) for number, name in names.items()}


def _categories(labels: Path) -> dict[int, str]:
    """Name of each category id; the other labels are checked too where the file is small.

    Of a large file the value of "categories" is read without parsing the rest, where that can be told. A file
    cut short must not pass, so the end of the object has to be there.

    Raises:
        UsageError: see `load_labels`.
    """
    content = content_of(labels)
    places = [] if len(content) <= _PARSE_WHOLE_BYTES else [m.end() for m in _CATEGORIES.finditer(content)]
    if len(places) == 1 and content[-64:].rstrip().endswith(b"}"):
        with _told_as_json(labels):
            categories = json.JSONDecoder().raw_decode(content[places[0] :].decode())[0]
        if faults := category_faults(categories, labels):
            raise UsageError(faults=faults)
    else:
        categories = _checked(content, labels)["categories"]
    return {entry["id"]: entry["name"] for entry in categories}


def load_labels(labels: Path) -> dict[str, Any]:
    """The content of a COCO JSON file; an annotation that lacks `area` gets w * h, one without `iscrowd` 0.

    Raises:
        UsageError: all kinds of fault at once, each with how often it occurs and the first few places; or
            labels of which no object is left.
        OSError: the file cannot be read.
    """
    return _checked(content_of(labels), labels)


def parsed(labels: Path) -> dict[str, Any]:
    """The same of labels in which anything may be wrong but their form.

    Raises:
        UsageError: not JSON, or not of COCO's form.
        OSError: the file cannot be read.
    """
    return _parsed(content_of(labels), labels)


def _parsed(content: bytes, labels: Path) -> dict[str, Any]:
    with _told_as_json(labels):
        data: dict[str, Any] = json.loads(content)
    for key in ("categories", "images", "annotations"):
        if not isinstance(data, dict) or data.get(key) is None:
            raise UsageError(f'this file has no "{key}"', where=str(labels), fix=_WRITE)
        if not isinstance(data[key], list):
            raise UsageError(f'"{key}" is not a list', where=str(labels), fix=_WRITE)
    return data


def category_faults(categories: Any, labels: Path) -> list[Fault]:
    """What is wrong with single categories.

    Raises:
        UsageError: they are not of COCO's form.
    """
    if not categories:
        raise UsageError('this file has no "categories"', where=str(labels), fix=_WRITE)
    if not all(isinstance(entry, dict) and {"id", "name"} <= entry.keys() for entry in categories):
        what = '"categories" is not a list of {"id": ..., "name": ...}'
        raise UsageError(what, where=str(labels), fix=_WRITE)
    blank = [
        ("categories whose name is blank", f"id {entry['id']!r}", "write the name of the class")
        for entry in categories
        if isinstance(entry["name"], str) and not entry["name"].strip()
    ]
    return [*grouped([*category_cases(categories), *blank], str(labels))]


def _checked(content: bytes, labels: Path) -> dict[str, Any]:
    """The content of a file that a job can use, its annotations complete.

    Raises:
        UsageError: see `load_labels`.
    """
    data, where = _parsed(content, labels), str(labels)
    faults = [*category_faults(data["categories"], labels), *label_faults(data, where)]
    if not faults:
        for box in data["annotations"]:
            complete(box)
        faults += unmeant(data, where)
    if faults:
        raise UsageError(faults=faults)
    return data


@contextmanager
def _told_as_json(labels: Path) -> Iterator[None]:
    """Tell of text that is no JSON.

    Raises:
        UsageError: it does not parse.
    """
    try:
        yield
    except RecursionError as error:
        what, fix = "this file is not JSON: it is nested too deeply", "write it again as COCO JSON"
        raise UsageError(what, where=str(labels), fix=fix) from error
    except ValueError as error:
        fix = "write it again as COCO JSON, or fetch it again if it was cut short"
        raise UsageError(f"this file is not JSON: {error}", where=str(labels), fix=fix) from error


def first_image(labels: Path) -> dict[str, Any]:
    """The first entry of "images" of a COCO JSON file; empty if there is none.

    Of a large file it is read without parsing the rest, where that can be told.
    """
    size = labels.stat().st_size
    return (_image_at_the_front(labels) if size > _PARSE_WHOLE_BYTES else {}) or _image_of_all(labels)


def _image_of_all(labels: Path) -> dict[str, Any]:
    try:
        first = json.loads(labels.read_bytes())["images"][0]
    except (LookupError, TypeError, ValueError, RecursionError):
        return {}
    return first if isinstance(first, dict) else {}


def _image_at_the_front(labels: Path) -> dict[str, Any]:
    with labels.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if (place := _IMAGES.search(content)) is None:
            return {}
        text = content[place.end() : place.end() + _LONGEST_ENTRY].decode(errors="replace")
    try:
        found: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return {}
    # else it is of another list of that name
    return found if "file_name" in found else {}
