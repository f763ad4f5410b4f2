"""A COCO JSON file as arrays, and what of it cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdlab.datasets import _coco_labels as checks
from kdlab.datasets import _coco_objects as objects_of
from kdlab.datasets import coco
from kdlab.errors import Fault, UsageError
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
        label: (O,) label of each object's class: the place of its id among those of all categories.
        sizes: (I, 2) recorded width and height, 0 where there is none.
        classes: names by label.
        category_ids: ids of the categories, rising.
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
    label: Ints
    sizes: Floats
    classes: list[str]
    category_ids: list[int]

    @property
    def files(self) -> list[str]:
        """The file name of each image."""
        return [image["file_name"] for image in self.images]

    @property
    def is_converted(self) -> bool:
        """True for labels that kdlab made of other files, so that ids and whole numbers are its own doing."""
        return any("xml" in image or "txt" in image for image in self.images)

    @property
    def counts(self) -> Ints:
        """(I,) objects of each image."""
        return np.bincount(self.image, minlength=len(self.images))

    @property
    def box_areas(self) -> Floats:
        """(O,) width x height in px."""
        return np.asarray(np.maximum(self.boxes[:, 2:], 0).prod(axis=1))

    def scaled_areas(self, scale: Sequence[int]) -> Floats:
        """(O,) width x height in px of the image after it was resized to fit (width, height)."""
        sizes = np.maximum(self.sizes, 1)
        ratio = np.minimum(max(scale) / sizes.max(axis=1), min(scale) / sizes.min(axis=1))
        return np.asarray(self.box_areas * ratio[self.image] ** 2)

    @property
    def fates(self) -> list[str]:
        """What training makes of each of O objects, see `fate`."""
        sizes, crowds = self.sizes[self.image].tolist(), map(checks.is_crowd, self.objects)
        return [
            objects_of.fate({**entry, "area": area, "iscrowd": crowd}, *size)
            for entry, area, crowd, size in zip(self.objects, self.areas.tolist(), crowds, sizes, strict=True)
        ]

    def place(self, *objects: int, detail: str = "") -> Place:
        """Place of some objects of one image, given their indices."""
        file = self.images[int(self.image[objects[0]])]["file_name"]
        return Place(self.split, file, tuple(int(self.number[index]) for index in objects), detail)


def read(split: str, folder: Path, file: Path) -> tuple[Labels | None, list[tuple[str, Place]]]:
    """The labels of a file, None where nothing of it can be used, and all for which a job refuses it."""
    try:
        data = coco.parsed(file)
        faults = [*coco.category_faults(data["categories"], file), *checks.label_faults(data, str(file))]
    except OSError as error:
        return None, [("labels-unusable", Place(split, str(file), detail=str(error)))]
    except UsageError as error:
        return None, [("labels-unusable", _place(split, fault)) for fault in error.faults]
    if not faults:
        for entry in data["annotations"]:
            objects_of.complete(entry)
        faults += objects_of.unmeant(data, str(file))
    kinds = {objects_of.NOTHING_LEFT: "nothing-left"}
    found = [(kinds.get(fault.what, "labels-unusable"), _place(split, fault)) for fault in faults]
    return arranged(split, folder, data), found


def _place(split: str, fault: Fault) -> Place:
    got = f" ({fault.got})" if fault.got else ""
    return Place(split, Path(fault.where).name, detail=f"{fault.what}{got}")


def arranged(split: str, folder: Path, data: dict[str, Any]) -> Labels:
    """The usable entries of a parsed file with lists of images, annotations and categories."""
    images = [image for image in data["images"] if checks.has_id(image) and checks.has_name(image)]
    where = {image["id"]: index for index, image in enumerate(images)}
    named = {entry["id"]: str(entry.get("name")) for entry in data["categories"] if checks.has_id(entry)}
    category_ids = sorted(named)
    label = {number: place for place, number in enumerate(category_ids)}
    objects = [entry for entry in data["annotations"] if checks.is_usable(entry, where, label)]
    objects.sort(key=lambda entry: where[entry["image_id"]])
    image_of = np.array([where[entry["image_id"]] for entry in objects], np.int64)
    boxes = np.array([entry["bbox"] for entry in objects], float).reshape(-1, 4)
    sizes = np.stack([_numbers(images, side, np.zeros(len(images))) for side in ("width", "height")], 1)
    areas = _numbers(objects, "area", np.maximum(boxes[:, 2:], 0).prod(axis=1))
    return Labels(
        split,
        folder,
        data,
        images,
        objects,
        boxes,
        areas,
        image=image_of,
        number=np.arange(len(objects)) - np.searchsorted(image_of, image_of),
        label=np.array([label[entry["category_id"]] for entry in objects], np.int64),
        sizes=sizes,
        classes=[named[number] for number in category_ids],
        category_ids=category_ids,
    )


def _numbers(entries: Sequence[dict[str, Any]], key: str, default: Floats) -> Floats:
    """The numbers under a key of all entries, and the default of each that has none."""
    pairs = zip([entry.get(key) for entry in entries], default.tolist(), strict=True)
    return np.array([value if checks.is_number(value) else other for value, other in pairs], float)


def bins(areas: Floats) -> dict[str, int]:
    """Numbers of small, medium and large objects among (O,) areas in px."""
    small, large = int((areas < SMALL_PX2).sum()), int((areas >= LARGE_PX2).sum())
    return {"small": small, "medium": len(areas) - small - large, "large": large}
