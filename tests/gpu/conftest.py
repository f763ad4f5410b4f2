"""What tests of a GPU share: a step of every method on every family, on whatever device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from kdlab.jobs.spec import Schedule
from kdlab.training.optimising import build_optimiser
from tests.gpu.pretended import gpu
from tests.stubs.pairs import METHODS, kinds


def schedule(**changes: Any) -> Schedule:
    """A schedule of three images a step."""
    told = {"epochs": 1, "batch_size": 3, "optimizer": "adamw", "lr": 1e-3, "clip_grad": 35}
    return Schedule.model_validate(told | changes)


def served() -> list[tuple[str, str]]:
    """Detectors with the methods that they show something new."""
    return [(detector, key) for key in METHODS for detector in kinds(key, {})]


Step = Callable[[str, str, str], tuple[dict[str, float], Counter[str]]]


@pytest.fixture(scope="module")
def step(distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]) -> Step:
    """`step("gfl", "rm", "pretended")`: the losses of a second step, and how often it waited.

    Devices are "cpu", "cuda" and "pretended"; waits are counted on the last alone.
    """

    @cache
    def step(detector: str, method: str, device: str) -> tuple[dict[str, float], Counter[str]]:
        distiller = distil(detector, {method: term(method)} if method else {})
        if device != "pretended":
            return steps(distiller.to(device), Counter())
        with gpu() as waits:
            return steps(distiller.to("cuda"), waits)

    def steps(distiller: Any, waits: Counter[str]) -> tuple[dict[str, float], Counter[str]]:
        torch.manual_seed(0)
        optim = build_optimiser(distiller.train(), schedule())
        # the first one makes priors and states
        distiller.train_step(raw_batch(), optim)
        waits.clear()
        told = distiller.train_step(raw_batch(), optim)
        counted = Counter(waits)
        return {name: float(value.detach().cpu()) for name, value in told.items()}, counted

    return step


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions on a GPU in fp32, not TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
