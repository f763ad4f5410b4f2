"""A COCO JSON file as arrays, and what of it cannot be used."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlab.datasets._coco_labels import label_faults
from kdlab.inspection.findings import Place

_ONLY_TOLD_HERE = ("images without a whole width", "annotations whose area")
"""What a job refuses and the arrays below would take; `prepare` finds it in small files only."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SMALL_PX2, LARGE_PX2 = 32**2, 96**2
"""COCO's bins of size: small below the first, large from the second."""


@dataclass(frozen=True)
class Labels:
    """The usable entries of a labels file.

    Args:
        split: its name.
        folder: what `file_name` is relative to.
        data: the whole file.
        images: its image entries, I of them.
        objects: its annotation entries, O of them, an image's behind one another.
        boxes: (O, 4) x, y, width, height in pixels.
        areas: (O,) as recorded, in px; width x height where none is.
        image: (O,) index of each object's image.
        number: (O,) number of each object in its image, from 0.
        category: (O,) category ids.
        sizes: (I, 2) recorded width and height, 0 where there is none.
        classes: names by category id.
    """

    split: str
    folder: Path
    data: dict[str, Any]
    images: list[dict[str, Any]]
    objects: list[dict[str, Any]]
    boxes: Floats
    areas: Floats
    image: Ints
    number: Ints
    category: Ints
    sizes: Floats
    classes: dict[int, str]

    @property
    def files(self) -> list[str]:
        """The file name of each image."""
        return [image["file_name"] for image in self.images]

    @property
    def is_converted(self) -> bool:
        """Whether kdlab made them of XML files, so that ids and whole numbers are its own doing."""
        return any("xml" in image for image in self.images)

    @property
    def counts(self) -> Ints:
        """(I,) objects of each image."""
        return np.bincount(self.image, minlength=len(self.images))

    @property
    def box_areas(self) -> Floats:
        """(O,) width x height in px."""
        return np.asarray(np.maximum(self.boxes[:, 2:], 0).prod(axis=1))

    def place(self, *objects: int, detail: str = "") -> Place:
        """Where some objects of one image are, given their indices."""
        file = self.images[int(self.image[objects[0]])]["file_name"]
        return Place(self.split, file, tuple(int(self.number[index]) for index in objects), detail)


def read(split: str, folder: Path, file: Path) -> tuple[Labels | None, list[tuple[str, Place]]]:
    """The labels of a file, None where nothing of it can be used, and what is left out."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        return None, [("labels-unusable", Place(split, str(file), detail=str(error)))]
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            return None, [("labels-unusable", Place(split, file.name, detail=f'has no list "{key}"'))]
    labels, found = arranged(split, folder, data, file.name)
    if labels:
        told = [fault for fault in label_faults(data, str(file)) if fault.what.startswith(_ONLY_TOLD_HERE)]
        found += [
            ("labels-unusable", Place(split, file.name, detail=f"{fault.what}: {fault.got}"))
            for fault in told
        ]
    return labels, found


def arranged(
    split: str, folder: Path, data: dict[str, Any], file: str = ""
) -> tuple[Labels, list[tuple[str, Place]]]:
    """The same of a parsed file with lists of images, annotations and categories."""
    found: list[tuple[str, Place]] = []
    images, objects = _images(split, data, found), data["annotations"]
    where = {image["id"]: index for index, image in enumerate(images)}
    classes = {c["id"]: str(c.get("name")) for c in data["categories"] if _has_id(c)}
    usable: list[tuple[int, dict[str, Any]]] = []
    for place, entry in enumerate(objects):
        if why := _fault(entry, where, classes):
            found.append(("labels-unusable", Place(split, file, detail=f"annotation {place}: {why}")))
        else:
            usable.append((where[entry["image_id"]], entry))
    usable.sort(key=lambda pair: pair[0])
    return _arrays(split, folder, data, images, usable, classes), found


def _images(split: str, data: dict[str, Any], found: list[tuple[str, Place]]) -> list[dict[str, Any]]:
    usable = []
    for place, image in enumerate(data["images"]):
        if _has_id(image) and isinstance(image.get("file_name"), str):
            usable.append(image)
        else:
            detail = f"image {place} has no id or no file_name"
            found.append(("labels-unusable", Place(split, detail=detail)))
    return usable


def _fault(entry: Any, images: dict[int, int], classes: dict[int, str]) -> str:
    if not _has_id(entry):
        return "has no id"
    # an id that cannot be hashed cannot be looked up either
    if not isinstance(entry.get("image_id"), int) or entry["image_id"] not in images:
        return f"of image {entry.get('image_id')!r}, which is not listed"
    if not isinstance(entry.get("category_id"), int) or entry["category_id"] not in classes:
        return f"of category {entry.get('category_id')!r}, which is not listed"
    box = entry.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return "bbox is not [x, y, width, height]"
    return ""


def _arrays(
    split: str,
    folder: Path,
    data: dict[str, Any],
    images: list[dict[str, Any]],
    usable: list[tuple[int, dict[str, Any]]],
    classes: dict[int, str],
) -> Labels:
    seen: Counter[int] = Counter()
    number = []
    for index, _ in usable:
        number.append(seen[index])
        seen[index] += 1
    objects = [entry for _, entry in usable]
    boxes = np.array([entry["bbox"] for entry in objects], float).reshape(-1, 4)
    areas = [
        entry["area"] if is_number(entry.get("area")) else max(w, 0) * max(h, 0)
        for entry, (_, _, w, h) in zip(objects, boxes.tolist(), strict=True)
    ]
    sides = [[image.get(side) for side in ("width", "height")] for image in images]
    return Labels(
        split,
        folder,
        data,
        images,
        objects,
        boxes,
        np.array(areas, float),
        np.array([index for index, _ in usable], np.int64),
        np.array(number, np.int64),
        np.array([entry["category_id"] for entry in objects], np.int64),
        np.array([[s if is_number(s) else 0 for s in pair] for pair in sides], float).reshape(-1, 2),
        classes,
    )


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number and no truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def bins(areas: Floats) -> dict[str, int]:
    """How many of (O,) areas in px are small, medium and large."""
    small, large = int((areas < SMALL_PX2).sum()), int((areas >= LARGE_PX2).sum())
    return {"small": small, "medium": len(areas) - small - large, "large": large}
