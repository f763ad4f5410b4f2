"""What a method learns of a teacher before any student is trained: the job of kind "prepare"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.runner import set_random_seed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdlab import detectors
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import PrepareSpec
from kdlab.methods import method_class
from kdlab.methods.base import Pair, Preparation
from kdlab.training import checkpoints, ranks
from kdlab.training.device import device_of, seed_ranks
from kdlab.training.loop import TrainingLoop
from kdlab.training.reading import Reading

HEADS = ("rpn_head", "bbox_head", "roi_head")


class TeacherWith(BaseModel):
    """A frozen teacher whose neck's maps pass through what is being prepared; only that is trained."""

    def __init__(self, teacher: nn.Module, preparation: Preparation) -> None:
        super().__init__(data_preprocessor=teacher.data_preprocessor)
        self.preparation = preparation
        # a tuple, because a module kept as an attribute would be registered
        self._teacher = (teacher.requires_grad_(False),)
        self.terms: dict[str, Any] = {}
        self.raw_terms: dict[str, Tensor] = {}
        self.iteration, self.max_iterations = 0, 1

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str = "loss") -> dict[str, Any]:
        """The teacher's own losses on the changed maps, and those of the preparation."""
        own: dict[str, Tensor] = {}

        def change(_module: nn.Module, _inputs: Any, maps: Any) -> tuple[Tensor, ...]:
            # sums over all cells of a map do not fit into half precision
            with torch.autocast(inputs.device.type, enabled=False):
                changed, losses = self.preparation([level.float() for level in maps])
            own.update(losses)
            return tuple(changed)

        (teacher,) = self._teacher
        hook = teacher.neck.register_forward_hook(change)
        try:
            return {**teacher.loss(inputs, data_samples), **own}
        finally:
            hook.remove()

    def train(self, mode: bool = True) -> TeacherWith:
        """The teacher's heads compute their losses as in training; what draws or averages stays still.

        Its backbone and neck are as the student's job will see them, also those with dropped paths.
        """
        super().train(mode)
        (teacher,) = self._teacher
        teacher.eval()
        for head in filter(None, (getattr(teacher, name, None) for name in HEADS)):
            for module in head.train(mode).modules():
                if isinstance(module, (_BatchNorm, _DropoutNd)):
                    module.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> TeacherWith:
        """Move the teacher with what is trained."""
        self._teacher[0]._apply(fn)
        return super()._apply(fn, recurse)


class Preparer:
    """The model, data and loop of a job of kind "prepare".

    Raises:
        MachineError: the job needs a GPU that torch does not see.
        JobError: the teacher's weights are missing, broken or of another model.
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
        self.reading = Reading(job, paths)
        self.spec: PrepareSpec = job.spec
        self.model = TeacherWith(*self._built()).to(self.device)
        if self.spec.schedule.channels_last:
            self.model.to(memory_format=torch.channels_last)
        seed_ranks(job.seed)
        self.loop = TrainingLoop(
            self.model,
            self.reading.training(),
            self.spec,
            checkpoints.TrainingCheckpoints(paths.checkpoints),
            evaluate=None,
            emit=emit,
            may_write=may_write,
            should_stop=should_stop,
            checkpoint_minutes=job.resources.checkpoint_minutes,
        )

    @property
    def config_text(self) -> str:
        """The teacher as an mmdet config."""
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
        digest = ""
        if ranks.rank() == 0:
            self.loop.may_write()
            state = {"state_dict": self.model.preparation.state_dict()}
            digest = checkpoints.save(self.paths.weights, state)
            progress.curves().write(self.paths)
        step_s, data_s = self.loop.clock.medians()
        return {
            "timing": {"step_s": step_s, "data_s": data_s},
            "model": {
                "params": sum(p.numel() for p in self.model.preparation.parameters()),
                "weights_sha256": digest,
            },
            "data": self.reading.report(),
            "wall_s": progress.wall_s,
        }

    def _built(self) -> tuple[nn.Module, Preparation]:
        """The teacher with its weights, and the preparation with its first ones."""
        spec, job = self.spec, self.job
        set_random_seed(job.seed)
        teacher = detectors.build(spec.model, len(self.reading.classes))
        checkpoints.load_finished(teacher, JobPaths(self.paths.folder.parent / job.parents[0]))
        # as the student's job pads for both
        teacher.data_preprocessor.pad_size_divisor = spec.pad_divisor
        facts = detectors.adapt(teacher).facts
        pair = Pair(facts, facts, tuple((level, level) for level in range(len(facts.strides))))
        set_random_seed(job.seed)
        method = method_class(spec.method)
        preparation = method(pair, **spec.options).prepared
        assert preparation is not None
        return teacher, preparation
