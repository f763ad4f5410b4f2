"""A teacher from outside: loaded from its checkpoint, measured as its students are, kept as their parent."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlab import detectors
from kdlab.errors import JobError
from kdlab.jobs.events import JobEvaluated, JobStarted
from kdlab.training import checkpoints, weights
from kdlab.training.attempt import Attempt
from kdlab.training.bench import affordable, latencies_s
from kdlab.training.data import batches_of
from kdlab.training.evaluation import evaluate
from kdlab.training.reported import ReportedLoader
from kdlab.training.resampling import resample
from kdlab.training.work import Work


class Measurement(Work):
    """One evaluation of a checkpoint on the validation images.

    Raises:
        JobError: the checkpoint is not the one that was planned with, or does not fit.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self.checkpoint = Path(self.job.inputs.checkpoint or "")
        if self.checkpoint.is_file() and checkpoints.sha256(self.checkpoint) != self.spec.checkpoint:
            raise JobError(
                "the checkpoint is not the one that was planned with",
                where=str(self.checkpoint),
                got="another SHA-256: the file was replaced since",
                fix="run again: the plan then takes the file as it is now",
            )
        # what a partial checkpoint leaves out is drawn
        self.model = detectors.build(self.spec.model, len(self.reading.classes))
        self.model.data_preprocessor.pad_size_divisor = self.spec.pad_divisor
        found, partial = weights.read(self.checkpoint, ema=self.spec.ema), self.job.inputs.partial
        self.report = weights.load(self.model, found, partial=partial)
        self.model.to(self.device)
        self.loader = self.reading.validation()
        self.images = len(self.loader.dataset)

    def run(self) -> dict[str, Any]:
        """Measure, and keep the weights under mmdet's names; as `Work.run` otherwise."""
        emit, may_write = self.attempt.emit, self.attempt.may_write
        emit(JobStarted, device=str(self.device), epochs=1, iterations=self.images)
        began = time.monotonic()
        metric = self.reading.metric()
        found = evaluate(self.model, ReportedLoader(self.loader, self.attempt), metric)
        found = replace(found, epoch=1, iteration=self.images)
        may_write()
        resample(metric.matches()).write(self.paths.resampled)
        metric.detections().write(self.paths.detections)
        emit(JobEvaluated, epoch=1, iteration=self.images, metrics=found.metrics)
        may_write()
        self.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        digest = checkpoints.save_model(self.paths.weights, self.model, self.reading.classes)
        wall_s = time.monotonic() - began
        images = next(batches_of(self.loader))
        single = affordable(lambda: latencies_s({"latency_s": self.model}, images))
        return {
            "last": found,
            "best": replace(found, per_class={}),
            "timing": {"image_s": wall_s / self.images, **single},
            "model": {
                "params": sum(p.numel() for p in self.model.parameters()),
                "trained_parts": {},
                "weights_sha256": digest,
                "checkpoint": {
                    "file": self.checkpoint.name,
                    "sha256": self.spec.checkpoint,
                    "keys": self.report.to_dict(),
                },
            },
            "data": self.reading.report(),
            "wall_s": wall_s,
        }
