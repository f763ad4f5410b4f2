"""What a study tried and found, as plain data: the way from a search to its table and its plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from kdlab.reporting.tables import significant

State = Literal["complete", "pruned", "failed", "running"]
NO_METHOD = "no method"
"""How the note of a trial begins that gains are over; with several students it names the student too."""


@dataclass(frozen=True)
class Dimension:
    """What a study varies: the weight or another option of a method.

    Args:
        name: "pfi.weight".
        low: the smallest value that the search tries; None where it chooses among `choices`.
        high: the largest.
        log: whether the search goes by powers.
        choices: the values of a categorical one.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether its values are a range of numbers."""
        return self.low is not None


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Args:
        number: in the order in which they were asked for.
        state: what became of it.
        params: what it was trained with, by dimension; a method that was off is absent or weighs 0.
        values: one an objective, as `Study.objectives`; empty where it did not come to its end.
        course: AP in points by epoch.
        note: what a reference trial is ("no method", "published"); "" for one that the search chose.
        job: id of its job.
        wall_s: seconds it took.
        why: of a failed one, the cause in a line.
    """

    number: int
    state: State
    params: dict[str, Any]
    values: tuple[float, ...] = ()
    course: dict[int, float] = field(default_factory=dict)
    note: str = ""
    job: str = ""
    wall_s: float | None = None
    why: str = ""

    def off(self, dimension: str) -> bool:
        """Whether the trial has no value there, because the method it belongs to did not take part."""
        weight = f"{dimension.partition('.')[0]}.weight"
        return dimension not in self.params or self.params.get(weight) == 0

    @property
    def plain(self) -> bool:
        """Whether it is a reference without any method."""
        return self.note.startswith(NO_METHOD)

    @property
    def student(self) -> dict[str, Any]:
        """Settings of the student, where several are tried."""
        return {name: value for name, value in self.params.items() if name.startswith("student.")}

    @property
    def epochs(self) -> int | None:
        """After how many epochs it was last measured; None before the first time."""
        return max(self.course, default=None)

    @property
    def last_ap(self) -> float | None:
        """AP after that epoch, in points: of a pruned trial not what it would have come to."""
        return None if self.epochs is None else self.course[self.epochs]


@dataclass(frozen=True)
class Study:
    """All trials of one search.

    Args:
        name: of the recipe that was tuned.
        title: what it trains, for people.
        objectives: "AP", or one like "AP50", which is to be high; then what is to be low, "latency" in ms.
        dimensions: what was varied.
        trials: by number.
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
    importance: dict[str, float] | None
    seed: int
    images: tuple[int, int]
    commit: str = ""
    device: str = ""

    @cached_property
    def complete(self) -> tuple[Trial, ...]:
        """The trials that came to their end with a number for each objective."""
        return tuple(
            trial
            for trial in self.trials
            if trial.state == "complete"
            and len(trial.values) == len(self.objectives)
            and all(map(math.isfinite, trial.values))
        )

    @cached_property
    def best(self) -> Trial | None:
        """The complete trial with the highest AP; of equal ones the cheapest, then the first."""
        return min(self.complete, key=lambda trial: (self.costs(trial), trial.number), default=None)

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """The complete trials that no other one surpasses in all objectives, the cheapest first."""
        costs = {trial.number: self.costs(trial) for trial in self.complete}
        kept = [
            trial
            for trial in self.complete
            if not any(_surpasses(other, costs[trial.number]) for other in costs.values())
        ]
        return tuple(sorted(kept, key=lambda trial: (costs[trial.number][1:], trial.number)))

    @cached_property
    def without_methods(self) -> Trial | None:
        """The first trial that tells what all methods together are worth; None where the study has none."""
        return next((trial for trial in self.trials if trial.plain), None)

    def ap(self, trial: Trial) -> float:
        """AP of a complete trial on the cut part of the training set, in points."""
        return trial.values[0]

    def costs(self, trial: Trial) -> tuple[float, ...]:
        """The objectives of a complete trial as numbers that are all to be low, AP the first."""
        return (-self.ap(trial), *trial.values[1:])

    def gain(self, trial: Trial) -> float | None:
        """AP of a complete trial over its student without methods; None for that one, and without it."""
        plain = next((one for one in self.complete if one.plain and one.student == trial.student), None)
        if plain is None or trial.plain or trial not in self.complete:
            return None
        return self.ap(trial) - self.ap(plain)


def word(value: Any) -> str:
    """A setting as people read it: a number with three significant digits, a choice as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return significant(value, 3)
    return str(value)


def _surpasses(costs: Sequence[float], others: Sequence[float]) -> bool:
    """Whether no cost is above its counterpart and one is below."""
    return costs != others and all(own <= other for own, other in zip(costs, others, strict=True))
