"""Recipe -> Plan: which jobs, in which order, which of them are already done and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from kdlab import catalog
from kdlab.devices import Machine
from kdlab.errors import Fault, UsageError
from kdlab.jobs import gate, store
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.spec import plain
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
"""What a GPU needs for a job: so many times the peak that was measured, and the memory of CUDA itself."""


def prepare(
    recipe: Recipe, runs: Runs, machine: Machine, progress: Callable[[str], None] = lambda text: None
) -> Plan:
    """Gather what must be known, then `build`.

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
    answers = {"student": facts.student, "teacher": facts.teacher}
    faults = [
        *_untrainable(recipe, facts),
        *weight_files.faults(recipe, facts.weights, answers),
        *pairing.faults(recipe, facts.student, facts.teacher),
        *pairing.inheritance(recipe, facts.student, facts.teacher),
        *_unfit(recipe, facts),
    ]
    if faults:
        raise UsageError(faults=faults)
    failed = (out_of_memory or {}) if recipe.resources.on_oom == "micro_batch" else {}
    wanted = memory.fitting(jobs_of(recipe, facts), failed, facts.gpu_gb)
    history = History(past)
    jobs = tuple(planned(job, facts, past, history) for job in wanted)
    key = json.dumps([recipe.name, [planned.job.id for planned in jobs]])
    return Plan(
        id=hashlib.sha256(key.encode()).hexdigest()[:8],
        recipe=recipe.to_dict(),
        jobs=jobs,
        device=facts.device,
        dataset={"name": facts.files.name, "fingerprint": facts.files.fingerprint},
        notes=(
            *_notes(recipe, facts),
            *weight_files.notes(facts.weights, answers),
            *(note for planned in jobs if planned.job.id in past for note in _missed(planned.job, past)),
            *(note for planned in jobs for note in _in_parts(planned.job)),
        ),
    )


def planned(job: Job, facts: Facts, past: Mapping[str, PastJob], history: History) -> PlannedJob:
    """Whether the job is done, else the nearest that is and what it would cost."""
    if job.id in past:
        _check_same(job, past[job.id].job)
        result = past[job.id].result
        made = {name: result.environment.get(name, "?") for name in facts.versions}
        other = [f"{name} {made[name]}" for name in made if made[name] != facts.versions[name]]
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


def _untrainable(recipe: Recipe, facts: Facts) -> Iterator[Fault]:
    """Models that only serve with weights from elsewhere."""
    trained = {"student": facts.student}
    if facts.teacher and "teacher.checkpoint" not in facts.weights:
        trained["teacher"] = facts.teacher
    for role, model in trained.items():
        if not model["trains"]:
            what = f"{role}.detector cannot be trained: it learns masks, and data sets have none"
            fix = "give it a checkpoint" if role == "teacher" else "kdlab ls detectors"
            yield Fault(what, recipe.path, model["detector"], fix=fix)


def _unfit(recipe: Recipe, facts: Facts) -> Iterator[Fault]:
    """What the recipe asks of a device that this machine lacks."""
    schedules = {"schedule": recipe.schedule}
    if recipe.teacher and recipe.teacher.checkpoint is None:
        schedules["teacher.schedule"] = recipe.teacher.schedule
    for key, schedule in schedules.items():
        if schedule.precision == "amp" and facts.device == "cpu":
            what = f"{key}.precision: amp needs a GPU"
            yield Fault(
                what, recipe.path, "a machine without one", "fp32, amp", f"--set {key}.precision=fp32"
            )


def _notes(recipe: Recipe, facts: Facts) -> Iterator[str]:
    yield from _defaults_of_others(recipe, facts)
    if facts.teacher and facts.teacher["strides"] != facts.student["strides"]:
        shared = set(facts.teacher["strides"]) & set(facts.student["strides"])
        left = sorted(set(facts.teacher["strides"]) ^ set(facts.student["strides"]))
        yield f"methods meet at strides {sorted(shared)}; {left} have no partner"


def _defaults_of_others(recipe: Recipe, facts: Facts) -> Iterator[str]:
    """That methods have other defaults for the family that an mmdet config turns out to be of."""
    family, known = facts.student["detector"], catalog.methods()
    if recipe.student.detector in catalog.detectors():
        return
    used = {method.method for arm in recipe.arms.values() for method in arm.values()}
    for key in sorted(key for key in used if family in known[key].defaults_for):
        values = ", ".join(f"{name} {value}" for name, value in known[key].defaults_for[family].items())
        yield f"{key} is published for {family} with {values}; of a config's student the recipe must say so"


def _missed(job: Job, past: Mapping[str, PastJob]) -> Iterator[str]:
    """That nothing would start, because a teacher that is reused misses what is expected of it."""
    if fault := gate.fault(job, past[job.id].result.metrics):
        yield f"{fault.what}: nothing will be trained"


def _in_parts(job: Job) -> Iterator[str]:
    if images := job.spec.micro_batch:
        yield f"{job.label} ran out of GPU memory: {images} images a forward pass, the batch as it was"
