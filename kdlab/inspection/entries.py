"""Checks of a labels file next to those of its boxes: ids, categories, licences, segmentations, areas."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from kdlab.inspection.findings import Found, Place
from kdlab.inspection.labels import Labels, bins

EXPORT = re.compile(r"\.rf\.[0-9a-f]{32}(?=\.)")
# An area from width x height differs by rounding, a mask's by far more.
_AREA_TOLERANCE = 0.01


def files(labels: Labels) -> Found:
    """File names that an export made, and images without objects."""
    for name, count in zip(labels.files, labels.counts.tolist(), strict=True):
        if EXPORT.search(name):
            yield "export-hash", Place(labels.split, name)
        if not count:
            yield "no-objects", Place(labels.split, name)
    if not labels.objects:
        yield "nothing-labelled", Place(labels.split)


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
    ids = sorted(labels.classes)
    if not ids:
        yield "labels-unusable", Place(labels.split, detail="has no categories")
        return
    gaps = sorted(set(range(ids[0], ids[-1])) - set(ids))
    if gaps:
        shown = ", ".join(map(str, gaps))
        detail = f"ids {ids[0]}..{ids[-1]} without {shown}"
        yield "category-gaps", Place(labels.split, detail=detail, count=len(gaps))
    if ids[0] == 0:
        yield "category-0", Place(labels.split, detail=f"ids 0..{ids[-1]}")
    seen = set(labels.category.tolist())
    for number, name in sorted(labels.classes.items()):
        if number not in seen:
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


CHECKS = (files, ids, categories, licences, segmentations, numbers)
