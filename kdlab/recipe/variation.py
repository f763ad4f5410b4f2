"""Request for an ablation: methods, values of their options, settings of the two models."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from kdlab.errors import UsageError
from kdlab.recipe.document import printable
from kdlab.recipe.files import shareable
from kdlab.recipe.yaml_reader import values

FOLDER = "ablate"
_NAME_CHARACTERS = 80
_OWNERS = {"--vary": "METHOD", "--pairs": "student|teacher"}
_FORMS = {"--vary": "rm.rank=cls,loc,both", "--pairs": "student.width=8,16"}


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes in turn.

    Args:
        key: "rm.rank" or "student.width".
        values: plain data.
        flag: the option that names them: "--vary".
        text: what it was given: "rm.rank=cls,loc,both".
    """

    key: str
    values: tuple[Any, ...]
    flag: str
    text: str

    @property
    def said(self) -> str:
        """The option as messages show it."""
        return printable(f"{self.flag} {self.text}")

    @property
    def owner(self) -> str:
        """Owner of the key: the instance of a method, "student", "teacher"."""
        return self.key.partition(".")[0]

    @property
    def option(self) -> str:
        """The key without its owner."""
        return self.key.partition(".")[2]

    @property
    def texts(self) -> list[str]:
        """The values as names hold them."""
        return [text_of(value) for value in self.values]


@dataclass(frozen=True)
class Request:
    """Variations of a recipe.

    Args:
        losses: instances of methods, of which all combinations are formed.
        each: one at a time instead.
        vary: options of them, each combination of values an arm.
        overrides: what else changes in the recipe, "a.b=value" each; later ones win.
    """

    losses: tuple[str, ...]
    each: bool = False
    vary: tuple[Axis, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The option that names the methods."""
        return printable(f"--loss {','.join(self.losses)}")

    def command(self, base: str) -> str:
        """The command line for it."""
        options = [("--loss", ",".join(self.losses)), *((axis.flag, axis.text) for axis in self.vary)]
        options += [("--set", shareable(override)) for override in self.overrides]
        words = [word for option in options for word in option]
        if self.each:
            words.append("--each")
        return shlex.join(["kdlab", "ablate", *words, base])

    def arms(self) -> int:
        """Number of arms that it makes."""
        variants = [prod(len(axis.values) for axis in self.vary if axis.owner == one) for one in self.losses]
        if self.each:
            return 1 + sum(variants)
        return prod(1 + count for count in variants)


def of_seeds(override: str) -> bool:
    """True for an override of the seeds, which needs no brackets in a name."""
    return override.startswith("seeds=[")


def name_of(base: str, request: Request) -> str:
    """The name of an ablation and so its path: short, safe in a shell, the same for the same request."""
    words = ["+".join(request.losses)]
    if request.each:
        words.append("each")
    words += [f"{one.key}={','.join(one.texts)}" for one in request.vary]
    words += [re.sub(r"[][ ]", "", one) if of_seeds(one) else one for one in reversed(request.overrides)]
    folders = base.removeprefix(f"{FOLDER}/").split("/")
    return "/".join([FOLDER, *map(_safe, folders[:-1]), f"{_safe(folders[-1])}--{_safe('--'.join(words))}"])


def _safe(text: str) -> str:
    """`text` in characters that need no quotes; where some are lost a hash keeps it apart from others."""
    safe = re.sub(r"[^\w+@.,=-]", "_", text, flags=re.ASCII)
    if safe == text and len(safe) <= _NAME_CHARACTERS:
        return safe
    return f"{safe[:_NAME_CHARACTERS]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def text_of(value: Any) -> str:
    """A value as names and commands hold it: "loc", "1.5", "null", "[8,16]"."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def yaml_of(value: Any) -> str:
    """A value as YAML in one line, a plain word without quotes."""
    text = text_of(value)
    plain = re.fullmatch(r"[\w./+-]+", text) and values(text, "") == [value]
    return text if plain else json.dumps(value, ensure_ascii=False)


def axis(flag: str, text: str) -> Axis:
    """The axis that an option gives as "rm.rank=cls,loc,both".

    Raises:
        UsageError: it has not that form, or no value, or one twice.
    """
    said, form = printable(f"{flag} {text}"), f"{flag} {_FORMS[flag]}"
    key, equals, listed = text.partition("=")
    if not equals or not all(key.partition(".")):
        what = f"is not of the form {_OWNERS[flag]}.KEY=VALUE,..."
        raise UsageError(what, where=said, fix=f"write {form}")
    found = Axis(key, tuple(values(listed, said)), flag, text)
    if not found.values:
        raise UsageError("names no value", where=said, fix=f"write {form}")
    if twice := sorted({word for word in found.texts if found.texts.count(word) > 1}):
        raise UsageError(f"names {', '.join(twice)} twice", where=said, fix="name each value once")
    return found


def pairs_of(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """The overrides of each pair of models: all combinations of the values; one empty without axes.

    Raises:
        UsageError: an axis is of neither the teacher nor the student.
    """
    check_distinct(axes)
    for one in axes:
        if one.owner not in ("student", "teacher"):
            fix = "for options of a method: --vary; for other keys: --set"
            what = f"{one.key} is not a key of student or teacher"
            raise UsageError(what, where=one.said, got=one.owner, known="student, teacher", fix=fix)
    settings = [[f"{one.key}={yaml_of(value)}" for value in one.values] for one in axes]
    return list(product(*settings))


def check_distinct(axes: Sequence[Axis]) -> None:
    """Refuse two axes of one key.

    Raises:
        UsageError: there are such.
    """
    for place, one in enumerate(axes):
        if one.key in [earlier.key for earlier in axes[:place]]:
            fix = "list all its values in one"
            raise UsageError(f"{one.key} is varied twice", where=one.said, fix=fix)
