"""Every value of a resolved recipe, and where it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdlab.recipe import loader
from kdlab.recipe.document import Document, KeyPath, dotted
from kdlab.redaction import masked

SECTIONS = ("dataset", "teacher", "student", "schedule", "arms", "inherits", "seeds", "resources", "tune")
DEFAULT = "default"
_OF_ITS_RECIPE = ("schedule", "init")
"""What `show` does not tell of a teacher from another recipe, which says it."""
_METHOD = 3  # keys down to an arm's method: arms, arm, instance


@dataclass(frozen=True)
class Value:
    """One value of a recipe.

    Args:
        key: dotted, as `--set` takes it.
        value: plain data.
        place: where it was written, "my.yaml:7" or "--set a.b=1"; "default" where nowhere.
    """

    key: str
    value: Any
    place: str


def values_of(name: str, overrides: Sequence[str] = ()) -> list[Value]:
    """All values of a recipe, in its order.

    Raises:
        UsageError: as `loader.load`.
    """
    name, document = loader.opened(name, overrides)
    recipe = loader.resolve(document, name).to_dict()
    if recipe["stage"]:
        recipe["teacher"] = {
            key: value for key, value in recipe["teacher"].items() if key not in _OF_ITS_RECIPE
        }
    found = []
    for section in SECTIONS:
        for path, value in _leaves(recipe[section], (section,)):
            place = masked(_place(document, path))
            found.append(Value(dotted(path), value, place))
    return found


def differences(one: Sequence[Value], other: Sequence[Value]) -> list[tuple[str, Any, Any]]:
    """(key, value, other value) where two recipes differ; None where one has no such key."""
    mine, theirs = ({value.key: value.value for value in values} for values in (one, other))
    return [
        (key, mine.get(key), theirs.get(key))
        for key in dict.fromkeys((*mine, *theirs))
        if mine.get(key) != theirs.get(key)
    ]


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Scalars and lists below a value; an empty mapping is one, for that an arm without methods is there."""
    plugin = (path[:1] == ("arms",) and len(path) == _METHOD) or path == ("dataset",)
    if not (isinstance(value, Mapping) and value):
        yield path, value
        return
    for key, inner in value.items():
        if plugin and key == "options":
            # they stand beside the other keys in a file
            for name, option in inner.items():
                yield (*path, name), option
        elif not (plugin and key == "method"):
            # which is named by the key that it stands under
            yield from _leaves(inner, (*path, key))


def _place(document: Document, path: KeyPath) -> str:
    """Where a value or what holds it whole was written."""
    written = document.written(path)
    if written in document.places:
        return document.places[written]
    # a list's or a mapping's own places are those of what is in it
    inside = [place for found, place in document.places.items() if found[: len(written)] == written]
    return inside[0] if inside else DEFAULT
