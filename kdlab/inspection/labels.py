"""A COCO JSON file as arrays, and what of it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlab.datasets._coco_labels import (
    NO_AREA,
    NO_BOX,
    NO_CATEGORY,
    NO_IMAGE,
    NO_SIZE,
    annotation_faults,
    has_id,
    is_number,
    label_faults,
)
from kdlab.inspection.findings import Place

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
        """True for labels that kdlab made of XML files, so that ids and whole numbers are its own doing."""
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
        """Place of some objects of one image, given their indices."""
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
    # a job refuses these and the arrays below take them; `prepare` finds them in small files only
    for fault in label_faults(data, str(file)):
        if NO_SIZE in fault.what or NO_AREA in fault.what:
            detail = f"{fault.what}: {fault.got}"
            found.append(("labels-unusable", Place(split, file.name, detail=detail)))
    return labels, found


def arranged(
    split: str, folder: Path, data: dict[str, Any], file: str = ""
) -> tuple[Labels, list[tuple[str, Place]]]:
    """The same of a parsed file with lists of images, annotations and categories."""
    found: list[tuple[str, Place]] = []
    images: list[dict[str, Any]] = []
    for place, image in enumerate(data["images"]):
        if has_id(image) and isinstance(image.get("file_name"), str):
            images.append(image)
        else:
            detail = f"image {place} has no id or no file_name"
            found.append(("labels-unusable", Place(split, detail=detail)))
    where = {image["id"]: index for index, image in enumerate(images)}
    classes = {entry["id"]: str(entry.get("name")) for entry in data["categories"] if has_id(entry)}
    objects: list[dict[str, Any]] = []
    for place, entry in enumerate(data["annotations"]):
        if why := _useless(entry, where, classes):
            found.append(("labels-unusable", Place(split, file, detail=f"annotation {place}: {why}")))
        else:
            objects.append(entry)
    objects.sort(key=lambda entry: where[entry["image_id"]])
    image_of = np.array([where[entry["image_id"]] for entry in objects], np.int64)
    boxes = np.array([entry["bbox"] for entry in objects], float).reshape(-1, 4)
    first = np.searchsorted(image_of, image_of)
    labels = Labels(
        split,
        folder,
        data,
        images,
        objects,
        boxes,
        areas=_numbers(objects, "area", np.maximum(boxes[:, 2:], 0).prod(axis=1)),
        image=image_of,
        number=np.arange(len(objects)) - first,
        category=np.array([entry["category_id"] for entry in objects], np.int64),
        sizes=np.stack([_numbers(images, side, np.zeros(len(images))) for side in ("width", "height")], 1),
        classes=classes,
    )
    return labels, found


def _useless(entry: Any, images: Collection[int], categories: Collection[int]) -> str:
    """Why an annotation cannot be used; "" where it can."""
    if not has_id(entry):
        return "has no id"
    for what, got in annotation_faults(entry, images, categories):
        if what in (NO_IMAGE, NO_CATEGORY):
            return f"of {got}, which is not listed"
        if what == NO_BOX:
            return what.removeprefix("whose ")
    return ""


def _numbers(entries: Sequence[dict[str, Any]], key: str, default: Floats) -> Floats:
    """The numbers under a key of all entries, and the default of each that has none."""
    pairs = zip([entry.get(key) for entry in entries], default.tolist(), strict=True)
    return np.array([value if is_number(value) else other for value, other in pairs], float)


def bins(areas: Floats) -> dict[str, int]:
    """Numbers of small, medium and large objects among (O,) areas in px."""
    small, large = int((areas < SMALL_PX2).sum()), int((areas >= LARGE_PX2).sum())
    return {"small": small, "medium": len(areas) - small - large, "large": large}
