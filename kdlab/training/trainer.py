"""A detector's training: everything is built in the one order that keeps arms comparable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kdlab import detectors
from kdlab.jobs.result import Evaluation
from kdlab.training import bench, checkpoints, ranks
from kdlab.training.attempt import Attempt
from kdlab.training.data import batches_of
from kdlab.training.distiller import Distiller
from kdlab.training.evaluation import evaluate
from kdlab.training.resampling import resample
from kdlab.training.step import parts_of
from kdlab.training.weights import inherit
from kdlab.training.weights.backbones import first_weights, load_backbone
from kdlab.training.work import Work


class Trainer(Work):
    """The training of a teacher or a student.

    The student is built and initialised first, before anything else draws a random number, so that all arms
    of a seed start from the same weights.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        spec = self.spec
        first = first_weights(spec.model, self.job.inputs.init)
        student = detectors.build(spec.model, len(self.reading.classes))
        if first is not None:
            load_backbone(student.backbone, first)
        teacher, self.inherited = None, {}
        if spec.teacher is not None:
            teacher = self.teacher(spec.teacher)
        if spec.inherit:
            # after all draws of the student, so that the rest of it equals that of the other arms
            self.inherited = {"inherited": inherit(student, teacher)}
        self.distiller = Distiller(
            student, spec.methods, teacher, self.job.seed, spec.teacher_precision, spec.teacher_compiled
        )
        for name, prepared in spec.prepared.items():
            checkpoints.load_finished(self.distiller.terms[name].method.prepared, self.parent(prepared))
        self.val_loader = self.reading.validation()
        self.loop = self.training_loop(self.distiller, self.evaluation())

    def evaluation(self) -> Callable[[], Evaluation] | None:
        """The function that measures the student as it is; None where the job measures nothing."""
        metric = self.reading.metric()

        def measured() -> Evaluation:
            found = evaluate(self.distiller, self.val_loader, metric, self.spec.images_a_forward)
            if self.iteration == self.loop.iterations and ranks.rank() == 0:
                self.attempt.may_write()
                resample(metric.matches()).write(self.paths.resampled)
                metric.detections().write(self.paths.detections)
            return found

        return measured

    def run(self) -> dict[str, Any]:
        """Train, keep the weights, then measure what a step costs; as `Work.run` otherwise.

        All processes take these steps, for the losses of some detectors wait for one another.
        """
        result = self.train()
        if ranks.rank() == 0:
            self.attempt.may_write()
            kept, classes = self.distiller.kept, self.reading.classes
            result["model"]["weights_sha256"] = checkpoints.save_model(self.paths.weights, kept, classes)
        self.loop.loader.batch_sampler.start_at(0, 0)
        batch = next(batches_of(self.loop.loader))
        data = next(parts_of(batch, self.spec.images_a_forward or len(batch["data_samples"])))
        result["timing"] |= bench.affordable(lambda: bench.step_times(self.distiller, self.loop.optim, data))
        history = self.loop.progress.history
        best = max(history, key=lambda one: one.metrics["AP"])
        return {**result, "last": history[-1], "best": replace(best, per_class={})}

    def train(self) -> dict[str, Any]:
        """Train and keep the curves; the fields of the result but evaluations."""
        progress = self.loop.resume_and_run(str(self.device))
        step_s, data_s = self.loop.median_s()
        latencies: dict[str, float] = {}
        # of few images other processes may have none
        if ranks.rank() == 0:
            self.attempt.may_write()
            progress.curves().write(self.paths)
            images = next(batches_of(self.val_loader))
            latencies = bench.affordable(lambda: bench.latencies_s(self.distiller.models, images))
        return {
            "timing": {"step_s": step_s, "data_s": data_s, **latencies},
            "model": {
                "params": sum(p.numel() for p in self.distiller.student.parameters()),
                "trained_parts": self.distiller.trained_parts,
                "weights_sha256": "",
                **self.inherited,
            },
            "data": self.reading.report(),
            "wall_s": progress.wall_s,
        }
