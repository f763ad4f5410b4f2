"""What models cost: training steps of student, teacher and both side by side, and the detector in use."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from kdlab.training.distiller import Distiller


def step_times(distiller: Distiller, optim: OptimWrapper, data: Any, rounds: int = 10) -> dict[str, float]:
    """Median seconds of steps that take turns on one batch, so that a noisy machine slows all alike.

    The weights move: call it when they are no longer needed.

    Returns:
        "student_step_s": a training step without methods; where there are methods also "teacher_forward_s"
        and "distill_step_s", a training step with them.
    """
    steps: dict[str, Callable[[], Any]] = {"student_step_s": lambda: distiller.train_step(data, optim)}
    if distiller.distilling:
        inputs = distiller.data_preprocessor(data, True)
        pixels = inputs.get("inputs_teacher", inputs["inputs"])
        steps["teacher_forward_s"] = lambda: _teacher_forward(distiller, optim, pixels)
        steps["distill_step_s"] = lambda: distiller.train_step(data, optim)
    distiller.train()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    distils = distiller.distilling
    for _ in range(rounds + 2):
        for name, step in steps.items():
            distiller.distilling = distils and name == "distill_step_s"
            _wait()
            start = time.perf_counter()
            step()
            _wait()
            seconds[name].append(time.perf_counter() - start)
    distiller.distilling = distils
    return {name: median(values[2:]) for name, values in seconds.items()}


@torch.no_grad()
def latency_s(model: nn.Module, data: Any, runs: int = 20) -> float:
    """Median seconds from one image, read and resized, to its boxes, on the device that the model is on.

    Args:
        model: a detector; its mode is put back.
        data: a batch as its loader gives it, whose images take turns.
        runs: how often to measure, after two that do not count.
    """
    was_training = model.training
    model.eval()
    images = [
        {"inputs": [pixels], "data_samples": [sample]}
        for pixels, sample in zip(data["inputs"], data["data_samples"], strict=True)
    ]
    seconds = []
    for run in range(runs + 2):
        _wait()
        start = time.perf_counter()
        model.val_step(images[run % len(images)])
        _wait()
        seconds.append(time.perf_counter() - start)
    model.train(was_training)
    return median(seconds[2:])


def _teacher_forward(distiller: Distiller, optim: OptimWrapper, pixels: Tensor) -> None:
    with optim.optim_context(distiller):
        distiller.teacher_outputs(pixels)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
