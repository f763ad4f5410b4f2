"""Everything that a job trains with, built from its settings in the one order that keeps arms comparable."""

from __future__ import annotations

import platform
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdlab.datasets.base import DatasetFiles
from kdlab.errors import JobError, MachineError
from kdlab.jobs.files import read_json
from kdlab.jobs.job import Job, JobPaths
from kdlab.training import bench, checkpoints, detectors
from kdlab.training.data import (
    batches_of,
    evaluation_loader,
    mmdet_dataset,
    reading_report,
    reading_words,
    training_loader,
)
from kdlab.training.distiller import Distiller
from kdlab.training.evaluation import CocoMetric, evaluate
from kdlab.training.images import BrokenImages
from kdlab.training.loop import Progress, TrainingLoop


class Trainer:
    """The model, data and loop of one job.

    The student is built and initialised first, before anything else draws a random number, so that all arms
    of a seed start from the same weights.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
        JobError: a parent's weights are missing, broken or of another model.
    """

    def __init__(
        self, job: Job, paths: JobPaths, emit: Callable[..., None], may_write: Callable[[], None]
    ) -> None:
        self.job, self.paths = job, paths
        self.device = _device(job)
        settings, schedule = job.settings, job.settings["schedule"]
        self.files = DatasetFiles.from_dict(job.inputs["dataset"])
        _seed(job.seed)
        student = detectors.build(settings["model"], len(self.files.classes))
        self.distiller = Distiller(student, settings["methods"], self._teacher(), seed=job.seed).to(
            self.device
        )
        if schedule["channels_last"]:
            self.distiller.to(memory_format=torch.channels_last)
        reading = settings["dataset"]
        batch, workers = schedule["batch_size"], job.resources.workers
        self.broken = BrokenImages(paths.folder / "broken_images.json")
        broken = self.broken if reading.get("broken_images") == "skip" else None
        scale = reading["scale"]
        self.train_set = mmdet_dataset(self.files, self.files.train, scale, reading["flip"], broken)
        print(reading_words(reading_report(self.train_set)), flush=True)
        val_set = mmdet_dataset(self.files, self.files.val, scale, None, broken)
        val_loader = evaluation_loader(val_set, batch, workers)
        metric = CocoMetric(self.files.val.labels, self.files.classes, self.files.metrics)
        self.loop = TrainingLoop(
            self.distiller,
            training_loader(self.train_set, batch, job.seed, workers),
            schedule,
            checkpoints.TrainingCheckpoints(paths.checkpoints),
            evaluate=lambda: evaluate(self.distiller, val_loader, metric),
            emit=emit,
            may_write=may_write,
            checkpoint_minutes=job.resources.checkpoint_minutes,
        )

    @property
    def config_text(self) -> str:
        """The student as an mmdet config."""
        return detectors.config(self.job.settings["model"], len(self.files.classes)).pretty_text

    @property
    def device_name(self) -> str:
        """ "cuda: NVIDIA H100", "cpu: AMD EPYC"."""
        return f"{self.device.type}: {_processor(self.device)}"

    def finish(self, progress: Progress) -> dict[str, Any]:
        """Keep the student's weights, then measure what a step costs; the fields of the result."""
        self.loop.may_write()
        digest = checkpoints.save(self.paths.weights, {"state_dict": self.distiller.student.state_dict()})
        last = progress.history[-1]
        step_s, data_s = self.loop.clock.medians()
        self.loop.loader.batch_sampler.start_at(0, 0)
        data = next(batches_of(self.loop.loader))
        times = bench.step_times(self.distiller, self.loop.optim, data)
        curve = [
            {name: value for name, value in entry.items() if "/" not in name} for entry in progress.history
        ]
        return {
            "metrics": {
                name: last[name] for name in last if "/" not in name and name not in ("epoch", "iteration")
            },
            "best": max(curve, key=lambda entry: entry["AP"]),
            "per_class": {
                name.removeprefix("class/"): last[name] for name in last if name.startswith("class/")
            },
            "history": curve,
            "losses": progress.losses[:: max(1, len(progress.losses) // 500)],
            "timing": {"step_s": step_s, "data_s": data_s, **times},
            "model": {
                "params": sum(p.numel() for p in self.distiller.student.parameters()),
                "trained_parts": self.distiller.trained_parts,
                "weights_sha256": digest,
            },
            "data": {**reading_report(self.train_set), **self.broken.report()},
        }

    def peak_memory_gb(self) -> float:
        """Largest memory so far: resident size of the process, or allocated on the GPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _teacher(self) -> nn.Module | None:
        """The trained teacher, where a method needs one."""
        settings = self.job.settings["teacher"]
        if settings is None:
            return None
        parent = JobPaths(self.paths.folder.parent / self.job.parents[0])
        with torch.random.fork_rng():
            teacher = detectors.build(settings, len(self.files.classes))
        load_weights(teacher, parent)
        return teacher


def load_weights(model: nn.Module, parent: JobPaths) -> None:
    """Load the weights that a finished job left.

    Raises:
        JobError: they are not the ones that its result names, or do not fit the model.
    """
    expected = (read_json(parent.result) or {}).get("model", {}).get("weights_sha256")
    if not parent.weights.exists() or checkpoints.sha256(parent.weights) != expected:
        raise JobError(
            "the teacher's weights are missing or not the ones that its result names",
            where=str(parent.weights),
            fix=f"remove {parent.folder} and run again: the teacher is trained anew",
        )
    try:
        model.load_state_dict(checkpoints.load(parent.weights)["state_dict"])
    except RuntimeError as error:
        raise JobError(
            "the teacher's weights do not fit its settings", where=str(parent.weights), got=str(error)[:300]
        ) from error


def _device(job: Job) -> torch.device:
    if not job.resources.gpus:
        torch.set_num_threads(job.settings["threads"])
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MachineError(
            "the job was given a GPU and torch sees none",
            where=job.id,
            got=f"torch {torch.__version__}",
            fix="install a torch built for your driver, or hide the GPU: CUDA_VISIBLE_DEVICES= kdlab run ...",
        )
    return torch.device("cuda")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
