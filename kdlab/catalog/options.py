"""Options of a plugin: the type that an annotation says, and the check of a value."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from typing import Any

_PLAIN: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "str": (str, "text"),
    "bool": (bool, "true or false"),
}


@dataclass(frozen=True)
class OptionType:
    """Type of an option, as its annotation says.

    Args:
        kind: int, float, str, bool, choice, tuple, list or optional; `list` is `tuple[X, ...]`.
        of: the types of a tuple's entries, or the one inside a list or an optional.
        choices: the values of a `Literal`.
    """

    kind: str
    of: tuple[OptionType, ...] = ()
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case "choice":
                *others, last = (json.dumps(choice).strip('"') for choice in self.choices)
                return f"{', '.join(others)} or {last}" if others else last
            case "tuple":
                return f"a list [{', '.join(map(str, self.of))}]"
            case "list":
                return f"a list, each {self.of[0]}"
            case "optional":
                return f"{self.of[0]} or null"
        return _PLAIN[self.kind][1]

    def converted(self, value: Any) -> Any:
        """See `Option.check`.

        Raises:
            ValueError: it does not fit.
        """
        match self.kind:
            case "optional":
                return None if value is None else self.of[0].converted(value)
            case "tuple" | "list":
                if not isinstance(value, (list, tuple)):
                    raise ValueError
                kinds = self.of if self.kind == "tuple" else self.of * len(value)
                return tuple(kind.converted(entry) for kind, entry in zip(kinds, value, strict=True))
            case "choice":
                fits = [type(value), value] in [[type(choice), choice] for choice in self.choices]
            case kind:
                fits = isinstance(value, _PLAIN[kind][0]) and isinstance(value, bool) == (kind == "bool")
        if self.kind == "float" and fits:
            value = float(value)
            fits = math.isfinite(value)
        if not fits:
            raise ValueError
        return value


@dataclass(frozen=True)
class Option:
    """One keyword argument of a plugin, as a recipe may set it; `default` counts unless `required`.

    Args:
        name: of the argument.
        type: what it accepts.
        default: its value where a recipe names none.
        required: whether a recipe must name one.
        limits: lowest and highest value of a number.
    """

    name: str
    type: OptionType
    default: Any = None
    required: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)

    def check(self, value: Any) -> Any:
        """`value` as the plugin wants it: an int becomes a float, a list a tuple; a bool is never a number.

        Raises:
            ValueError: "must be ...", where it does not fit.
        """
        try:
            found = self.type.converted(value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"must be {self.accepted}") from error
        low, high = self.limits
        if self.type.kind in ("int", "float") and not low <= found <= high:
            raise ValueError(f"must be {self.accepted}")
        return found

    @property
    def accepted(self) -> str:
        """Accepted values in words: "a number from 0 to 1"."""
        low, high = self.limits
        if low == -math.inf or self.type.kind not in ("int", "float"):
            return str(self.type)
        return f"{self.type} from {low:g}{'' if high == math.inf else f' to {high:g}'}"


def option_type(node: ast.expr | None) -> OptionType | None:
    """The type that an annotation means; None where it is none of those that a recipe can give."""
    match node:
        case ast.Name(id="int" | "float" | "str" | "bool" as kind):
            return OptionType(kind)
        case ast.BinOp(left=inner, op=ast.BitOr(), right=ast.Constant(value=None)):
            return _wrapped("optional", [inner])
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            choices = values.elts if isinstance(values, ast.Tuple) else [values]
            constants = tuple(choice.value for choice in choices if isinstance(choice, ast.Constant))
            return OptionType("choice", choices=constants) if len(constants) == len(choices) else None
        case ast.Subscript(
            value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[inner, ast.Constant(value=end)])
        ) if end is ...:
            return _wrapped("list", [inner])
        case ast.Subscript(value=ast.Name(id="tuple"), slice=entries):
            return _wrapped("tuple", entries.elts if isinstance(entries, ast.Tuple) else [entries])
    return None


def _wrapped(kind: str, nodes: list[ast.expr]) -> OptionType | None:
    types = [option_type(node) for node in nodes]
    return None if None in types else OptionType(kind, tuple(kind for kind in types if kind))
