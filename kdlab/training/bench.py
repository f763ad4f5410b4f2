"""Cost of models: training steps of student, teacher and both side by side, and the detector's latency."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from kdlab.training import ranks
from kdlab.training.device import is_out_of_memory
from kdlab.training.distiller import Distiller

_WARMUP = 2
_USUAL_STEP = (1, 1000)


def affordable(measured: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What is measured when the work is done, which is not lost where the GPU's memory does not hold that."""
    try:
        return measured()
    except RuntimeError as error:
        # other processes may be in the middle of the same
        if ranks.count() > 1 or not is_out_of_memory(error):
            raise
        print("the GPU is out of memory: what a step or an image costs is not told", flush=True)
        return {}


def step_times(distiller: Distiller, optim: OptimWrapper, data: Any, rounds: int = 10) -> dict[str, float]:
    """Median seconds of steps; as `step_seconds`."""
    return {name: median(found) for name, found in step_seconds(distiller, optim, data, rounds).items()}


def step_seconds(distiller: Distiller, optim: OptimWrapper, data: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of steps that take turns on one batch, so that a noisy machine slows all alike.

    The weights move: call it when they are no longer needed.

    Returns:
        "student_step_s": a training step without methods; where there are methods also "teacher_forward_s"
        and "distill_step_s", a training step with them.
    """

    def train_step() -> None:
        distiller.train_step(data, optim)

    def teacher_forward() -> None:
        with optim.optim_context(distiller):
            distiller.teacher_outputs(pixels, inputs["data_samples"])

    distils = distiller.distilling
    if distils:
        inputs = distiller.data_preprocessor(data, True)
        pixels = inputs.get("inputs_teacher", inputs["inputs"])
    distiller.train()
    at, seconds = (distiller.iteration, distiller.max_iterations), defaultdict(list)
    # an early step that does not look at shares of the gradient: no method has stopped in it
    distiller.iteration, distiller.max_iterations = _USUAL_STEP
    for _ in range(_WARMUP + rounds):
        distiller.distilling = False
        seconds["student_step_s"].append(timed(train_step))
        if distils:
            seconds["teacher_forward_s"].append(timed(teacher_forward))
            distiller.distilling = True
            seconds["distill_step_s"].append(timed(train_step))
    distiller.iteration, distiller.max_iterations = at
    return {name: values[_WARMUP:] for name, values in seconds.items()}


def latencies_s(models: Mapping[str, nn.Module], data: Any, runs: int = 20) -> dict[str, float]:
    """Median seconds from one image to its boxes; as `latency_seconds`."""
    return {name: median(found) for name, found in latency_seconds(models, data, runs).items()}


@torch.no_grad()
def latency_seconds(models: Mapping[str, nn.Module], data: Any, runs: int) -> dict[str, list[float]]:
    """Seconds from one image, read and resized, to its boxes, on the device that the models are on.

    The models take turns at each image, so that a noisy machine slows all alike.

    Args:
        models: detectors by the names of their figures; their modes are put back.
        data: a batch as its loader gives it, whose images take turns.
        runs: how often to measure, after each image was seen once, which costs more where its size is new.
    """
    modes = [(model, model.training) for model in models.values()]
    for model in models.values():
        model.eval()
    seconds = defaultdict(list)
    first = max(_WARMUP, len(data["inputs"]))
    for run in range(first + runs):
        place = run % len(data["inputs"])
        for name, model in models.items():
            image = {key: [data[key][place]] for key in ("inputs", "data_samples")}
            seconds[name].append(timed(lambda image=image, model=model: model.val_step(image)))
    for model, mode in modes:
        model.train(mode)
    return {name: values[first:] for name, values in seconds.items()}


def timed(step: Callable[[], Any]) -> float:
    """Seconds of a call, with what it left running on the GPU."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
