"""Objects of COCO labels that are right one by one: what becomes of each, and whether they can be meant."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from kdlab.datasets._coco_labels import grouped
from kdlab.datasets.base import first_of
from kdlab.errors import Fault

NOTHING_LEFT = "no object is left to learn from or to measure on"
MOST_LOST = "half of the objects or more cannot be learned from or measured on"
_PIXELS = "write boxes in pixels of their image"
_LEFT_OUT = {
    "crowd": ("iscrowd is 1", "set iscrowd to 0 where it is an object"),
    "difficult": ("<difficult> is 1", "set <difficult> to 0 where it is an object"),
    "marked": ("ignore is 1", "set ignore to 0 where it is an object"),
    "outside": ("the box is outside of its image", _PIXELS),
    "without_area": ("the box is smaller than a pixel", _PIXELS),
    "area": ("area is not above 0", "leave area out: it is then width * height"),
}
"""Words and fix of each reason for which an object does not count."""
_SHOWN = 3
_FEW = 3
"""Boxes that are too few to tell corners from sizes, or whether they are meant."""
_NEARLY = 0.9
_HAIR_PX = 1.0
_HAIR = 0.01
_OVERHANG = 0.05
_OVERHANG_PX = 2.0
"""How far sound boxes reach out of their image, as a share of its side and at least in pixels."""

Pair = tuple[dict[str, Any], dict[str, Any]]
"""A complete annotation and its image."""


def fate(box: dict[str, Any], width: int, height: int) -> str:
    """What mmdet makes of a complete COCO annotation when it trains, in an image of that size in pixels.

    Returns:
        "object"; "crowd", ignored by the loss; or why it is dropped: "without_area", "outside", "marked".
    """
    x, y, w, h = box["bbox"]
    if box.get("ignore"):
        return "marked"
    if w < 1 or h < 1 or box["area"] <= 0:
        return "without_area"
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return "outside"
    return "crowd" if box["iscrowd"] else "object"


def complete(box: dict[str, Any]) -> None:
    """Give an annotation w * h as `area` where it has none, and 0 or 1 as `iscrowd`."""
    if box.get("area") is None:
        box["area"] = max(box["bbox"][2], 0) * max(box["bbox"][3], 0)
    box["iscrowd"] = int(bool(box.get("iscrowd")))


def unmeant(data: dict[str, Any], where: str) -> list[Fault]:
    """Faults of labels that cannot be meant as a whole: boxes of another form, or no object is left.

    The one check of plan, doctor and job.

    Args:
        data: labels without a fault in their entries, all annotations complete.
        where: the file.
    """
    images = {image["id"]: image for image in data["images"]}
    if apart := list(_told_apart(data)):
        fix = "list each file once, with all of its objects: those of the other entry are background there"
        what = "files listed as several images, whose objects differ"
        return [*grouped(((what, case, fix) for case in apart), where)]
    pairs = [(box, images[box["image_id"]]) for box in data["annotations"]]
    fractions = [pair for pair in pairs if _is_fraction(*pair)]
    if fractions and 2 * len(fractions) >= len(pairs):
        what = "annotations whose bbox is a fraction of the image, not in pixels"
        fix = "multiply x and width by the width of the image, y and height by its height; "
        fix += "where x and y are the centre, as in YOLO's files, first take half of the size from them"
        return [*_alike(what, fractions, fix, where)]
    if _are_corners(pairs):
        what = "annotations whose bbox is likely [x, y, x2, y2], two corners"
        return [*_alike(what, pairs, "write [x, y, x2 - x, y2 - y]: corner, width and height", where)]
    fates = Counter(fate(box, image["width"], image["height"]) for box, image in pairs)
    if not fates["object"]:
        return [_left_out(NOTHING_LEFT, pairs, where)]
    lost = fates["outside"] + fates["without_area"]
    return [_left_out(MOST_LOST, pairs, where)] if lost > _FEW and 2 * lost >= len(pairs) else []


def _told_apart(data: dict[str, Any]) -> Iterator[str]:
    """Files that stand in the labels more than once, and not with the same objects each time."""
    files: dict[str, list[int]] = {}
    for image in data["images"]:
        files.setdefault(posixpath.normpath(image["file_name"]), []).append(image["id"])
    several = {name: ids for name, ids in files.items() if len(ids) > 1}
    objects: dict[int, list[Any]] = {number: [] for ids in several.values() for number in ids}
    for box in data["annotations"] if several else ():
        if box["image_id"] in objects:
            objects[box["image_id"]].append([box["category_id"], *box["bbox"]])
    for name, ids in several.items():
        first, *others = (sorted(objects[number]) for number in ids)
        if any(one != first for one in others):
            yield f"{name}: images {first_of([*map(str, ids)], _SHOWN)}"


def _name(box: dict[str, Any], image: dict[str, Any]) -> str:
    """Name of an annotation; the ids of those that were converted are nobody's."""
    if "txt" in image and "line" in box:
        return f"{image['txt']}:{box['line']}"
    return f"an object of {image['xml']}" if "xml" in image else f"annotation {box['id']}"


def _alike(what: str, pairs: Sequence[Pair], fix: str, where: str) -> Iterator[Fault]:
    return grouped(((what, f"{_name(*pair)}: {pair[0]['bbox']}", fix) for pair in pairs), where)


def _is_fraction(box: dict[str, Any], image: dict[str, Any]) -> bool:
    x, y, w, h = box["bbox"]
    # no loop: this is asked of each of a million objects
    if not (0 < w <= 1 + _HAIR and 0 < h <= 1 + _HAIR):
        return False
    inside = -_HAIR <= x <= 1 + _HAIR and -_HAIR <= y <= 1 + _HAIR
    return bool(inside and min(image["width"], image["height"]) > 1)


def _are_corners(pairs: Sequence[Pair]) -> bool:
    """True where nearly all boxes lie in their image as corners, and half do not as corner and size."""
    fitting = beyond = exact = 0
    for box, image in pairs:
        x, y, right, bottom = box["bbox"]
        width, height = image["width"], image["height"]
        if not (x < right <= width + _HAIR_PX and y < bottom <= height + _HAIR_PX):
            continue
        fitting += 1
        beyond += x + right > _reach(width) or y + bottom > _reach(height)
        # an area that was not made of these numbers
        meant = (right - x) * (bottom - y)
        exact += meant != right * bottom and abs(box["area"] - meant) <= _HAIR * meant
    return fitting > max(_FEW, _NEARLY * len(pairs)) and max(2 * beyond, exact) >= fitting


def _reach(side: int) -> float:
    return side + max(_OVERHANG_PX, _OVERHANG * side)


def _left_out(what: str, pairs: Sequence[Pair], where: str) -> Fault:
    if not pairs:
        return Fault(what, where=where, got="no annotations", fix="choose other labels")
    reasons: dict[str, list[str]] = {}
    for box, image in pairs:
        if (why := fate(box, image["width"], image["height"])) == "object":
            continue
        has_size = why == "without_area" and min(box["bbox"][2:]) >= 1
        why = "area" if has_size else "difficult" if why == "crowd" and "xml" in image else why
        reasons.setdefault(why, []).append(_name(box, image))
    cases = [f"{_LEFT_OUT[why][0]}: {len(who)} ({first_of(who, _SHOWN)})" for why, who in reasons.items()]
    most = max(reasons, key=lambda why: len(reasons[why]))
    return Fault(what, where=where, got="; ".join(cases), fix=_LEFT_OUT[most][1])
