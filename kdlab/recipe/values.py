"""Every value of a resolved recipe, and where it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdlab.recipe import loader
from kdlab.recipe.document import Document, KeyPath, dotted

SECTIONS = ("dataset", "teacher", "student", "schedule", "arms", "inherits", "seeds", "resources", "tune")
DEFAULT = "default"


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
    recipe, document = loader.load(name, overrides).to_dict(), loader.opened(name, overrides)[1]
    found = []
    for section in SECTIONS:
        for path, value in _leaves(recipe[section], (section,)):
            # options stand beside the other keys in a file
            path = tuple(key for place, key in enumerate(path) if key != "options" or place in (0, len(path)))
            found.append(Value(dotted(path), value, _place(document, path)))
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
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            # an arm's method is named by the key that it stands under
            if not (path[:1] == ("arms",) and key == "method"):
                yield from _leaves(inner, (*path, key))
    elif not (isinstance(value, Mapping) and path[-1] == "options"):
        yield path, value


def _place(document: Document, path: KeyPath) -> str:
    """Where a value or what holds it whole was written."""
    written = document.written(path)
    if written in document.places:
        return document.places[written]
    # a list's or a mapping's own places are those of what is in it
    inside = [place for found, place in document.places.items() if found[: len(written)] == written]
    return inside[0] if inside else DEFAULT
