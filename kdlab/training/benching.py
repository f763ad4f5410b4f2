"""Time of a student's steps and of what is around them, and their memory: the job of kind "bench"."""

from __future__ import annotations

import time
from statistics import quantiles
from typing import Any

import torch
from torch import nn

from kdlab import detectors
from kdlab.jobs.events import JobStarted
from kdlab.jobs.spec import ModelSpec
from kdlab.training.bench import latency_seconds, step_seconds, timed
from kdlab.training.data import batches_of
from kdlab.training.step import parts_of
from kdlab.training.trainer import Trainer


class Bench(Trainer):
    """A student's job that trains nothing to its end: its parts are timed, each many times, in turns.

    The weights are the first ones, which find next to nothing, so that NMS has little to do.
    """

    def teacher(self, model: ModelSpec) -> nn.Module:
        """The teacher with random weights: what it costs does not depend on them."""
        with torch.random.fork_rng(devices=()):
            return detectors.build(model, len(self.reading.classes))

    def evaluation(self) -> None:
        """None: nothing is measured but time."""

    def run(self) -> dict[str, Any]:
        """Measure; as `Work.run` otherwise."""
        rounds, began = self.spec.rounds, time.monotonic()
        self.attempt.emit(JobStarted, device=str(self.device), epochs=1, iterations=rounds)
        batch, data_s = self._batches(rounds)
        batch = next(parts_of(batch, self.spec.images_a_forward or len(batch["data_samples"])))
        seconds = step_seconds(self.distiller, self.loop.optim, batch, rounds)
        student, images = self.distiller.student.eval(), next(batches_of(self.val_loader))
        with torch.no_grad():
            at_once = [timed(lambda: student.val_step(dict(images))) for _ in range(rounds + 1)][1:]
        found = {
            "data_s": data_s,
            **seconds,
            "batch_image_s": [one / len(images["data_samples"]) for one in at_once],
            **latency_seconds(self.distiller.models, images, rounds),
        }
        return {
            "timing": {name: value for key, values in found.items() for name, value in _spread(key, values)},
            "model": {
                "params": sum(p.numel() for p in student.parameters()),
                "trained_parts": self.distiller.trained_parts,
            },
            "data": self.reading.report(),
            "wall_s": time.monotonic() - began,
        }

    def _batches(self, rounds: int) -> tuple[Any, list[float]]:
        """The first batch, and what the wait for each of the next took; loader processes work by then."""
        self.loop.loader.batch_sampler.start_at(0, 0)
        batches = batches_of(self.loop.loader)
        first, seconds = next(batches), []
        for _ in range(min(rounds, len(self.loop.loader.batch_sampler) - 1)):
            seconds.append(timed(lambda: next(batches)))
        return first, seconds or [0.0]


def _spread(key: str, seconds: list[float]) -> list[tuple[str, float]]:
    """Median and quartiles by their names: "step_s", "step_s.low", "step_s.high"."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return [(key, middle), (f"{key}.low", low), (f"{key}.high", high)]
