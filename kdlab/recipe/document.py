"""A recipe as it was read: plain data, the place of each value, and the faults."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdlab.errors import Fault, UsageError, suggestion
from kdlab.redaction import masked

SHOWN_CHARACTERS = 80
MOST_FAULTS, MOST_TOLD = 50, 200
"""Unknown keys of a mapping, and faults of a recipe, that are told one by one."""

KeyPath = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

_CLAUSES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "dict_type": "must hold keys and values",
    "model_type": "must hold keys and values",
}


@dataclass
class Document:
    """A recipe file with its overrides, as plain data.

    Args:
        file: its path, as messages name it.
        text: what the file holds.
        data: mappings, lists and scalars; all keys are text.
        places: for each path of keys where it was written, `file:line` or the option: "--set a.b=1".
        faults: what was wrong so far.
    """

    file: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def fault(
        self, path: KeyPath, clause: str, *, where: str = "", known: Iterable[str] = (), **fields: str
    ) -> None:
        """Note a fault: `clause` continues the dotted path; its place is the path's or its holder's."""
        path = self.written(path)
        holders = (path[:length] for length in range(len(path), -1, -1))
        where = where or next(self.places[holder] for holder in holders if holder in self.places)
        self.faults.append(
            Fault(f"{dotted(path)} {clause}".lstrip(), where, known=shortened(known), **fields)
        )

    def written(self, path: KeyPath) -> KeyPath:
        """Path where a resolved value stands: arms inherit from `methods:`, a teacher from `schedule:`."""
        source = path
        if path[:1] == ("arms",) and len(path) > 3:
            source = ("methods", *path[2:])
        elif path[:2] == ("teacher", "schedule"):
            source = path[1:]
            if path[:2] not in self.places:
                return source
        return source if path not in self.places and source in self.places else path

    def checked(self, model: type[Model], data: Any, path: KeyPath = ()) -> Model | None:
        """`data`, which stands at `path`, as the model; None and faults where it does not fit."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            found = error.errors()
            for details in found:
                place = details["loc"]
                # pydantic counts a list's entries without those at fault
                inside = any(one["loc"][: len(place)] == place for one in found if one is not details)
                if details["type"] != "too_short" or not inside:
                    self._translate(details, path)
            return None

    def _translate(self, details: ErrorDetails, path: KeyPath) -> None:
        """Note an error of pydantic in our words."""
        path, context, near = (*path, *details["loc"]), details.get("ctx", {}), ""
        match details["type"]:
            case "missing" if isinstance(path[-1], int):
                path, clause = path[:-1], "has too few entries"
            case "missing":
                self.fault(path, "is missing", fix=f"add {path[-1]}: ...")
                return
            case "literal_error":
                clause = f"must be {context['expected'].replace(chr(39), '')}"
                near = suggestion(str(details["input"]), re.findall("'([^']*)'", context["expected"]))
            case "value_error":
                clause = str(context["error"])
            case kind:
                message = details["msg"].replace(" after validation", "")
                clause = _CLAUSES.get(kind) or re.sub(r"^\w+ should", "must", message)
        self.fault(path, clause, got=shown(details["input"]), fix=near)

    def error(self) -> UsageError:
        """All faults as one error, in the order of their lines, those of options last."""

        def place(fault: Fault) -> tuple[bool, float]:
            # those of the recipe that a teacher comes from stand in another file, or are of all of it
            file, _, line = fault.where.rpartition(":")
            number = line.isdecimal() and not is_option(fault.where)
            return file != self.file, int(line) if number else math.inf

        faults = sorted(dict.fromkeys(self.faults), key=place)
        if more := faults[MOST_TOLD:]:
            faults = [*faults[:MOST_TOLD], Fault(f"{len(more)} more faults", where=self.file)]
        return UsageError(faults=faults)


def is_option(place: str) -> bool:
    """True for a place on the command line, which has no lines, not in a file."""
    return place.startswith("--")


def dotted(path: KeyPath) -> str:
    """`arms.rm.weight`, with what a terminal would obey made visible."""
    return ".".join(printable(str(key)) for key in path)


def printable(text: str) -> str:
    """The text; with characters that are not printable, as Python writes it."""
    return text if text.isprintable() else ascii(text)


def shown(value: Any) -> str:
    """A value as it would stand in a recipe, cut where it is long."""
    # before it is cut: half an address hides less
    text = json.dumps(masked(value), ensure_ascii=not str(value).isprintable(), default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def shortened(words: Iterable[str]) -> str:
    """The words sorted; of a dozen and more only the first five and the last four."""
    ordered = sorted(words)
    return ", ".join(ordered if len(ordered) <= 12 else [*ordered[:5], "...", *ordered[-4:]])
