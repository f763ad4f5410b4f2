"""Report of the weights of a model that were found in a checkpoint, and the usual cause of a difference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

from torch import Tensor

from kdlab.errors import Fault, JobError

SHOWN = 3
"""Names of each group that are shown to people."""


@dataclass(frozen=True)
class Misshaped:
    """A tensor that both have in different shapes."""

    name: str
    model: list[int]
    checkpoint: list[int]


@dataclass(frozen=True)
class KeyReport:
    """What became of each name, without the batch counters of BatchNorm, which change nothing.

    Args:
        prefix: what stands before the model's names in the checkpoint.
        loaded: names found with equal shapes.
        missing: names of the model that the checkpoint lacks.
        misshaped: names found in another shape.
        unexpected: names of the checkpoint inside parts that the model has (a layer3.6 beside its layer3).
        beside: parts of the checkpoint that the model has not ("fc", "teacher"), with their tensors counted.
    """

    prefix: str
    loaded: list[str]
    missing: list[str]
    misshaped: list[Misshaped]
    unexpected: list[str]
    beside: dict[str, int]

    @property
    def whole(self) -> bool:
        """Whether the checkpoint is one of this very model."""
        return not (self.missing or self.misshaped or self.unexpected)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; of what was loaded only how much of each part."""
        return {**asdict(self), "loaded": dict(_parts(self.loaded)), "whole": self.whole}

    def lines(self) -> list[str]:
        """For people: what was loaded, then counts and first names of what is wrong in each part."""
        loaded = _parts(self.loaded)
        every = _parts([*self.loaded, *self.missing, *(one.name for one in self.misshaped)])
        told = [f"{', '.join(f'{part} {loaded[part]} of {every[part]}' for part in every)} loaded"]
        wrong = [f"{one.name} {_shape(one.checkpoint)}, not {_shape(one.model)}" for one in self.misshaped]
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": wrong}
        for word, entries in groups.items():
            for part, count in _parts(entries).items():
                own = [entry for entry in entries if part in _parts([entry])]
                told.append(f"{count} {word} in {part}: {some(own)}")
        if self.beside:
            told.append(f"left aside: {', '.join(f'{part} ({n})' for part, n in self.beside.items())}")
        return told

    def hint(self) -> str:
        """The usual cause of what is wrong."""
        wrong = _parts([*self.missing, *self.unexpected, *(entry.name for entry in self.misshaped)]).keys()
        if not self.loaded:
            return "nothing fits: another family of detectors, or no detector at all"
        if wrong == {"head"} and not [*self.missing, *self.unexpected] and len(self.misshaped) <= 3:
            return "it was trained with another number of classes"
        strangers = [*self.unexpected, *Counter(self.beside).elements()]
        if len(self.missing) == len(strangers) and not self.misshaped:
            return f"keys were renamed: what should be {self.missing[0]} may stand under {strangers[0]}"
        if "head" in _parts(self.missing):
            return "its head is of another family of detectors, or has other head_convs"
        if wrong.isdisjoint(("neck", "head")):
            return "its backbone has another depth or width"
        return "another backbone, width, neck_channels or strides"

    def fault(self, where: str, role: str, fix: str) -> Fault:
        """The error of a report that is not whole."""
        got = "\n         ".join([*self.lines(), f"likely: {self.hint()}"])
        return Fault(f"the {role} does not load whole from this checkpoint", where, got, fix=fix)


def fit(
    model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str = ""
) -> tuple[dict[str, Tensor], KeyReport]:
    """The tensors for a model under the model's own names, and the report.

    They stand under the prefix ("module.", "student.", "backbone.") with which most names of the model are
    found in equal shapes.

    Args:
        model: its `state_dict()`; on the meta device will do.
        tensors: what a checkpoint holds.
        where: names the checkpoint in errors.

    Raises:
        JobError: two prefixes fit equally well, as where a checkpoint holds two models of one kind.
    """
    wanted, given = _shapes(model), _shapes(tensors)
    prefix, inside = _prefix(wanted, given, where), set(map(_first, wanted))
    loaded, missing, misshaped, unexpected, beside = [], [], [], [], Counter[str]()
    for name, shape in wanted.items():
        there = given.get(f"{prefix}{name}")
        if there is None:
            missing.append(name)
        elif there != shape:
            misshaped.append(Misshaped(name, shape, there))
        else:
            loaded.append(name)
    for long in given:
        name = long.removeprefix(prefix)
        if not long.startswith(prefix) or _first(name) not in inside:
            beside[_first(name)] += 1
        elif name not in wanted:
            unexpected.append(name)
    report = KeyReport(prefix, loaded, missing, misshaped, unexpected, dict(beside))
    names = [*loaded, *filter(_is_counter, model)]
    return {name: tensors[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in tensors}, report


def _prefix(wanted: Mapping[str, Any], given: Mapping[str, Any], where: str) -> str:
    """What stands before most of the wanted names."""
    counts: Counter[str] = Counter()
    for name, shape in given.items():
        for cut in re.finditer(r"^|(?<=\.)", name):
            if wanted.get(name[cut.end() :]) == shape:
                counts[name[: cut.end()]] += 1
    most = max(counts.values(), default=0)
    # of two models that hold all its names, as a ResNet-101 beside a ResNet-50, the smaller is the one
    sizes = {p: sum(map(str.startswith, given, repeat(p))) for p, count in counts.items() if count == most}
    best = [prefix for prefix, size in sizes.items() if size == min(sizes.values())]
    # below half the model the report tells more than two prefixes would
    if len(best) > 1 and 2 * most >= len(wanted):
        raise JobError(
            "the checkpoint holds the model more than once",
            where=where,
            got=f"{most} tensors each under {', '.join(best)}",
            fix="save the one that you mean in a file of its own",
        )
    return min(best, key=len, default="")


def _parts(names: Iterable[str]) -> Counter[str]:
    """How many names each part has: backbone, neck, head."""
    return Counter("head" if _first(name).endswith("head") else _first(name) for name in names)


def some(words: Sequence[str]) -> str:
    """First few of the words."""
    return ", ".join(words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Shapes by name, without batch counters."""
    return {name: list(value.shape) for name, value in state.items() if not _is_counter(name)}


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _first(name: str) -> str:
    return name.partition(".")[0]


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
