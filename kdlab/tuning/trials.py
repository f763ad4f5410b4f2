"""Jobs of a study: what comes before the first trial, and the training that tries given values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from kdlab.errors import Fault, MachineError, UsageError
from kdlab.jobs.job import Job
from kdlab.jobs.store import Shortage
from kdlab.jobs.study import NO_METHOD, STUDENT, WEIGHT, Dimension, has_methods, text_of
from kdlab.planning import build as plan
from kdlab.planning import pairing
from kdlab.planning.facts import Facts
from kdlab.planning.jobs import jobs_of, scaling
from kdlab.planning.out_of_memory import fitting
from kdlab.recipe.settings import Recipe
from kdlab.tuning import scale
from kdlab.tuning.space import methods_with, published

Student = tuple[tuple[str, Any], ...]
"""Settings of a student that is tried, by key: (("width", 8),); () where the recipe lists none."""
Params = Mapping[str, Any]
"""Values to try, by dimension; a trial without any method has those of the student alone."""


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

    `failed`, where a method takes it, holds the jobs that ran out of GPU memory, by id.
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

    @property
    def epochs(self) -> int:
        """Epochs of a trial; `check` refuses a recipe that says none."""
        return self.recipe.tune.epochs or self.recipe.schedule.epochs or 0

    def check(self) -> None:
        """See that every value can be tried with every student.

        Raises:
            UsageError: a method cannot serve a pair, weights do not fit their model, the trials would have a
                seed of the final table, or the sampler knows one objective only.
            MachineError: the sampler needs a package that is not there.
        """
        if faults := _faults(self.recipe):
            raise UsageError(faults=faults)
        if self.recipe.tune.sampler == "cmaes" and find_spec("cmaes") is None:
            what = "tune.sampler: cmaes needs the package cmaes"
            raise MachineError(what, where=self.recipe.path, got="not installed", fix="pip install cmaes")
        for student, variant in self.variants.items():
            plan.build(variant.recipe, variant.facts, {})
            usual = self.usual(student)
            methods = [one for one in self.space if one.owner != STUDENT]
            others = [usual | {one.name: choice} for one in methods for choice in one.choices]
            for params in (usual, *others):
                recipe, facts = self._recipe_of(params), variant.facts
                if unserved := list(pairing.faults(recipe, facts.student, facts.teacher)):
                    raise UsageError(faults=unserved)

    def job(self, params: Params, failed: Mapping[str, Shortage] | None = None) -> Job:
        """The job that tries these values."""
        return self.jobs(params, failed)[-1]

    def jobs(self, params: Params, failed: Mapping[str, Shortage] | None = None) -> list[Job]:
        """The same job behind all that it needs."""
        student = self.student_of(params)
        return self._fitting(jobs_of(self._recipe_of(params), self.variants[student].facts), student, failed)

    def preparation(self, failed: Mapping[str, Shortage] | None = None) -> list[Job]:
        """The jobs before the first trial: the teacher, what methods prepare of it, a measured pass."""
        found: dict[str, Job] = {}
        for student in self.variants:
            *parents, _ = self.jobs(self.usual(student), failed)
            found |= {job.id: job for job in parents}
        return [*found.values(), *self.scales(failed).values()]

    def scales(self, failed: Mapping[str, Shortage] | None = None) -> dict[Student, Job]:
        """The job that measures each student: how large its losses are, how long an image takes.

        There are none where that would decide nothing.
        """
        found: dict[Student, Job] = {}
        measured = any(one.key == WEIGHT and not one.given for one in self.space)
        if measured or "latency" in self.recipe.tune.objectives:
            for student in self.variants:
                own = "".join(f" {key} {value}" for key, value in student)
                usual = self.job(self.usual(student), failed)
                job = scaling(usual, f"scale of {self.arm}{own}", scale.ITERATIONS)
                (found[student],) = self._fitting([job], student, failed)
        return found

    def references(self, space: Iterable[Dimension]) -> dict[str, dict[str, Any]]:
        """Values to try first with each student, by name: no method, the papers', the recipe's own."""
        found: dict[str, dict[str, Any]] = {}
        word, of_papers = published(self.recipe, self.arm, space)
        own = self.usual(())
        for student in self.variants:
            settings = {f"{STUDENT}.{key}": value for key, value in student}
            where = "".join(f", {key} {value}" for key, value in student)
            found[f"{NO_METHOD}{where}"] = settings
            found[f"{word}{where}"] = of_papers | settings
            if own != of_papers:
                found[f"recipe{where}"] = own | settings
        return found

    def usual(self, student: Student) -> dict[str, Any]:
        """The recipe's own values, with one of the students."""
        found: dict[str, Any] = {}
        for one in self.space:
            if one.owner != STUDENT:
                method = self.recipe.arms[self.arm][one.owner]
                found[one.name] = method.weight if one.key == WEIGHT else method.options[one.key]
        return found | {f"{STUDENT}.{key}": value for key, value in student}

    def student_of(self, params: Params) -> Student:
        """Which of the students a trial trains."""
        return tuple((key, params[f"{STUDENT}.{key}"]) for key in self.recipe.tune.student)

    def _fitting(
        self, jobs: Iterable[Job], student: Student, failed: Mapping[str, Shortage] | None
    ) -> list[Job]:
        known = (failed or {}) if self.recipe.resources.on_oom == "micro_batch" else {}
        return list(fitting(jobs, known, self.variants[student].facts.gpu_gb))

    def _recipe_of(self, params: Params) -> Recipe:
        """The recipe of a single trial; with one objective it is measured after every epoch."""
        recipe = self.variants[self.student_of(params)].recipe
        name, by_epoch = label(params), len(recipe.tune.objectives) == 1
        methods = methods_with(recipe, self.arm, params) if has_methods(params) else {}
        schedule = {
            "epochs": self.epochs,
            "iterations": None,
            "eval_every": int(by_epoch),
            "keep_best": False,
        }
        changes = {
            "arms": {name: methods},
            "inherits": (name,) if methods and self.arm in recipe.inherits else (),
            "seeds": (recipe.tune.seed,),
            "schedule": recipe.schedule.model_copy(update=schedule),
        }
        return recipe.model_copy(update=changes)


def label(params: Params) -> str:
    """How people see a trial: "rm 3.2 pfi 41", "rm.rank loc width 8"; the name of a method is its weight."""
    short = {name: name.removesuffix(f".{WEIGHT}").removeprefix(f"{STUDENT}.") for name in params}
    parts = [f"{short[name]} {text_of(value)}" for name, value in params.items()]
    return " ".join(parts if has_methods(params) else [NO_METHOD, *parts])


def _faults(recipe: Recipe) -> list[Fault]:
    """What the sections of the recipe say against each other."""
    tune, faults = recipe.tune, []
    objectives = ", ".join(tune.objectives)
    if tune.sampler == "cmaes" and len(tune.objectives) > 1:
        what, fix = "tune.sampler: cmaes knows one objective only", "--set tune.sampler=nsgaii"
        faults.append(Fault(what, recipe.path, objectives, fix=fix))
    if "latency" in tune.objectives and not tune.student:
        what = "tune.objectives: latency is that of the student, and there is only one"
        fix = "--set 'tune.student={width: [8, 16]}'"
        faults.append(Fault(what, recipe.path, objectives, fix=fix))
    if tune.epochs is None and recipe.schedule.epochs is None:
        what, fix = "tune.epochs is missing: schedule counts iterations", "--set tune.epochs=6"
        faults.append(Fault(what, recipe.path, f"schedule.iterations {recipe.schedule.iterations}", fix=fix))
    if tune.seed in recipe.seeds:
        what = "tune.seed is among seeds: what one seed has chosen must be measured by others"
        fix = f"--set tune.seed={max(recipe.seeds) + 1000}"
        faults.append(Fault(what, recipe.path, str(tune.seed), fix=fix))
    return faults
