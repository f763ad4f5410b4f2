"""Recipe -> Plan: which jobs, in which order, which of them are already done and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdlab import catalog
from kdlab.devices import Machine
from kdlab.errors import Fault, UsageError, fixes, suggestion
from kdlab.jobs import gate, store
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.spec import Schedule, plain
from kdlab.jobs.store import PastJob
from kdlab.planning import facts as facts_of
from kdlab.planning import out_of_memory as memory
from kdlab.planning import pairing
from kdlab.planning import weights as weight_files
from kdlab.planning.facts import Facts
from kdlab.planning.history import History, flat
from kdlab.planning.jobs import jobs_of
from kdlab.recipe.settings import Recipe

SAFETY, CONTEXT_GB = 1.2, 1.0
"""GPU memory of a job: so many times the peak that was measured, and the memory of CUDA itself."""


def prepare(
    recipe: Recipe,
    runs: Runs,
    machine: Machine,
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Gather what must be known, then `build`.

    Args:
        recipe: what is wanted.
        runs: where finished jobs are.
        machine: that trains.
        progress: told what takes time.

    Raises:
        KdlabError: the data or the models are not to be had, a method cannot serve the pair, or `runs` is of
            another version of kdlab.
    """
    # first, for it tells at once where a folder is of another version
    past = store.past_jobs(runs)
    return build(recipe, facts_of.gather(recipe, machine, progress), past, store.shortages(runs))


def build(
    recipe: Recipe,
    facts: Facts,
    past: Mapping[str, PastJob],
    out_of_memory: Mapping[str, store.Shortage] | None = None,
) -> Plan:
    """The plan of a recipe: a pure function of its arguments.

    Args:
        recipe: what is wanted.
        facts: of data and models.
        past: the finished jobs, by id.
        out_of_memory: those that ran out of GPU memory, by id.

    Raises:
        UsageError: a method cannot serve the pair, or weights do not fit their model; all faults at once.
    """
    if faults := list(_faults(recipe, facts)):
        raise UsageError(faults=faults)
    failed = (out_of_memory or {}) if recipe.resources.on_oom == "micro_batch" else {}
    wanted = memory.fitting(jobs_of(recipe, facts), failed, facts.gpu_gb)
    history = History(past)
    jobs = tuple(planned(job, facts.versions, past, history) for job in wanted)
    key = json.dumps([recipe.name, [planned.job.id for planned in jobs]])
    return Plan(
        id=hashlib.sha256(key.encode()).hexdigest()[:8],
        recipe=recipe.to_dict(),
        jobs=jobs,
        device=facts.device,
        dataset={"name": facts.files.name, "fingerprint": facts.files.fingerprint},
        notes=(
            *facts.notes,
            *_notes(recipe, facts),
            *_job_notes([planned.job for planned in jobs], past),
        ),
    )


def planned(
    job: Job, versions: Mapping[str, str], past: Mapping[str, PastJob], history: History
) -> PlannedJob:
    """The job with its result where it is done, else with the nearest that is and its expected cost.

    Args:
        job: what would run.
        versions: of the packages that decide numbers.
        past: the finished jobs, by id.
        history: the same as evidence.

    Raises:
        UsageError: it is finished and has other settings than its id says.
    """
    if job.id in past:
        _check_same(job, past[job.id].job)
        result = past[job.id].result
        made = {name: result.environment.get(name, "?") for name in versions}
        other = [f"{name} {made[name]}" for name in made if made[name] != versions[name]]
        return PlannedJob(
            job, True, f"reused, made with {', '.join(other)}" if other else "reused", 0.0, "done"
        )
    peak_gb = max((old.result.peak_memory_gb for old in history.same(job)), default=0.0)
    return PlannedJob(with_memory(job, peak_gb), False, history.why_new(job), *history.cost(job))


def _check_same(job: Job, done: Job) -> None:
    """See that a finished job has the settings of the planned one, and not its id alone.

    Raises:
        UsageError: a plugin's default or the file of a job was changed.
    """
    if done.spec == job.spec:
        return
    mine, theirs = flat(plain(job.spec)), flat(plain(done.spec))
    differs = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    raise UsageError(
        f"{done.id} was made with other settings than its id says: {', '.join(differs)}",
        where=f"{job.label} ({job.id})",
        got=", ".join(f"{key} {theirs.get(key)}" for key in differs),
        known=", ".join(f"{key} {mine.get(key)}" for key in differs),
        fix="raise VERSION in the plugin whose default was changed, or remove the folder of that job",
    )


def with_memory(job: Job, peak_gb: float) -> Job:
    """The job with the GPU memory that it needs if others like it took `peak_gb`; 0 is not known."""
    if not (peak_gb and job.resources.gpus):
        return job
    need = round(SAFETY * peak_gb + CONTEXT_GB, 2)
    return replace(job, resources=replace(job.resources, memory_gb=need))


def _faults(recipe: Recipe, facts: Facts) -> Iterator[Fault]:
    """All that keeps a recipe from being trained, those of the recipe that its teacher comes from first."""
    if recipe.stage and facts.stage:
        yield from _faults(recipe.stage, facts.stage)
    answers = {"student": facts.student, "teacher": facts.teacher}
    yield from _untrainable(recipe, facts)
    yield from _unfit_rates(recipe, facts)
    yield from weight_files.faults(recipe, facts.weights, answers)
    yield from pairing.faults(recipe, facts.student, facts.teacher)
    yield from pairing.inheritance(recipe, facts.student, facts.teacher)
    yield from pairing.padding(recipe, facts.student, facts.teacher)


def _notes(recipe: Recipe, facts: Facts) -> Iterator[str]:
    """What to know of the models and their weights, those of a chain of teachers with their recipe's name."""
    if recipe.teacher and recipe.stage and facts.stage:
        yield f"teacher: {recipe.teacher.arm} seed {recipe.teacher.seed} of {recipe.stage.name}"
        yield from (f"{recipe.stage.name}: {note}" for note in _notes(recipe.stage, facts.stage))
    yield from _model_notes(recipe, facts)
    yield from weight_files.notes(facts.weights, {"student": facts.student, "teacher": facts.teacher})


def _untrainable(recipe: Recipe, facts: Facts) -> Iterator[Fault]:
    """Models that only serve with weights from elsewhere, and schedules that this machine cannot run."""
    precisions: dict[str, str | None] = {}
    fixes = {"student": "kdlab ls detectors", "teacher": "give it a checkpoint"}
    for role, key, schedule, model in _schedules(recipe, facts):
        precisions[key] = schedule.precision
        if not model["trains"]:
            what = f"{role}.detector cannot be trained: it learns masks, and datasets have none"
            yield Fault(what, recipe.path, model["detector"], fix=fixes[role])
        if schedule.precision == "fp16" and "queries" in model["provides"]:
            what = f"{key}.precision: fp16 cannot match the queries of a DETR"
            got = "mmdet takes the logarithm of 1 - score, and half precision rounds a sure score to 1"
            yield Fault(what, recipe.path, got, "fp32, bf16", f"--set {key}.precision=bf16")
    if recipe.teacher:
        precisions["teacher"] = recipe.teacher.precision
    for key, precision in precisions.items():
        if precision == "fp16" and facts.device == "cpu":
            what, fix = f"{key}.precision: fp16 needs a GPU", f"--set {key}.precision=fp32"
            yield Fault(what, recipe.path, "a machine without one", "fp32, bf16", fix)


def _schedules(recipe: Recipe, facts: Facts) -> Iterator[tuple[str, str, Schedule, dict[str, Any]]]:
    """Each role that is trained: the path of its schedule in the recipe, the schedule, facts of the model."""
    yield "student", "schedule", recipe.schedule, facts.student
    if recipe.teacher and facts.teacher and recipe.teacher.is_own:
        yield "teacher", "teacher.schedule", recipe.teacher.schedule, facts.teacher


def _unfit_rates(recipe: Recipe, facts: Facts) -> Iterator[Fault]:
    """Learning rates of parts and layers that a model lacks."""
    for role, key, schedule, model in _schedules(recipe, facts):
        for part in schedule.lr_factors:
            if part not in model["parts"]:
                whole = ", ".join(name for name in model["parts"] if "." not in name)
                near = suggestion(part, model["parts"])
                fix = fixes(near, "name a part as its weights are called: backbone.layer4")
                where = recipe.place(f"{key}.lr_factors.{part}")
                yield Fault(f"{key}.lr_factors names no part of the {role}", where, part, whole, fix)
        if schedule.layer_decay is not None and not model["layers"]:
            what = f"{key}.layer_decay: the {role}'s backbone has no blocks in sequence, as Swin has"
            fix = f"--set {key}.layer_decay=null, or factors of its parts: {key}.lr_factors"
            yield Fault(what, recipe.place(f"{key}.layer_decay"), f"{schedule.layer_decay:g}", fix=fix)


def _model_notes(recipe: Recipe, facts: Facts) -> Iterator[str]:
    """Configs that are code, methods' other defaults for a config's family, levels without a partner."""
    for role, model in weight_files.models_of(recipe).items():
        if model.detector not in catalog.detectors() and model.detector.endswith(".py"):
            yield f"{role}.detector: {model.detector} is Python, which this plan and every job of it run"
    family, known, used = facts.student["detector"], catalog.methods(), set()
    if recipe.student.detector not in catalog.detectors():
        used = {method.method for arm in recipe.arms.values() for method in arm.values()}
    for key in sorted(used):
        if defaults := known[key].defaults_for.get(family):
            values = ", ".join(f"{name} {value}" for name, value in defaults.items())
            yield f"{key} has other defaults for {family}: {values}; of a config the recipe must say so"
    if facts.teacher and facts.teacher["strides"] != facts.student["strides"]:
        shared = set(facts.teacher["strides"]) & set(facts.student["strides"])
        left = sorted(set(facts.teacher["strides"]) ^ set(facts.student["strides"]))
        yield f"methods meet at strides {sorted(shared)}; {left} have no partner"


def _job_notes(jobs: Sequence[Job], past: Mapping[str, PastJob]) -> Iterator[str]:
    """Reused teachers that miss what is expected of them, and jobs that ran out of memory."""
    for job in jobs:
        if job.id in past and (fault := gate.fault(job, past[job.id].result.metrics)):
            yield f"{fault.what}: nothing will be trained"
        if images := job.spec.micro_batch:
            yield f"{job.label} ran out of GPU memory: {images} images a forward pass, the batch as it was"
