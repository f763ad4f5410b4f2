"""Errors that a person can act on: what, where, got and known, one fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# control characters but newline and tab, marks that turn the direction of text, other ends of lines, and
# the halves of characters that file names in another encoding leave
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Text with what a terminal would obey written out: an escape character is \x1b."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, told so that it can be mended.

    Args:
        what: the fault in one clause ("arms.rm.rank_mimic is not a method").
        where: `file:line`, a job id or a path; "" where there is no place to name.
        got: the offending value, as it was given.
        known: what would have been accepted.
        fix: one thing to do, best a command that can be run.
    """

    what: str
    where: str = ""
    got: str = ""
    known: str = ""
    fix: str = ""

    def __str__(self) -> str:
        head = "  ".join(part for part in (self.where, self.what) if part)
        fields = (("got", self.got), ("known", self.known), ("fix", self.fix))
        lines = [f"error: {head}", *(f"  {name:<5}  {value}" for name, value in fields if value)]
        return "\n".join(map(indented, lines))


class KdlabError(Exception):
    """Base of kdlab's own errors; holds one fault or, for a recipe, all of them at once."""

    exit_code = 1

    def __init__(
        self,
        what: str = "",
        *,
        where: str = "",
        got: str = "",
        known: str = "",
        fix: str = "",
        faults: Iterable[Fault] = (),
    ) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults) or (Fault(what, where, got, known, fix),)
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), faults=self.faults), ()


class JobError(KdlabError):
    """A job failed: training diverged, a checkpoint is broken, a process was killed."""


class OutOfMemory(JobError):  # noqa: N818  what happened, as torch and Python call it
    """The GPU's memory did not hold a step, or a model.

    Args:
        what: see `KdlabError`, as the other fields of the fault.
        facts: what one needs to choose smaller steps, as `failure.json` holds it: "peak_gb", "total_gb",
            "micro_batch" (images of one forward) and "batchnorm" (whether its statistics are those of a
            forward, so that smaller ones are another training). Without "micro_batch" no step had begun.
    """

    kind = "oom"

    def __init__(self, what: str = "", *, facts: Mapping[str, Any] | None = None, **fault: Any) -> None:
        super().__init__(what, **fault)
        self.facts = dict(facts or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), faults=self.faults, facts=self.facts), ()


class UsageError(KdlabError):
    """The command line or the recipe is wrong."""

    exit_code = 2


class MachineError(KdlabError):
    """The environment is not fit: a missing operator, a folder that cannot be written, no GPU."""

    exit_code = 3


class ShapeError(JobError):
    """Tensors that should agree in shape do not."""


def indented(text: str) -> str:
    """Text whose further lines stand below the first's value, where none of them begins like an error."""
    return re.sub("\n(?: {9})?", "\n" + 9 * " ", text)


def suggestion(word: str, known: Sequence[str]) -> str:
    """ "did you mean rm?" for the nearest of `known`, or "" where nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""


def fixes(*ways: str) -> str:
    """Several fixes on one line, without the empty ones: "did you mean rm?   see: kdlab ls methods"."""
    return "   ".join(filter(None, ways))
