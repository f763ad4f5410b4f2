"""A teacher from outside: loaded from its checkpoint, measured as its students are, kept as their parent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.runner import set_random_seed
from torch.utils.data import DataLoader

from kdlab import detectors
from kdlab.errors import JobError
from kdlab.jobs.events import JobEvaluated, JobProgress, JobStarted
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import EvaluateSpec
from kdlab.training import checkpoints, weights
from kdlab.training.bench import latency_s
from kdlab.training.data import batches_of
from kdlab.training.device import device_of
from kdlab.training.evaluation import evaluate
from kdlab.training.loop import Stopped
from kdlab.training.reading import Reading
from kdlab.training.resampling import resample

REPORTS = 100
"""Into how many intervals the images are cut over which progress is told."""


class Measurement:
    """One evaluation of a checkpoint on the validation images.

    Args:
        job: of kind "evaluate".
        paths: its folder.
        emit: takes an event kind and its fields.
        may_write: raises where another process has taken the job over.
        should_stop: asked after every batch.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
        JobError: the checkpoint is not the one that was planned with, or does not fit.
    """

    def __init__(
        self,
        job: Job,
        paths: JobPaths,
        emit: Callable[..., None],
        may_write: Callable[[], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job, self.paths, self.emit = job, paths, emit
        self.may_write, self.should_stop = may_write, should_stop
        self.device, self.iteration = device_of(job), 0
        self.reading = Reading(job, paths)
        self.spec: EvaluateSpec = job.spec
        # what a partial checkpoint leaves out is drawn
        set_random_seed(job.seed)
        self.model = detectors.build(self.spec.model, len(self.reading.classes))
        self.model.data_preprocessor.pad_size_divisor = self.spec.pad_divisor
        self.report = weights.load(self.model, self._checkpoint(), partial=job.inputs.partial)
        self.model.to(self.device)
        self.loader = self.reading.validation()

    @property
    def images(self) -> int:
        """How many there are to measure on."""
        return len(self.loader.dataset)

    @property
    def config_text(self) -> str:
        """The teacher as an mmdet config."""
        return detectors.config(self.spec.model, len(self.reading.classes)).pretty_text

    def run(self) -> dict[str, Any]:
        """Measure, and keep the weights under mmdet's names; the fields of the result.

        Raises:
            Stopped: on request.
        """
        self.emit(JobStarted, device=str(self.device), epochs=1, iterations=self.images)
        began = time.monotonic()
        metric = self.reading.metric()
        found = evaluate(self.model, _Watched(self.loader, self._after_batch), metric)
        found = replace(found, epoch=1, iteration=self.images)
        self.may_write()
        resample(metric.matches()).write(self.paths.resampled)
        self.emit(JobEvaluated, epoch=1, iteration=self.images, metrics=found.metrics)
        model = self._keep()
        wall_s = time.monotonic() - began
        return {
            "last": found,
            "best": replace(found, per_class={}),
            "timing": {
                "image_s": wall_s / self.images,
                "latency_s": latency_s(self.model, next(batches_of(self.loader))),
            },
            "model": model,
            "data": self.reading.report(),
            "wall_s": wall_s,
        }

    def _keep(self) -> dict[str, Any]:
        """Write the weights where students look for them; what the result says of the model."""
        self.may_write()
        self.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        digest = checkpoints.save_model(self.paths.weights, self.model, self.reading.classes)
        return {
            "params": sum(p.numel() for p in self.model.parameters()),
            "trained_parts": {},
            "weights_sha256": digest,
            "checkpoint": {
                "file": Path(self.job.inputs.checkpoint or "").name,
                "sha256": self.spec.checkpoint,
                "keys": self.report.to_dict(),
            },
        }

    def _checkpoint(self) -> weights.Checkpoint:
        path = Path(self.job.inputs.checkpoint or "")
        if path.is_file() and checkpoints.sha256(path) != self.spec.checkpoint:
            raise JobError(
                "the checkpoint is not the one that was planned with",
                where=str(path),
                got="another SHA-256: the file was replaced since",
                fix="run again: the plan then takes the file as it is now",
            )
        return weights.read(path)

    def _after_batch(self, done: int, batch_s: float, left_s: float) -> None:
        if self.should_stop():
            raise Stopped
        counts = {"epoch": 1, "epochs": 1, "iteration": done, "iterations": self.images}
        self.emit(JobProgress, losses={}, lr=0.0, step_s=batch_s, data_s=0.0, eta_s=left_s, **counts)


class _Watched:
    """A loader that tells, some hundred times, how many images were read and how many seconds are left."""

    def __init__(self, loader: DataLoader, tell: Callable[[int, float, float], None]) -> None:
        self.dataset, self._loader, self._tell = loader.dataset, loader, tell

    def __iter__(self) -> Iterator[Any]:
        total, began = len(self.dataset), time.monotonic()
        every = max(1, len(self._loader) // REPORTS)
        for batch, data in enumerate(self._loader, start=1):
            yield data
            if batch % every == 0 or batch == len(self._loader):
                done = min(total, batch * len(self._loader.batch_sampler[0]))
                spent_s = time.monotonic() - began
                self._tell(done, spent_s / batch, spent_s / done * (total - done))
