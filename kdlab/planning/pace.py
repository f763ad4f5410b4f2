"""What jobs cost of which no finished job tells anything: a few steps, measured once on this machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlab import catalog, children
from kdlab.datasets.base import cache_dir
from kdlab.datasets.coco import first_image
from kdlab.devices import Machine
from kdlab.errors import KdlabError, MachineError
from kdlab.jobs.files import read_if_whole, write_json
from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.spec import DetectorSpec, DiagnoseSpec, EvaluateSpec, TrainingSpec
from kdlab.planning.facts import versions

PROCESS = "kdlab.training.pacing"
BESIDES = 1.25
"""Evaluation, reading and starting, as a factor of the steps."""
SOURCE = "by a few steps"


def priced(plan: Plan, machine: Machine, progress: Callable[[str], None] = lambda text: None) -> Plan:
    """The plan with an estimate for jobs of unknown cost; as it was where their steps cannot be measured.

    Args:
        plan: may know the cost of some.
        machine: this one, which will run them.
        progress: told what takes time.
    """
    jobs = [one.job for one in plan.jobs if one.cost_s is None]
    trained: dict[int, list[Job]] = {}
    for job in jobs:
        if isinstance(job.spec, DetectorSpec):
            # each stage of a chain of teachers has a pair of its own
            trained.setdefault(job.stage, []).append(job)
    if not trained:
        return plan
    try:
        steps = {stage: measured(own, machine, progress) for stage, own in trained.items()}
        counts = {path: _images(path) for path in {part for job in jobs for part in _labels(job)}}
    except (KdlabError, OSError):
        # a job will say what is wrong with it, and where
        return plan

    def estimated(one: PlannedJob) -> PlannedJob:
        if one.cost_s is not None or one.job.stage not in steps:
            return one
        cost = _seconds(one.job, steps[one.job.stage], *(counts[path] for path in _labels(one.job)))
        return replace(one, cost_s=BESIDES * cost, cost_source=SOURCE)

    return replace(plan, jobs=tuple(map(estimated, plan.jobs)))


def measured(
    jobs: Sequence[Job], machine: Machine, progress: Callable[[str], None] = lambda text: None
) -> dict[str, float]:
    """Seconds of a batch, as `training.pacing` tells them; from the cache where they were measured before.

    Args:
        jobs: that train a detector; one with a teacher, and with the most methods, stands for all of them.
        machine: this one.
        progress: told what takes time.

    Raises:
        KdlabError: the models cannot be built or stepped here, or no GPU is free.
    """

    def worth(job: Job) -> tuple[bool, bool, int]:
        assert isinstance(job.spec, DetectorSpec)
        # what methods prepare is not there yet
        return job.spec.teacher is not None, not job.spec.prepared, len(job.spec.methods)

    job = max(jobs, key=worth)
    spec = job.spec
    assert isinstance(spec, DetectorSpec)
    told = spec.model_dump(mode="json")
    request = {
        "student": told["model"],
        "teacher": told["teacher"],
        "methods": {} if spec.prepared else told["methods"],
        "schedule": told["schedule"],
        "classes": len(job.inputs.dataset.classes),
        "size": _size(job),
        "batch": max(1, spec.batch_size // spec.ranks),
        "threads": spec.threads or 1,
    }
    cached = _cache(request, machine)
    known = read_if_whole(cached, dict)
    if known and "student" in known:
        return known
    progress("measuring a few steps, to tell what this takes")
    with _device(machine) as env:
        found = children.told(PROCESS, request, "the steps cannot be measured", **env)
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_json(cached, found)
    return found


@contextmanager
def _device(machine: Machine) -> Iterator[dict[str, str]]:
    """Environment of a process that has a GPU to itself, where there are GPUs: another's may be full."""
    if not machine.gpus:
        yield {}
        return
    lease = machine.lease("gpu", 1)
    if lease is None:
        what = "no GPU is free to measure a few steps on"
        raise MachineError(what, got=f"{len(machine.gpus)} in use", fix="try again when one is free")
    with lease:
        lease.sign("a few steps, to tell what a plan takes")
        yield {"CUDA_VISIBLE_DEVICES": lease.ids[0]}


def _seconds(job: Job, steps: Mapping[str, float], learned: int, measured_on: int) -> float:
    """Of all batches of a job."""
    spec = job.spec
    forward = steps.get("forward", steps.get("teacher", steps["student"]) / 3)
    if isinstance(spec, EvaluateSpec | DiagnoseSpec):
        return forward * math.ceil(measured_on / spec.batch_size)
    assert isinstance(spec, TrainingSpec)
    schedule = spec.schedule
    passes = (schedule.epochs or 0) * math.ceil(learned / schedule.batch_size)
    length = spec.iterations or schedule.iterations or passes
    if not isinstance(spec, DetectorSpec):
        return forward * length
    if spec.is_teacher:
        return steps.get("teacher", steps["student"]) * length
    each = steps["student"]
    if spec.methods:
        each = steps.get("distilled", each + forward)
    return each * length


def _labels(job: Job) -> tuple[Path, Path]:
    files = job.inputs.dataset
    return files.train.labels, files.val.labels


def _images(labels: Path) -> int:
    """How many a COCO JSON file holds, without parsing what may be half a gigabyte."""
    return labels.read_bytes().count(b'"file_name"')


def _size(job: Job) -> list[int]:
    """Width and height of images as the models see them."""
    if scale := job.spec.dataset.scale:
        return list(scale)
    image = first_image(job.inputs.dataset.train.labels)
    return [image["width"], image["height"]]


def _cache(request: dict[str, Any], machine: Machine) -> Path:
    """Named by the request, the versions, the code that steps and the machine."""
    rooms = ("detectors/*.py", "methods/*.py", "training/pacing.py", "training/distiller.py")
    sources = [path for room in rooms for path in sorted(catalog.PACKAGE.glob(room))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    own = [len(machine.cores), *(gpu.uuid for gpu in machine.gpus)]
    key = json.dumps([request, versions(), code, own], sort_keys=True)
    return cache_dir() / "pace" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
