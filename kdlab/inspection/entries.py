"""Checks of a labels file next to those of its boxes: ids, categories, licences, segmentations, areas."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kdlab.datasets.base import EXPORTED
from kdlab.inspection.findings import Found, Place
from kdlab.inspection.labels import Labels, bins

# An area from width x height differs by rounding, a mask's by far more.
_AREA_TOLERANCE = 0.01
_LOOKED_AT = 1000


def files(labels: Labels) -> Found:
    """File names that an export made, and images without objects."""
    for name, count in zip(labels.files, labels.counts.tolist(), strict=True):
        if EXPORTED.search(name):
            yield "export-hash", Place(labels.split, name)
        if not count:
            yield "no-objects", Place(labels.split, name)


def ids(labels: Labels) -> Found:
    """Ids that come twice, and annotations with id 0."""
    split = labels.split
    for kind, entries in (("image-id-twice", labels.images), ("annotation-id-twice", labels.objects)):
        counts = Counter(entry["id"] for entry in entries)
        for number, count in counts.items():
            if count > 1:
                yield kind, Place(split, detail=f"id {number}", count=count - 1)
    for index, entry in enumerate(labels.objects):
        if entry["id"] == 0:
            yield "annotation-id-0", labels.place(index)


def categories(labels: Labels) -> Found:
    """Category ids with gaps or from 0 on, and classes that no object has."""
    ids = labels.category_ids
    if not ids:
        return
    if gaps := ids[-1] - ids[0] + 1 - len(ids):
        # of ids that are hashes more lack than there is room for
        lacking = [number for number in range(ids[0], min(ids[-1], ids[0] + _LOOKED_AT)) if number not in ids]
        detail = f"ids {ids[0]}..{ids[-1]} without "
        detail += ", ".join(map(str, lacking)) if len(lacking) == gaps else f"{gaps} others"
        yield "category-gaps", Place(labels.split, detail=detail, count=gaps)
    if ids[0] == 0:
        yield "category-0", Place(labels.split, detail=f"ids 0..{ids[-1]}")
    seen = set(labels.label.tolist())
    for label, name in enumerate(labels.classes):
        if label not in seen:
            yield "class-absent", Place(labels.split, detail=name)


def licences(labels: Labels) -> Found:
    """Licences that are not defined, and a year that is text."""
    listed = labels.data.get("licenses")
    # A list, not a set: nothing has checked these ids, and one may be of any kind.
    entries = listed if isinstance(listed, list) else []
    known = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    for image in labels.images:
        if "license" in image and image["license"] not in known:
            yield "licence-missing", Place(labels.split, image["file_name"], detail=f"{image['license']}")
    info = labels.data.get("info")
    if isinstance(info, dict) and isinstance(info.get("year"), str):
        yield "year-text", Place(labels.split, detail=repr(info["year"]))


def segmentations(labels: Labels) -> Found:
    """Segmentations that are empty or RLE, and areas that are those of a mask."""
    shapes = [entry.get("segmentation") for entry in labels.objects]
    if shapes and all(shape == [] for shape in shapes):
        yield "segmentation-empty", Place(labels.split, count=len(shapes))
    for index, (entry, shape) in enumerate(zip(labels.objects, shapes, strict=True)):
        if isinstance(shape, dict) and entry.get("iscrowd"):
            yield "crowd-rle", labels.place(index)
    own = labels.box_areas
    differ = np.flatnonzero(np.abs(labels.areas - own) > _AREA_TOLERANCE * np.maximum(own, 1)).tolist()
    sizes = ", ".join(f"{size} {count}" for size, count in bins(labels.areas).items())
    for place, index in enumerate(differ):
        yield "area-mask", labels.place(index, detail="" if place else f"(by area: {sizes})")


def difficult(labels: Labels) -> Found:
    """Text where a number belongs, under a key that training does not read."""
    for index, entry in enumerate(labels.objects):
        if isinstance(entry.get("difficult"), str):
            yield "difficult-text", labels.place(index, detail=repr(entry["difficult"]))


def numbers(labels: Labels) -> Found:
    """Whole numbers alone, or among fractions; what is given as 3.0 counts as a fraction."""
    if labels.is_converted:
        return
    whole = [sum(isinstance(value, int) for value in entry["bbox"]) for entry in labels.objects]
    if whole and min(whole) == 4:
        yield "whole-numbers", Place(labels.split, count=len(whole))
    elif sum(whole):
        for index in np.flatnonzero(whole).tolist():
            yield "mixed-numbers", labels.place(index)


CHECKS = (files, ids, categories, licences, segmentations, difficult, numbers)
