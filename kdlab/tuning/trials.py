"""Values to try -> the job that tries them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from kdlab.errors import MachineError, UsageError
from kdlab.jobs.job import Job
from kdlab.jobs.spec import Schedule
from kdlab.jobs.store import Shortage
from kdlab.planning import build as plan
from kdlab.planning import pairing
from kdlab.planning.facts import Facts
from kdlab.planning.jobs import jobs_of, scaling
from kdlab.planning.out_of_memory import fitting
from kdlab.recipe.settings import Recipe
from kdlab.tuning import scale
from kdlab.tuning.space import WEIGHT, Dimension, as_in, methods_with

Student = tuple[tuple[str, Any], ...]
"""Settings of a student that is tried, by key: (("width", 8),); () where the recipe lists none."""
Values = Mapping[str, Any]
"""What is tried, by the name of its dimension; a trial without any method has none of a method."""

NO_METHOD = "no method"


@dataclass(frozen=True)
class Variant:
    """The recipe with one of the students that are tried, and the facts of the two models."""

    recipe: Recipe
    facts: Facts


@dataclass(frozen=True)
class Trials:
    """Makes the jobs of a study.

    Args:
        variants: the students that are tried.
        arm: whose methods are tuned.
        space: what is searched.
    """

    variants: Mapping[Student, Variant]
    arm: str
    space: tuple[Dimension, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe with the first student."""
        return next(iter(self.variants.values())).recipe

    @property
    def key(self) -> str:
        """6 hex over all that makes trials comparable: the students, the data, what is searched and how."""
        tune = self.recipe.tune
        jobs = [self.job(self.usual(student)).id for student in self.variants]
        searched = [[one.name, one.given and [one.low, one.high], list(one.choices)] for one in self.space]
        text = json.dumps([jobs, searched, tune.objectives, tune.sampler, tune.pruner])
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    def check(self) -> None:
        """See that every value can be tried with every student.

        Raises:
            UsageError: a method cannot serve a pair, weights do not fit their model, the trials would have a
                seed of the final table, or the sampler knows one objective only.
            MachineError: the sampler needs a package that is not there.
        """
        recipe = self.recipe
        _check_sampler(recipe)
        _check_objectives(recipe)
        if recipe.tune.seed in recipe.seeds:
            what = "tune.seed is among seeds: what one seed has chosen must be measured by others"
            fix = f"--set tune.seed={max(recipe.seeds) + 1000}"
            raise UsageError(what, where=recipe.path, got=str(recipe.tune.seed), fix=fix)
        for student, variant in self.variants.items():
            plan.build(variant.recipe, variant.facts, {})
            for values in self._one_by_one(student):
                facts = variant.facts
                if faults := list(pairing.faults(self._of_trial(values), facts.student, facts.teacher)):
                    raise UsageError(faults=faults)

    def job(self, values: Values, failed: Mapping[str, Shortage] | None = None) -> Job:
        """The job of a trial.

        Args:
            values: what it tries.
            failed: the jobs that ran out of GPU memory, by id.
        """
        return self.jobs(values, failed)[-1]

    def jobs(self, values: Values, failed: Mapping[str, Shortage] | None = None) -> list[Job]:
        """The job of a trial behind all that it needs; arguments as for `job`."""
        student = self.student_of(values)
        return self._fitting(jobs_of(self._of_trial(values), self.variants[student].facts), student, failed)

    def preparation(self, failed: Mapping[str, Shortage] | None = None) -> list[Job]:
        """What comes before the first trial: the teacher, what methods prepare of it, a measured pass."""
        found: dict[str, Job] = {}
        for student in self.variants:
            *parents, _ = self.jobs(self.usual(student), failed)
            found |= {job.id: job for job in parents}
        return [*found.values(), *self.scales(failed).values()]

    def scales(self, failed: Mapping[str, Shortage] | None = None) -> dict[Student, Job]:
        """The job that measures each student: how large its losses are, how long an image takes.

        There are none where that would decide nothing.
        """
        decides = any(one.key == WEIGHT and not one.given for one in self.space)
        if not decides and "latency" not in self.recipe.tune.objectives:
            return {}
        return {student: self._scale(student, failed) for student in self.variants}

    def usual(self, student: Student) -> dict[str, Any]:
        """What the recipe itself says, with one of the students."""
        return as_in(self.recipe, self.arm, [one.name for one in self.space]) | {
            f"student.{key}": value for key, value in student
        }

    def student_of(self, values: Values) -> Student:
        """Which of the students a trial trains."""
        return tuple((key, values[f"student.{key}"]) for key in self.recipe.tune.student)

    def _scale(self, student: Student, failed: Mapping[str, Shortage] | None) -> Job:
        of_which = "".join(f" {key} {value}" for key, value in student)
        job = scaling(
            self.job(self.usual(student), failed), f"scale of {self.arm}{of_which}", scale.ITERATIONS
        )
        (small,) = self._fitting([job], student, failed)
        return small

    def _fitting(
        self, jobs: Iterable[Job], student: Student, failed: Mapping[str, Shortage] | None
    ) -> list[Job]:
        known = (failed or {}) if self.recipe.resources.on_oom == "micro_batch" else {}
        return list(fitting(jobs, known, self.variants[student].facts.gpu_gb))

    def _of_trial(self, values: Values) -> Recipe:
        """The recipe of a single trial."""
        recipe = self.variants[self.student_of(values)].recipe
        methods = methods_with(recipe.arms[self.arm], values) if has_methods(values) else {}
        name = label(values)
        inherits = (name,) if methods and self.arm in recipe.inherits else ()
        changes = {"arms": {name: methods}, "inherits": inherits, "seeds": (recipe.tune.seed,)}
        return recipe.model_copy(update={**changes, "schedule": _schedule(recipe)})

    def _one_by_one(self, student: Student) -> Iterator[dict[str, Any]]:
        """Each value that is one of several to choose from, beside what the recipe says of all others."""
        usual = self.usual(student)
        yield usual
        for one in self.space:
            if one.owner != "student":
                yield from (usual | {one.name: choice} for choice in one.choices)


def has_methods(values: Values) -> bool:
    """Whether a trial has any method."""
    return any(not name.startswith("student.") for name in values)


def label(values: Values) -> str:
    """How people see a trial: "rm 3.2 pfi 41", "rm.rank loc width 8"; the name of a method is its weight."""
    short = {name: name.removesuffix(f".{WEIGHT}").removeprefix("student.") for name in values}
    parts = [f"{short[name]} {text_of(value)}" for name, value in values.items()]
    if not has_methods(values):
        parts.insert(0, NO_METHOD)
    return " ".join(parts)


def text_of(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_sampler(recipe: Recipe) -> None:
    """See before anything is trained that Optuna can make the sampler."""
    tune = recipe.tune
    if tune.sampler != "cmaes":
        return
    if len(tune.objectives) > 1:
        what, fix = "tune.sampler: cmaes knows one objective only", "--set tune.sampler=nsgaii"
        raise UsageError(what, where=recipe.path, got=", ".join(tune.objectives), fix=fix)
    if find_spec("cmaes") is None:
        what = "tune.sampler: cmaes needs the package cmaes"
        raise MachineError(what, where=recipe.path, got="not installed", fix="pip install cmaes")


def _check_objectives(recipe: Recipe) -> None:
    """See that there is something to weigh."""
    if "latency" in recipe.tune.objectives and not recipe.tune.student:
        what = "tune.objectives: latency is that of the student, and there is only one"
        fix = "--set 'tune.student={width: [8, 16]}'"
        raise UsageError(what, where=recipe.path, got=", ".join(recipe.tune.objectives), fix=fix)


def _schedule(recipe: Recipe) -> Schedule:
    """That of a trial: of `tune.epochs`; with one objective it is measured after every epoch."""
    tune, schedule = recipe.tune, recipe.schedule
    by_epoch = len(tune.objectives) == 1
    changes = {"epochs": tune.epochs or schedule.epochs, "eval_every": int(by_epoch), "keep_best": False}
    return schedule.model_copy(update=changes)
