"""The tuning split: training images put aside to measure trials on, so that val stays untouched."""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kdlab.datasets._coco_objects import fate
from kdlab.datasets.base import PARTS, DatasetFiles, Split, cache_dir, intact, make_once, write_labels
from kdlab.datasets.coco import load_labels
from kdlab.errors import MachineError, UsageError

# Raise it in the commit that changes what is cut or written: splits made before are then left alone.
VERSION = 1

MOST_CUT = 5000
"""Images that trials are measured on at most, as many as COCO's val: more would take longer than to train."""

LARGEST_SHARE = 0.5
FEWEST_IMAGES = 10


def tuning_split(files: DatasetFiles, share: float, cache: Path | None = None) -> DatasetFiles:
    """Cut the training images in two: the larger part to learn from, the other one in the place of val.

    The SHA-256 of an image's file name alone decides where it goes, so the split is the same on every machine
    and for every order of the labels, and a smaller share is a part of a larger one. Images of one name stay
    together. The labels are those that training reads (`load_labels` fills in `area` and `iscrowd`); ids,
    categories and all other keys are kept. The validation files are not looked at.

    The first call parses the training labels whole: ten seconds and several GB of memory for COCO's 450 MB.
    Later ones find the two files in the cache and read only as much of them as a hash takes.

    The new fingerprint is made of the old one, the share and `VERSION`. That suffices because the two files
    are a function of the training labels and the share, and the old one holds those labels by content and
    their images by name and size; no image is asked for its size again.

    Args:
        files: of a dataset, with the fingerprint that it has now.
        share: of the training images to cut, above 0 and at most 0.5; of the result at most `MOST_CUT`.
        cache: where to keep the labels; the user's cache folder where None.

    Returns:
        The same dataset with other labels; both parts lie in the folder of the training images.

    Raises:
        UsageError: the share is out of range, there are too few images, or a part holds no objects.
        MachineError: a file cannot be read, or the cache cannot be written or was changed.
    """
    if not 0 < share <= LARGEST_SHARE:
        raise UsageError(
            "the tuning split's share of the training images is out of range",
            got=str(share),
            known=f"above 0 and at most {LARGEST_SHARE}",
            fix="leave it out, or name a share in this range",
        )
    key = hashlib.sha256(json.dumps([VERSION, files.fingerprint, float(share)]).encode()).hexdigest()[:16]
    folder = (cache or cache_dir()) / "tuning" / key
    if not folder.is_dir():
        parts = _cut(files.train.labels, share)
        counts = [len(parts[part]["images"]) for part in PARTS]
        make_once(folder, partial(write_labels, parts, version=VERSION, images=counts))
    intact(folder, "labels of a tuning split")
    train, val = (Split(files.train.images, folder / f"{part}.json") for part in PARTS)
    return replace(files, train=train, val=val, fingerprint=key)


def images_of(split: DatasetFiles) -> tuple[int, int]:
    """Numbers of images in the two parts of a tuning split, without reading its labels."""
    train, val = json.loads((split.train.labels.parent / "made.json").read_text())["images"]
    return train, val


def _cut(labels: Path, share: float) -> dict[str, dict[str, Any]]:
    """The content of the two labels files: cut are the images whose names have the lowest hashes."""
    try:
        data = load_labels(labels)
    except OSError as error:
        raise MachineError(
            f"the training labels cannot be read: {error.strerror or error}",
            where=str(labels),
            fix="check its permissions, and that its disk is mounted",
        ) from error
    all_names = {_name(image) for image in data["images"]}
    if len(all_names) < FEWEST_IMAGES:
        raise UsageError(
            "there are too few training images to put some aside",
            where=str(labels),
            got=str(len(all_names)),
            known=f"{FEWEST_IMAGES} or more",
            fix="label more training images",
        )
    count = min(max(1, round(share * len(all_names))), MOST_CUT)
    names = set(sorted(all_names, key=_place)[:count])
    cut = {image["id"] for image in data["images"] if _name(image) in names}
    parts = {"train": _part(data, {image["id"] for image in data["images"]} - cut), "val": _part(data, cut)}
    for name, part in parts.items():
        sizes = {image["id"]: (image["width"], image["height"]) for image in part["images"]}
        if not any(fate(box, *sizes[box["image_id"]]) == "object" for box in part["annotations"]):
            kept = "the cut part" if name == "val" else "what is left to learn from"
            raise UsageError(
                f"{kept} of the tuning split holds no object",
                where=str(labels),
                got=f"{len(part['images'])} of {len(data['images'])} images",
                fix="choose another share, or label more training images",
            )
    return parts


def _name(image: dict[str, Any]) -> str:
    """One spelling of an image's file name: "./a.jpg" is "a.jpg"."""
    return posixpath.normpath(str(image["file_name"]))


def _place(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _part(data: dict[str, Any], images: set[int]) -> dict[str, Any]:
    """The labels of some images, in the order of all."""
    return {
        **data,
        "images": [image for image in data["images"] if image["id"] in images],
        "annotations": [box for box in data["annotations"] if box["image_id"] in images],
    }
