"""MLflow's filter -> plans: the runs it lets through, put together as far as they may be compared."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kdlab.errors import MachineError, UsageError
from kdlab.jobs.job import TEACHER, Job, read_job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.redaction import masked
from kdlab.tracking.base import answer, one_line
from kdlab.tracking.mlflow import Mlflow

QUERY = "mlflow:"
EXAMPLE = f"{QUERY}params.`schedule.epochs` = '12' and tags.`kdlab.arm` = 'rm'"


def plans(wanted: str, runs: Runs, progress: Callable[[str], None] = lambda text: None) -> list[Plan]:
    """Plans of the finished jobs whose MLflow runs a filter lets through.

    Jobs of different data, schedules, students or teachers are never in one plan; a baseline, which has no
    teacher, is in all that it can be compared in.

    Raises:
        UsageError: MLflow does not take the filter, nothing fits, or a job that fits has no folder here.
        MachineError: MLflow cannot be asked.
    """
    progress("asking MLflow")
    jobs = [_job(job_id, runs) for job_id in _fitting(wanted, runs)]
    students = [job for job in jobs if job.spec.is_student]
    # trials are measured on images that their teacher may have learned from, and kdlab tune compares them
    searched = {job.spec.dataset.fingerprint for job in students if _is_trial(job, runs)}
    students = [job for job in students if job.spec.dataset.fingerprint not in searched]
    if not students:
        known = "trials of kdlab tune, which compares them itself" if searched else ""
        raise UsageError("no finished student fits the filter", got=wanted, known=known, fix="kdlab ls runs")
    alone: dict[str, list[Job]] = {}
    taught: dict[str, dict[tuple[Any, ...], list[Job]]] = {}
    for job in students:
        world = job.spec.model_dump_json(exclude=_MAY_DIFFER)
        if not job.parents:
            alone.setdefault(world, []).append(job)
        else:
            teacher = job.parents[0], *(getattr(job.spec, name, None) for name in _TEACHES)
            taught.setdefault(world, {}).setdefault(teacher, []).append(job)
    groups = [alone.get(world, []) + jobs for world, by in taught.items() for jobs in by.values()]
    groups += [jobs for world, jobs in alone.items() if world not in taught]
    return [_plan(group, wanted, runs) for group in groups]


def _fitting(wanted: str, runs: Runs) -> list[str]:
    """Ids of the jobs, each once, in the order in which they began."""
    mlflow = Mlflow(runs)
    if mlflow.local and not mlflow.database.exists():
        raise UsageError("nothing was recorded here yet", where=str(mlflow.database), fix="kdlab run RECIPE")
    parts = [wanted.strip(), "tags.`kdlab.kind` != 'plan'", "status = 'FINISHED'"]
    try:
        found = answer(lambda: list(mlflow.search(" and ".join(filter(None, parts)))))
    except Exception as error:
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            what = "MLflow does not take this filter"
            raise UsageError(what, got=wanted, known=str(error), fix=EXAMPLE) from error
        where = masked(mlflow.uri)
        raise MachineError("MLflow cannot be asked", where=where, got=one_line(error)) from error
    return list(dict.fromkeys(run.data.tags["kdlab.job"] for run in reversed(found)))


def _is_trial(job: Job, runs: Runs) -> bool:
    """Whether a student was measured on other images than its teacher."""
    if not job.parents:
        return False
    return bool(_job(job.parents[0], runs).spec.dataset.fingerprint != job.spec.dataset.fingerprint)


def _job(job_id: str, runs: Runs) -> Job:
    paths = runs.job(job_id)
    try:
        if paths.result.exists():
            return read_job(paths)
    except FileNotFoundError:
        pass
    raise UsageError(
        "a run that fits is of a job whose result is not here, so its seeds cannot be paired",
        where=str(paths.folder),
        fix="set KDLAB_RUNS to the runs folder that it was made in, or narrow the filter",
    )


_TELLS_ARMS = {"methods", "prepared", "inherit"}
_TEACHES = ("teacher_precision", "teacher_compiled")
_MAY_DIFFER = {*_TELLS_ARMS, *_TEACHES, "micro_batch", "teacher", "seed"}
"""What settings of students may differ in within one table."""


def _plan(group: list[Job], wanted: str, runs: Runs) -> Plan:
    """The plan of a group: its teacher, and its students under names that tell its arms apart."""
    names: dict[str, str] = {}
    arms: dict[str, Any] = {}
    inherits = []
    students = []
    seen: dict[tuple[Any, ...], str] = {}
    parents = {job.parents[0]: None for job in group if job.parents}
    # a student that others learned from is their teacher here
    for job in (job for job in group if job.id not in parents):
        settings = job.spec.model_dump(mode="json")
        about = job.spec.model_dump_json(include=_TELLS_ARMS)
        if about not in names:
            # one that was trained as a teacher has no arm's name
            arm = job.arm if job.is_student else "+".join(settings["methods"]) or "plain"
            same = sum(name.partition(" (")[0] == arm for name in arms)
            names[about] = f"{arm} ({same + 1})" if same else arm
            arms[names[about]] = settings["methods"]
            if settings["inherit"]:
                inherits.append(names[about])
        key = names[about], job.seed, settings.get("micro_batch")
        if key in seen:
            raise UsageError(
                f"two jobs are seed {job.seed} of {names[about]}, made by unlike code",
                got=f"{seen[key]}, {job.id}",
                fix="narrow the filter to one of them: tags.`kdlab.job` != 'ID'",
            )
        seen[key] = job.id
        students.append(replace(job, arm=names[about]))
    jobs = [*(replace(_job(parent, runs), arm=TEACHER) for parent in parents), *students]
    model = settings["model"]
    about = f"{model['detector']} {model['backbone']} on {settings['dataset']['name']}"
    unit = "iterations" if settings["schedule"]["iterations"] else "epochs"
    return Plan(
        id=hashlib.sha256(" ".join(job.id for job in jobs).encode()).hexdigest()[:8],
        recipe={
            "name": f"{QUERY}{wanted}",
            "query": wanted,
            "title": f"{about}, {settings['schedule'][unit]} {unit}",
            "command": f"kdlab report {shlex.quote(QUERY + wanted)}",
            "arms": arms,
            "inherits": inherits,
        },
        jobs=tuple(PlannedJob(job, True, "finished") for job in jobs),
        device="",
        dataset={},
    )
