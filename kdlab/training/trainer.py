"""Everything that a job trains with, built from its settings in the one order that keeps arms comparable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mmengine.runner import set_random_seed
from torch import nn

from kdlab import detectors
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Evaluation
from kdlab.jobs.spec import DetectorSpec
from kdlab.training import bench, checkpoints, ranks
from kdlab.training.data import batches_of
from kdlab.training.device import device_of, seed_ranks
from kdlab.training.distiller import Distiller
from kdlab.training.evaluation import evaluate
from kdlab.training.loop import Progress, TrainingLoop
from kdlab.training.reading import Reading
from kdlab.training.resampling import resample
from kdlab.training.step import parts_of
from kdlab.training.weights import inherit
from kdlab.training.weights.backbones import first_weights, load_backbone


class Trainer:
    """The model, data and loop of one job.

    The student is built and initialised first, before anything else draws a random number, so that all arms
    of a seed start from the same weights.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
        JobError: a parent's weights or the first ones are missing, broken or of another model.
    """

    def __init__(
        self,
        job: Job,
        paths: JobPaths,
        emit: Callable[..., None],
        may_write: Callable[[], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job, self.paths = job, paths
        self.device = device_of(job)
        self.spec: DetectorSpec = job.spec
        spec = self.spec
        self.reading = Reading(job, paths)
        set_random_seed(job.seed)
        first = first_weights(spec.model, job.inputs.init)
        student = detectors.build(spec.model, len(self.reading.classes))
        if first is not None:
            load_backbone(student.backbone, first)
        teacher = self._teacher()
        # after all draws of the student, so that the rest of it equals that of the other arms
        self.inherited = inherit(student, teacher) if spec.inherit and teacher else None
        self.distiller = Distiller(student, spec.methods, teacher, seed=job.seed)
        for name, prepared in spec.prepared.items():
            checkpoints.load_finished(self.distiller.terms[name].method.prepared, self._parent(prepared))
        self.distiller.to(self.device)
        if spec.schedule.channels_last:
            self.distiller.to(memory_format=torch.channels_last)
        loader, self._val_loader = self.reading.training(), self.reading.validation()
        seed_ranks(job.seed)
        self.loop = TrainingLoop(
            self.distiller,
            loader,
            spec,
            checkpoints.TrainingCheckpoints(paths.checkpoints),
            evaluate=self._evaluation(),
            emit=emit,
            may_write=may_write,
            should_stop=should_stop,
            checkpoint_minutes=job.resources.checkpoint_minutes,
        )

    @property
    def config_text(self) -> str:
        """The student as an mmdet config."""
        return detectors.config(self.spec.model, len(self.reading.classes)).pretty_text

    @property
    def iteration(self) -> int:
        """Where training stands."""
        return self.loop.progress.iteration

    def run(self) -> dict[str, Any]:
        """Train from the newest checkpoint or from the start; the fields of the result.

        Raises:
            Stopped: on request, after a checkpoint.
        """
        progress = self.loop.go_on(str(self.device))
        found = self._finish(progress)
        if ranks.rank() == 0:
            self.loop.may_write()
            progress.curves().write(self.paths)
        return {**found, "wall_s": progress.wall_s}

    def _finish(self, progress: Progress) -> dict[str, Any]:
        """Keep the student's weights, then measure what a step costs; the fields of the result.

        All processes take these steps, for the losses of some detectors wait for one another.
        """
        timing, digest = self._timing(), ""
        if ranks.rank() == 0:
            self.loop.may_write()
            student, classes = self.distiller.student, self.reading.classes
            digest = checkpoints.save_model(self.paths.weights, student, classes)
        self.loop.loader.batch_sampler.start_at(0, 0)
        batch = next(batches_of(self.loop.loader))
        data = next(parts_of(batch, self.spec.micro_batch or len(batch["data_samples"])))
        times = bench.step_times(self.distiller, self.loop.optim, data)
        best = max(progress.history, key=lambda one: one.metrics["AP"])
        return {
            "last": progress.history[-1],
            "best": replace(best, per_class={}),
            "timing": timing | times,
            "model": self._model(digest),
            "data": self.reading.report(),
        }

    def _evaluation(self) -> Callable[[], Evaluation] | None:
        """What measures the student as it is; None where the job measures nothing."""
        metric = self.reading.metric()

        def measured() -> Evaluation:
            found = evaluate(self.distiller, self._val_loader, metric)
            if self.loop.progress.epoch == self.loop.epochs and ranks.rank() == 0:
                self.loop.may_write()
                resample(metric.matches()).write(self.paths.resampled)
            return found

        return measured

    def _timing(self) -> dict[str, float]:
        """Seconds of steps in training, and of an image in use."""
        step_s, data_s = self.loop.clock.medians()
        latency_s = 0.0
        # of few images other processes may have none
        if ranks.rank() == 0:
            latency_s = bench.latency_s(self.distiller.student, next(batches_of(self._val_loader)))
        return {"step_s": step_s, "data_s": data_s, "latency_s": latency_s}

    def _model(self, digest: str) -> dict[str, Any]:
        """What the result says of the student, whose weights have this SHA-256; "" where none are kept."""
        return {
            "params": sum(p.numel() for p in self.distiller.student.parameters()),
            "trained_parts": self.distiller.trained_parts,
            "weights_sha256": digest,
            **({"inherited": self.inherited} if self.inherited else {}),
        }

    def _teacher(self) -> nn.Module | None:
        """The trained teacher, where the student learns or inherits from one."""
        if self.spec.teacher is None:
            return None
        with torch.random.fork_rng():
            teacher = detectors.build(self.spec.teacher, len(self.reading.classes))
        checkpoints.load_finished(teacher, self._parent(self.job.parents[0]))
        return teacher

    def _parent(self, job_id: str) -> JobPaths:
        return JobPaths(self.paths.folder.parent / job_id)
