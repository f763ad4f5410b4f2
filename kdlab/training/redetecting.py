"""Detections of a finished job that kept none: `python -m kdlab.training.redetecting < request.json`.

A short process of its own, because the command line never imports torch. Jobs keep their detections since
they evaluate; older ones are evaluated once more here, from the weights they kept, as they did it themselves.
Standard input holds the folder of the "job"; standard output the "AP" of what is kept beside its result.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kdlab import children, detectors
from kdlab.detectors.mmdet_config import see
from kdlab.errors import JobError, MachineError, UsageError
from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.jobs.spec import EvaluateSpec, TrainingSpec
from kdlab.training import checkpoints
from kdlab.training.evaluation import evaluate
from kdlab.training.reading import Reading

TOLERATED_AP = 0.5
"""How far the AP may be from the job's, in points: another device rounds otherwise."""


def redetect(folder: Path) -> float:
    """Evaluate a finished job's detector and keep its detections; no other file of the job is touched.

    Args:
        folder: of the job.

    Returns:
        AP of the detections, 0 to 100.

    Raises:
        UsageError: the job has not finished, or its labels are not there any more.
        JobError: weights or images are missing or broken, or the AP is not the one that the job measured, so
            that these are no detections of it; nothing is kept then.
        MachineError: the folder cannot be written.
    """
    paths = JobPaths(folder)
    job, result = read_job(paths), JobResult.read(paths)
    if result is None:
        raise UsageError("the job has not finished", where=job.id, fix="kdlab status")
    if not job.inputs.dataset.val.labels.is_file():
        what, fix = "the validation labels are not there any more", "put them back, or run its recipe again"
        raise UsageError(what, where=str(job.inputs.dataset.val.labels), fix=fix)
    see(job.inputs.modules)
    torch.set_num_threads(job.resources.threads)
    reading = Reading(job, paths)
    # what this attempt finds broken is no news of the job
    reading.broken.path = None
    model = detectors.build(job.spec.model, len(reading.classes))
    checkpoints.load_finished(model, paths)
    if isinstance(job.spec, EvaluateSpec):
        model.data_preprocessor.pad_size_divisor = job.spec.pad_divisor
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    metric = reading.metric()
    images = job.spec.images_a_forward if isinstance(job.spec, TrainingSpec) else None
    found, told = evaluate(model, reading.validation(), metric, images).metrics["AP"], result.metrics["AP"]
    if abs(found - told) > TOLERATED_AP:
        raise JobError(
            "the job's weights do not give the AP that it measured",
            where=job.id,
            got=f"AP {found:.1f} now, {told:.1f} then",
            fix="images or labels changed since: put them back, or run its recipe again",
        )
    try:
        metric.detections().write(paths.detections)
    except OSError as error:
        what, fix = "detections cannot be kept with their job", "make the folder writable, or free some space"
        raise MachineError(what, where=str(folder), got=str(error), fix=fix) from error
    return found


def main() -> int:
    """Do what the request on standard input says."""
    return children.answer(lambda asked: {"AP": redetect(Path(asked["job"]))})


if __name__ == "__main__":
    sys.exit(main())
