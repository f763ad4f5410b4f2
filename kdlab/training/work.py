"""Base of all kinds of jobs: the settings, the device, the data and the parents of one.

A new kind is a class of settings in `jobs/spec.py`, which names its `work`, and a class here in `training/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import set_random_seed
from torch import nn

from kdlab import detectors
from kdlab.detectors.mmdet_config import see
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Evaluation
from kdlab.jobs.spec import ModelSpec
from kdlab.training import checkpoints
from kdlab.training.attempt import Attempt
from kdlab.training.device import device_of, seed_ranks
from kdlab.training.loop import TrainingLoop
from kdlab.training.reading import Reading


class Work:
    """What a job does: built from its settings after all generators were seeded, then `run`.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
        JobError: a parent's weights or the first ones are missing, broken or of another model.
    """

    loop: TrainingLoop | None = None

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.job, self.paths = attempt, attempt.job, attempt.paths
        self.spec = self.job.spec
        see(self.job.inputs.modules)
        self.device = device_of(self.job)
        self.reading = Reading(self.job, self.paths)
        set_random_seed(self.job.seed)

    @property
    def config_text(self) -> str:
        """The job's own model as an mmdet config."""
        return detectors.config(self.spec.model, len(self.reading.classes)).pretty_text

    @property
    def iteration(self) -> int:
        """Steps of the optimiser so far."""
        return self.loop.progress.iteration if self.loop else 0

    def run(self) -> dict[str, Any]:
        """Do the job, from its newest checkpoint or from the start; the fields of the result.

        Raises:
            Stopped: on request, after a checkpoint.
        """
        raise NotImplementedError

    def parent(self, job_id: str) -> JobPaths:
        """The folder of another job."""
        return JobPaths(self.paths.folder.parent / job_id)

    def teacher(self, model: ModelSpec) -> nn.Module:
        """The trained teacher, the first parent; no generator that others draw from is moved."""
        with torch.random.fork_rng(devices=()):
            teacher = detectors.build(model, len(self.reading.classes))
        checkpoints.load_finished(teacher, self.parent(self.job.parents[0]))
        return teacher

    def training_loop(
        self, model: nn.Module, evaluate: Callable[[], Evaluation] | None = None
    ) -> TrainingLoop:
        """The loop that trains a model, a Distiller or what looks like one, over the training images."""
        model.to(self.device)
        for part in model.modules():
            if isinstance(part, BaseDataPreprocessor):
                # from pinned memory
                part._non_blocking = self.device.type == "cuda"
        if self.spec.schedule.channels_last:
            model.to(memory_format=torch.channels_last)
        loader = self.reading.training()
        seed_ranks(self.job.seed)
        return TrainingLoop(model, loader, self.attempt, evaluate)
