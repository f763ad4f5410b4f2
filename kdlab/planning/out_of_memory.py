"""Jobs that ran out of GPU memory: gradient accumulation where it gives the same, else what would fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from kdlab.jobs.job import Job
from kdlab.jobs.spec import DetectorSpec
from kdlab.jobs.store import Shortage
from kdlab.planning.ids import with_id

USABLE = 0.9
"""Part of a GPU's memory up to which a job is expected to fit."""
CROWDED = 0.8
"""Part of a GPU's memory below which a job that shares it did not fill it alone."""


def fitting(jobs: Iterable[Job], failed: Mapping[str, Shortage], gpu_gb: float | None) -> Iterator[Job]:
    """The jobs, those that ran out of memory on such a GPU before in smaller micro-batches.

    What needs such a job needs the one that takes its place, and gets another id by that.

    Args:
        jobs: parents before children.
        failed: by job id.
        gpu_gb: memory of the smallest GPU here; None where that is not known.
    """
    renamed: dict[str, str] = {}
    for job in jobs:
        now = _with_parents(job, renamed)
        while failure := failed.get(now.id):
            less = smaller(now, failure)
            larger_gpu = gpu_gb is not None and gpu_gb > 1.05 * float(failure.get("total_gb") or gpu_gb)
            if less is None or larger_gpu:
                break
            now = less
        if now.id != job.id:
            renamed[job.id] = now.id
        yield now


def smaller(job: Job, failure: Shortage) -> Job | None:
    """The job with half the micro-batch and an id of its own; None where that would be another training.

    BatchNorm in training mode looks at all images of a forward pass, so fewer of them change what is learned.
    """
    images = int(failure.get("micro_batch") or 0)
    if crowded(job, failure) or images < 2 or failure.get("batchnorm") or not job.spec.shrinks:
        return None
    return with_id(replace(job, spec=job.spec.model_copy(update={"micro_batch": images // 2})))


def crowded(job: Job, failure: Shortage) -> bool:
    """Whether what was missing was with the job's neighbours on a shared GPU."""
    peak, total = (float(failure.get(key) or 0) for key in ("peak_gb", "total_gb"))
    return job.resources.share > 1 and peak < CROWDED * total


def advice(job: Job, failure: Shortage) -> str:
    """The fix for a job that ran out of memory, with the settings that should fit."""
    if less := smaller(job, failure):
        return f"it is queued again with {less.spec.micro_batch} images per forward pass"
    batch, gpus = job.spec.batch_size, max(1, job.resources.gpus)
    peak, total, images = (float(failure.get(key) or 0) for key in ("peak_gb", "total_gb", "micro_batch"))
    fits = min(int(images * USABLE * total / peak), int(images) - 1) if peak else 0
    if fits < 1 or images < 2:
        return "lower dataset.scale, or take a smaller model"
    more = next(
        count for count in range(gpus + 1, batch + 1) if batch % count == 0 and batch // count <= fits
    )
    return f"--set schedule.batch_size={fits * gpus}   or --set schedule.gpus={more}, which keeps the batch"


def _with_parents(job: Job, renamed: Mapping[str, str]) -> Job:
    if renamed.keys().isdisjoint(job.parents):
        return job
    spec = job.spec
    if isinstance(spec, DetectorSpec):
        prepared = {name: renamed.get(parent, parent) for name, parent in spec.prepared.items()}
        spec = spec.model_copy(update={"prepared": prepared})
    parents = tuple(renamed.get(parent, parent) for parent in job.parents)
    return with_id(replace(job, spec=spec, parents=parents))
