"""Recipe -> Search: all that `kdlab tune` must know before the first job, or all that forbids it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from kdlab.datasets._tuning_split import images_of, tuning_split
from kdlab.devices import Machine
from kdlab.jobs import store
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.planning import build as plans
from kdlab.planning import facts as facts_of
from kdlab.planning import pace
from kdlab.planning.history import History
from kdlab.recipe import loader as recipes
from kdlab.recipe.document import Document
from kdlab.recipe.files import shareable, typed
from kdlab.recipe.settings import Recipe
from kdlab.tuning import space
from kdlab.tuning.trials import Student, Trials, Variant


@dataclass(frozen=True)
class Search:
    """A recipe, ready to be searched.

    Args:
        recipe: what is tuned.
        document: the same as it was written, with overrides.
        command: what a person types for the search, as others may read it.
        trials: makes the jobs.
        study: its name: "digits/gfl-3fa2c1".
        images: how many the trials train on, and how many they are measured on.
        plan: the jobs before the first trial; it will grow.
        trial: one with what the recipe says, and what it costs.
    """

    recipe: Recipe
    document: Document
    command: str
    trials: Trials
    study: str
    images: tuple[int, int]
    plan: Plan
    trial: PlannedJob

    def whole(self, count: int) -> Plan:
        """The plan as it would be with so many trials more, each to its end."""
        job = self.trial.job
        trials = [replace(self.trial, job=replace(job, id=f"{job.id}-{number}")) for number in range(count)]
        return replace(self.plan, jobs=(*self.plan.jobs, *trials))


def prepare(
    name_or_path: str,
    overrides: Sequence[str],
    runs: Runs,
    machine: Machine,
    progress: Callable[[str], None] = lambda text: None,
    *,
    here: bool = False,
) -> Search:
    """Load a recipe, cut its training images, and see that all that may be tried can be run.

    Its arguments are those of `planning.build.prepare`.

    Raises:
        KdlabError: the recipe, the data or the models do not allow it.
    """
    name, document = recipes.opened(name_or_path, overrides)
    recipe = recipes.load(name_or_path, overrides)
    arm = space.searched_arm(recipe)
    searched = space.dimensions(recipe, arm)
    variants: dict[Student, Variant] = {}
    for values in product(*recipe.tune.student.values()):
        student = tuple(zip(recipe.tune.student, values, strict=True))
        settings = [f"student.{key}={value}" for key, value in student]
        own = recipes.load(name_or_path, [*overrides, *settings])
        facts = facts_of.gather(own, machine, progress)
        progress("tuning split of the training images")
        learned = tuning_split(facts.files, recipe.tune.split)
        variants[student] = Variant(own, replace(facts, learned=learned))
    trials = Trials(variants, arm, searched)
    trials.check()
    words = ["kdlab", "tune", typed(name, document)]
    for one in overrides:
        # the address of a storage may hold a password
        if not one.startswith("tune.storage="):
            words += ["--set", shareable(one)]
    command = shlex.join(words)
    study = f"{name}-{trials.key}"
    told = recipe.to_dict() | {"study": study, "command": command}
    told["tune"] = {**told["tune"], "storage": None}
    past = store.past_jobs(runs)
    history = History(past)
    failed = store.shortages(runs)
    usual = trials.job(trials.usual(next(iter(variants))), failed)
    plan = Plan(
        id=hashlib.sha256(study.encode()).hexdigest()[:8],
        recipe=told,
        jobs=tuple(plans.planned(job, facts.versions, past, history) for job in trials.preparation(failed)),
        device=facts.device,
        dataset={"name": learned.name, "fingerprint": learned.fingerprint},
    )
    trial = PlannedJob(usual, False, "a trial", *history.cost(usual))
    if here:
        known = pace.priced(replace(plan, jobs=(*plan.jobs, trial)), machine, progress).jobs
        plan, trial = replace(plan, jobs=known[:-1]), known[-1]
    return Search(recipe, document, command, trials, study, images_of(learned), plan, trial)
