"""Faults of the content of a COCO JSON file."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from kdlab.datasets.base import first_of
from kdlab.errors import Fault

NO_IMAGE, NO_CATEGORY = "of an image that is not listed", "of a category that is not listed"
NO_BOX = "whose bbox is not [x, y, width, height]"
NO_SIZE, NO_AREA = "without a whole width and height", "whose area is not a number"

_FIXES = {
    "without a whole number as id": "give each one an id of its own",
    "with the id of another": "give each one an id of its own",
    "without a file_name": "name the file, relative to the folder of the images",
    NO_SIZE: "write the size of the image file there",
    NO_IMAGE: "list the image, or remove them",
    NO_CATEGORY: "list the category, or remove them",
    NO_BOX: "write four numbers, or remove them",
    NO_AREA: "write a number, or leave area out: it is then width * height",
}


def category_names(categories: Any) -> dict[int, str]:
    """Name of each category id.

    Raises:
        ValueError: they are not of COCO's form; says how.
    """
    if not categories:
        raise ValueError('this file has no "categories"')
    try:
        pairs = [(category["id"], category["name"]) for category in categories]
    except (TypeError, KeyError) as error:
        raise ValueError('"categories" is not a list of {"id": ..., "name": ...}') from error
    if not all(isinstance(number, int) and isinstance(name, str) for number, name in pairs):
        raise ValueError('an id in "categories" is not a whole number, or a name is not text')
    names = dict(pairs)
    if not len(pairs) == len(names) == len(set(names.values())):
        raise ValueError('an id or a name occurs twice in "categories"')
    return names


def label_faults(data: dict[str, Any], where: str) -> Iterator[Fault]:
    """A fault for each kind of wrong image or annotation, with its number and the first few.

    Args:
        data: the file's content, with lists of images and annotations.
        where: the file.
    """
    images: set[int] = set()
    categories = {category["id"] for category in data["categories"] if has_id(category)}
    faults_of = partial(annotation_faults, images=images, categories=categories)
    found: dict[tuple[str, str], list[str]] = {}
    for noun, ids, faults in (("image", images, _image_faults), ("annotation", set[int](), faults_of)):
        for place, entry in enumerate(data[f"{noun}s"]):
            if not has_id(entry):
                unnamed = found.setdefault((noun, "without a whole number as id"), [])
                unnamed.append(f"number {place} (from 0)")
                continue
            who = f"{noun} {entry['id']}"
            if entry["id"] in ids:
                found.setdefault((noun, "with the id of another"), []).append(who)
            ids.add(entry["id"])
            for what, got in faults(entry):
                found.setdefault((noun, what), []).append(f"{who}: {got}"[:80] if got else who)
    for (noun, what), entries in found.items():
        told = f"{noun}s {what}: {len(entries)}"
        yield Fault(told, where=where, got=first_of(entries, 3), fix=_FIXES[what])


def has_id(entry: Any) -> bool:
    """True for an image, an annotation or a category with a whole number as id."""
    return isinstance(entry, dict) and isinstance(entry.get("id"), int)


def _image_faults(image: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not isinstance(image.get("file_name"), str):
        yield "without a file_name", ""
    if not all(isinstance(image.get(side), int) and image[side] > 0 for side in ("width", "height")):
        yield NO_SIZE, ""


def annotation_faults(
    entry: dict[str, Any], images: Collection[int], categories: Collection[int]
) -> Iterator[tuple[str, str]]:
    """Kind and value of each fault of an annotation that has an id, those that make it useless first."""
    image, category, area = entry.get("image_id"), entry.get("category_id"), entry.get("area")
    # an id that cannot be hashed cannot be looked up either
    if not isinstance(image, int) or image not in images:
        yield NO_IMAGE, f"image {image!r}"
    if not isinstance(category, int) or category not in categories:
        yield NO_CATEGORY, f"category {category!r}"
    if not is_box(entry.get("bbox")):
        yield NO_BOX, repr(entry.get("bbox"))
    if area is not None and not is_number(area):
        yield NO_AREA, repr(area)


def is_box(value: Any) -> bool:
    """True for a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def is_number(value: Any) -> bool:
    """True for a finite number that is no truth value."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
