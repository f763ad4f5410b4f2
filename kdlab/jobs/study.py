"""A study and its trials as plain data: what a search varies, what it tried, what that reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from operator import le
from typing import Any, Literal

State = Literal["pending", "running", "finished", "pruned", "failed"]
WEIGHT, STUDENT = "weight", "student"
NO_METHOD = "no method"
"""A reference trial of the student alone; where several students are tried it is followed by which."""
DIGITS = 3
"""Significant digits of a number that is tried."""


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched.

    Args:
        name: "pfi.weight", "rm.rank", "student.width".
        low: the lowest number to try; with `choices` neither this nor the next three count.
        high: the highest.
        log: whether factors are searched alike, not differences.
        whole: whether only whole numbers will do.
        choices: the values to choose from; () for a number.
        given: whether the recipe says the range, so that no measurement moves it.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()
    given: bool = False

    @property
    def owner(self) -> str:
        """The instance of a method, or "student"."""
        return self.name.rpartition(".")[0]

    @property
    def key(self) -> str:
        """The option of its owner."""
        return self.name.rpartition(".")[2]

    @property
    def range(self) -> str:
        """ "0.5 to 150", "cls, loc, both"."""
        if self.choices:
            return ", ".join(map(text_of, self.choices))
        return f"{text_of(self.low)} to {text_of(self.high)}"

    def clipped(self, value: Any) -> Any:
        """The value of this dimension that is nearest to one outside of it."""
        if self.choices:
            return value if value in self.choices else self.choices[0]
        return min(self.high, max(self.low, value))

    def rounded(self, value: Any) -> Any:
        """A number as it is trained with and written down: with few digits."""
        if self.choices or self.whole or not value:
            return value
        return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Args:
        number: in the order in which they were asked for.
        state: what became of it.
        params: what it was trained with, by dimension; without any method those of the student alone.
        values: one an objective, as `Study.objectives`; empty where it has not finished.
        curve: AP in points by epoch.
        reference: "no method", "published", ...; "" for one that the sampler chose.
        job: id of its job; "" before it has one.
        wall_s: seconds it took; 0 where it was trained before.
        why: of a failed one, the cause in a line.
    """

    number: int
    state: State
    params: dict[str, Any]
    values: tuple[float, ...] = ()
    curve: dict[int, float] = field(default_factory=dict)
    reference: str = ""
    job: str = ""
    wall_s: float = 0.0
    why: str = ""

    def off(self, dimension: str) -> bool:
        """Whether the trial has no value there, because the method it belongs to did not take part."""
        owner = dimension.rpartition(".")[0]
        return dimension not in self.params or self.params.get(f"{owner}.{WEIGHT}") == 0

    @property
    def student(self) -> dict[str, Any]:
        """Settings of the student, where several are tried."""
        return {name: value for name, value in self.params.items() if name.startswith(f"{STUDENT}.")}

    @property
    def has_methods(self) -> bool:
        """Whether any method takes part."""
        return has_methods(self.params)

    @property
    def last_epoch(self) -> int:
        """After how many epochs it was last measured; 0 before the first time."""
        return max(self.curve, default=0)


@dataclass(frozen=True)
class Study:
    """All trials of one search.

    Args:
        name: "digits/gfl-3fa2c1".
        title: what it trains, for people.
        objectives: "AP", or one like "AP50", which is to be high; then what is to be low, "latency" in ms.
        dimensions: what was searched.
        trials: that have begun, by number.
        importance: share of each dimension in the spread of AP (fANOVA), together 1; None where the trials
            were too few to tell.
        seed: of all trials.
        images: how many of the training set the trials trained on, and how many they were measured on.
        commit: of kdlab.
        device: where the trials ran.
    """

    name: str
    title: str
    objectives: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    trials: tuple[Trial, ...]
    importance: Mapping[str, float] | None
    seed: int
    images: tuple[int, int]
    commit: str = ""
    device: str = ""

    @cached_property
    def finished(self) -> tuple[Trial, ...]:
        """The trials that have a finite number for each objective, by AP, then by cost."""
        found = [
            trial
            for trial in self.trials
            if trial.state == "finished"
            and len(trial.values) == len(self.objectives)
            and all(map(math.isfinite, trial.values))
        ]
        return tuple(sorted(found, key=lambda trial: (_costs(trial), trial.number)))

    @property
    def best(self) -> Trial | None:
        """The finished trial with the highest AP; of equal ones the cheapest, then the first."""
        return self.finished[0] if self.finished else None

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """The finished trials that no other one surpasses in all objectives, the cheapest first."""
        costs = {_costs(trial) for trial in self.finished}
        kept = []
        for trial in self.finished:
            others = costs - {_costs(trial)}
            if not any(all(map(le, other, _costs(trial))) for other in others):
                kept.append(trial)
        return tuple(sorted(kept, key=lambda trial: (trial.values[1:], trial.number)))

    @property
    def baseline(self) -> Trial | None:
        """The first trial without any method; None where the study has none."""
        return next((trial for trial in self.trials if not trial.has_methods), None)

    def gain(self, trial: Trial) -> float | None:
        """AP of a finished trial over its student without methods; None for that one, and without it."""
        alone = [one for one in self.finished if not one.has_methods and one.student == trial.student]
        if not alone or not trial.has_methods or trial not in self.finished:
            return None
        return trial.values[0] - alone[0].values[0]


def has_methods(params: Mapping[str, Any]) -> bool:
    """Whether values are of any method, and not of the student alone."""
    return any(not name.startswith(f"{STUDENT}.") for name in params)


def text_of(value: Any) -> str:
    """A setting as people read it: a number with few digits and no exponent, a choice as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{Decimal(f'{value:.{DIGITS}g}') + 0:f}"
    return str(value)


def _costs(trial: Trial) -> tuple[float, ...]:
    """The objectives of a finished trial as numbers that are all to be low, AP the first."""
    return (-trial.values[0], *trial.values[1:])
