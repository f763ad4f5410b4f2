"""Faults of the images, annotations and categories of a COCO JSON file, each for itself."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

from kdlab.datasets.base import first_of
from kdlab.errors import Fault

NO_ID, ID_TWICE = "without a whole number as id", "with the id of another"
NO_IMAGE, NO_CATEGORY = "of an image that is not listed", "of a category that is not listed"
NO_BOX, NO_AREA = "whose bbox is not [x, y, width, height]", "whose area is not a number"
NO_SIZE, NO_NAME = "without a whole width and height", "without a file_name"
NEGATIVE = "whose bbox has a negative width or height"
UNPRINTABLE = "holds control characters or surrogates"

_LARGEST_SIDE = 1_000_000
_OWN_ID, _QUOTES = (
    "give each one an id of its own, a whole number",
    "write the number without quotation marks",
)
_WHOLE = "write whole numbers without a decimal point"
_RENAME = "take them out of the name"
_FIXES = {
    NO_ID: _OWN_ID,
    ID_TWICE: _OWN_ID,
    NO_NAME: "name the file, relative to the folder of the images",
    NO_SIZE: f"write the size of the image file there, in pixels, at most {_LARGEST_SIDE:,} a side",
    NO_IMAGE: "list the image, or remove them",
    NO_CATEGORY: "list the category, or remove them",
    NO_BOX: "write four numbers, or remove them",
    NO_AREA: "write a number, or leave area out: it is then width * height",
    NEGATIVE: "swapped corners? write the upper left corner, and a width and height above 0",
}
_REFERENCES = {
    NO_IMAGE: "write the id of the image, a whole number",
    NO_CATEGORY: "write the id of the category, a whole number",
}
_NUMERAL = re.compile(r"\s*-?\d+(\.\d*)?\s*")
_SHOWN = 3
_LARGEST = 1e12
_MOST_CHARS = 100


def is_whole(value: Any) -> bool:
    """True for a whole number that is no truth value."""
    return type(value) is int


def is_size(value: Any) -> bool:
    """True for a number of pixels."""
    return is_whole(value) and 0 < value <= _LARGEST_SIDE


def is_number(value: Any) -> bool:
    """True for a number that is no truth value, and that an image can have."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def is_box(value: Any) -> bool:
    """True for a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def has_id(entry: Any) -> bool:
    """True for an image, an annotation or a category with a whole number as id."""
    return isinstance(entry, dict) and is_whole(entry.get("id"))


def has_name(image: Any) -> bool:
    """True for an image with a `file_name`."""
    return isinstance(image, dict) and isinstance(image.get("file_name"), str) and bool(image["file_name"])


def is_usable(entry: Any, images: Collection[int], categories: Collection[int]) -> bool:
    """True for an annotation that has an id, four numbers as box, and an image and a category of those."""
    if not (has_id(entry) and is_box(entry.get("bbox"))):
        return False
    image, category = entry.get("image_id"), entry.get("category_id")
    return is_whole(image) and image in images and is_whole(category) and category in categories


def is_crowd(entry: dict[str, Any]) -> bool:
    """True where `iscrowd` is 1; text is none of the two."""
    return not isinstance(entry.get("iscrowd"), str) and bool(entry.get("iscrowd"))


def is_printable(name: str) -> bool:
    """False for a name with control characters, line breaks or surrogates, which terminals and files obey."""
    return not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)


def name_key(name: str) -> str:
    """What names have in common that differ in case or Unicode form alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def told(key: str, value: Any) -> str:
    """ "image_id is text: '1'"."""
    shown = ascii(value) if isinstance(value, str) and not is_printable(value) else repr(value)
    return f"{key} is {'text: ' if isinstance(value, str) else ''}{shown}"


def _mend(what: str, value: Any) -> str:
    """The fix of a value that should be a number."""
    values = value if isinstance(value, list) else [value]
    texts = [one for one in values if isinstance(one, str)]
    if texts and all(map(_NUMERAL.fullmatch, texts)):
        return _QUOTES
    is_id = what not in (NO_BOX, NO_AREA)
    whole = is_id and isinstance(value, float) and value.is_integer()
    return _WHOLE if whole else {**_FIXES, **_REFERENCES}[what]


def grouped(found: Iterable[tuple[str, str, str]], where: str) -> Iterator[Fault]:
    """A fault for each kind and fix, with its number and the first few cases.

    Args:
        found: kind, case and fix of each.
        where: the file.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for what, case, fix in found:
        groups.setdefault((what, fix), []).append(case[:_MOST_CHARS])
    for (what, fix), cases in groups.items():
        yield Fault(f"{what}: {len(cases)}", where=where, got=first_of(cases, _SHOWN), fix=fix)


def category_cases(categories: list[Any]) -> Iterator[tuple[str, str, str]]:
    """Kind, case and fix of all that is wrong with categories that are dicts with "id" and "name"."""
    ids, names = Counter[Any](), Counter[str]()
    named: dict[str, list[str]] = {}
    for entry in categories:
        if isinstance(entry["name"], str):
            named.setdefault(entry["name"], []).append(repr(entry["id"]))
    for entry in categories:
        number, name = entry["id"], entry["name"]
        if not is_whole(number):
            yield f"categories {NO_ID}", told("id", number), _mend(NO_ID, number)
        elif ids[number]:
            yield f"categories {ID_TWICE}", f"id {number}", _OWN_ID
        if not isinstance(name, str):
            yield "categories whose name is not text", f"id {number!r}: {name!r}", "write a name in quotes"
        elif not is_printable(name):
            yield f"categories whose name {UNPRINTABLE}", f"id {number!r}: {name!a}", _RENAME
        elif names[name]:
            fix = "remove the category that no annotation names (an export's root?), or rename it"
            yield (
                "categories with the name of another",
                f"{name}: ids {first_of(named[name], 4)}",
                fix,
            )
        if is_whole(number):
            ids[number] += 1
        if isinstance(name, str):
            names[name] += 1


def label_faults(data: dict[str, Any], where: str) -> Iterator[Fault]:
    """A fault for each kind of wrong image or annotation, with its number and the first few.

    Args:
        data: the file's content, with lists of images, annotations and categories.
        where: the file.
    """
    yield from grouped(_entry_cases(data), where)


def _entry_cases(data: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    images: set[int] = set()
    categories = {category["id"] for category in data["categories"] if has_id(category)}
    # where a category has no proper id, that is told, and not of each of its annotations
    known = categories if len(categories) == len(data["categories"]) else None
    faults_of = partial(annotation_faults, images=images, categories=known)
    for noun, ids, faults in (("image", images, _image_faults), ("annotation", set[int](), faults_of)):
        for place, entry in enumerate(data[f"{noun}s"]):
            if not has_id(entry):
                number = entry.get("id") if isinstance(entry, dict) else entry
                got = f"number {place} (from 0)"
                got += f": {told('id', number)}" if number is not None else ""
                yield f"{noun}s {NO_ID}", got, _mend(NO_ID, number)
                continue
            who = f"{noun} {entry['id']}"
            if entry["id"] in ids:
                yield f"{noun}s {ID_TWICE}", who, _OWN_ID
            ids.add(entry["id"])
            for what, got, fix in faults(entry):
                yield f"{noun}s {what}", f"{who}: {got}" if got else who, fix


def _image_faults(image: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    name = image.get("file_name")
    if not has_name(image):
        yield NO_NAME, "" if name is None else f"file_name is {name!r}", _FIXES[NO_NAME]
    elif not is_printable(str(name)):
        yield f"whose file_name {UNPRINTABLE}", ascii(name), _RENAME
    wrong = [side for side in ("width", "height") if not is_size(image.get(side))]
    if wrong:
        got = [told(side, image[side]) for side in wrong if image.get(side) is not None]
        yield NO_SIZE, " and ".join(got), _mend(NO_SIZE, image.get(wrong[0]))


def annotation_faults(
    entry: dict[str, Any], images: Collection[int], categories: Collection[int] | None
) -> Iterator[tuple[str, str, str]]:
    """Kind, value and fix of each fault of an annotation that has an id, those that make it useless first.

    Args:
        entry: the annotation.
        images: ids of the images.
        categories: ids of the categories; None where they are wrong themselves.
    """
    for key, ids, not_listed in (("image_id", images, NO_IMAGE), ("category_id", categories, NO_CATEGORY)):
        value = entry.get(key)
        if not is_whole(value):
            yield f"whose {key} is no whole number", told(key, value), _mend(not_listed, value)
        elif ids is not None and value not in ids:
            yield not_listed, f"{key.removesuffix('_id')} {value}", _FIXES[not_listed]
    box, area = entry.get("bbox"), entry.get("area")
    if not is_box(box):
        yield NO_BOX, told("bbox", box), _mend(NO_BOX, box)
    elif min(entry["bbox"][2:]) < 0:
        yield NEGATIVE, repr(box), _FIXES[NEGATIVE]
    if area is not None and not is_number(area):
        yield NO_AREA, told("area", area), _mend(NO_AREA, area)
    for flag in ("iscrowd", "ignore"):
        value = entry.get(flag)
        if value not in (None, 0, 1):
            fix = "write 0 or 1" + " without quotation marks" * isinstance(value, str)
            yield f"whose {flag} is neither 0 nor 1", told(flag, value), fix
