"""What can be wrong with the content of a COCO JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kdlab.errors import Fault

_SHOWN = 3
_FIXES = {
    "images without a whole number as id": "give each image an id of its own",
    "images with the id of another": "give each image an id of its own",
    "images without a file_name": "name the file, relative to the folder of the images",
    "images without a whole width and height": "write the size of the image file there",
    "annotations without a whole number as id": "give each annotation an id of its own",
    "annotations with the id of another": "give each annotation an id of its own",
    "annotations of an image that is not listed": "list the image, or remove them",
    "annotations of a category that is not listed": "list the category, or remove them",
    "annotations whose bbox is not [x, y, width, height]": "write four numbers, or remove them",
    "annotations whose area is not a number": "write a number, or leave area out: it is then width * height",
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
    found: dict[str, list[str]] = {}
    images: set[int] = set()
    for place, image in enumerate(data["images"]):
        for what, who in _image_faults(image, place, images):
            found.setdefault(what, []).append(who)
    categories = {category["id"] for category in data["categories"] if _has_id(category)}
    annotations: set[int] = set()
    for place, box in enumerate(data["annotations"]):
        for what, who in _annotation_faults(box, place, annotations, images, categories):
            found.setdefault(what, []).append(who)
    for what, all_of_them in found.items():
        shown = ", ".join(all_of_them[:_SHOWN])
        more = f" and {len(all_of_them) - _SHOWN} more" if len(all_of_them) > _SHOWN else ""
        yield Fault(f"{what}: {len(all_of_them)}", where=where, got=shown + more, fix=_FIXES[what])


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int)


def _image_faults(image: Any, place: int, seen: set[int]) -> Iterator[tuple[str, str]]:
    if not _has_id(image):
        yield "images without a whole number as id", f"number {place} (from 0)"
        return
    who = f"image {image['id']}"
    if image["id"] in seen:
        yield "images with the id of another", who
    seen.add(image["id"])
    if not isinstance(image.get("file_name"), str):
        yield "images without a file_name", who
    if not all(isinstance(image.get(side), int) and image[side] > 0 for side in ("width", "height")):
        yield "images without a whole width and height", who


def _annotation_faults(
    box: Any, place: int, seen: set[int], images: set[int], categories: set[int]
) -> Iterator[tuple[str, str]]:
    if not _has_id(box):
        yield "annotations without a whole number as id", f"number {place} (from 0)"
        return
    who = f"annotation {box['id']}"
    if box["id"] in seen:
        yield "annotations with the id of another", who
    seen.add(box["id"])
    image, category, corners = box.get("image_id"), box.get("category_id"), box.get("bbox")
    if not isinstance(image, int) or image not in images:
        yield "annotations of an image that is not listed", f"{who}: image {image!r}"
    if not isinstance(category, int) or category not in categories:
        yield "annotations of a category that is not listed", f"{who}: category {category!r}"
    if not (isinstance(corners, list) and len(corners) == 4 and all(map(_is_number, corners))):
        yield "annotations whose bbox is not [x, y, width, height]", f"{who}: {corners!r}"[:80]
    if box.get("area") is not None and not _is_number(box["area"]):
        yield "annotations whose area is not a number", f"{who}: {box['area']!r}"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
