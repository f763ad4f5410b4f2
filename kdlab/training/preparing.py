"""Training of what a method learns of a teacher before any student: the job of kind "prepare"."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdlab import detectors
from kdlab.methods import method_class
from kdlab.methods.base import Pair, Preparation
from kdlab.training import checkpoints, ranks
from kdlab.training.attempt import Attempt
from kdlab.training.work import Work

HEADS = ("rpn_head", "bbox_head", "roi_head")


class TeacherWith(BaseModel):
    """A frozen teacher whose neck's maps pass through what is being prepared; only that is trained."""

    def __init__(self, teacher: nn.Module, preparation: Preparation) -> None:
        super().__init__(data_preprocessor=teacher.data_preprocessor)
        self.preparation = preparation
        # a tuple, because a module kept as an attribute would be registered
        self._teacher = (teacher.requires_grad_(False),)
        self.terms: dict[str, Any] = {}
        self.average, self.shares = None, {}
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
        # by its own flag alone a DETR says what its loss needs
        teacher.training = mode
        for head in filter(None, (getattr(teacher, name, None) for name in HEADS)):
            for module in head.train(mode).modules():
                if isinstance(module, (_BatchNorm, _DropoutNd)):
                    module.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> TeacherWith:
        """Move the teacher with what is trained."""
        self._teacher[0]._apply(fn)
        return super()._apply(fn, recurse)


class Preparer(Work):
    """The training of what a method learns of a teacher."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        spec = self.spec
        teacher = self.teacher(spec.model)
        # as the student's job pads for both
        teacher.data_preprocessor.pad_size_divisor = spec.pad_divisor
        facts = detectors.adapt(teacher).facts
        pair = Pair(facts, facts, tuple((level, level) for level in range(len(facts.strides))))
        preparation = method_class(spec.method)(pair, **spec.options).prepared
        assert preparation is not None
        self.model = TeacherWith(teacher, preparation)
        self.loop = self.training_loop(self.model)

    def run(self) -> dict[str, Any]:
        """Train and keep the weights; as `Work.run` otherwise."""
        progress = self.loop.resume_and_run(str(self.device))
        digest = ""
        if ranks.rank() == 0:
            self.attempt.may_write()
            state = {"state_dict": self.model.preparation.state_dict()}
            digest = checkpoints.save(self.paths.weights, state)
            progress.curves().write(self.paths)
        step_s, data_s = self.loop.median_s()
        params = sum(p.numel() for p in self.model.preparation.parameters())
        return {
            "timing": {"step_s": step_s, "data_s": data_s},
            "model": {"params": params, "weights_sha256": digest},
            "data": self.reading.report(),
            "wall_s": progress.wall_s,
        }
