"""Every method on a GPU that is not there: where its tensors lie, what it computes, how often it waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from kdlab import catalog
from kdlab.detectors import family
from kdlab.jobs.spec import Schedule
from kdlab.training.loop import build_optimiser
from tests.gpu.pretended import gpu

METHODS = catalog.methods()
DETECTORS = [name for name in catalog.detectors() if not family(name).masks]
MOST = {("retinanet", "gid"): 60, "gid": 40}
"""Waits that a method may add to a step of mmdet's own, others 10. RetinaNet's assigner waits once a box."""
SCHEDULE = Schedule.model_validate(
    {"epochs": 1, "batch_size": 3, "optimizer": "adamw", "lr": 1e-3, "clip_grad": 35}
)


def served() -> list[tuple[str, str]]:
    pairs = []
    for detector in DETECTORS:
        provides = set(family(detector).provides)
        pairs += [(detector, key) for key, info in METHODS.items() if set(info.needs_for({})[0]) <= provides]
    return pairs


@pytest.fixture(scope="module")
def step(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> Callable[..., Any]:
    """`step("gfl", "rm", on_gpu=True)`: the losses of a second step, and how often it waited."""

    @cache
    def step(detector: str, method: str, on_gpu: bool) -> tuple[dict[str, float], Counter[str]]:
        distiller = distil(detector, {method: term(method)} if method else {})
        if not on_gpu:
            return steps(distiller, Counter())
        with gpu() as waits:
            return steps(distiller.to("cuda"), waits)

    def steps(distiller: Any, waits: Counter[str]) -> tuple[dict[str, float], Counter[str]]:
        optim = build_optimiser(distiller.train(), SCHEDULE)
        # the first one makes priors and states
        distiller.train_step(raw_batch(), optim)
        waits.clear()
        told = distiller.train_step(raw_batch(), optim)
        counted = Counter(waits)
        return {name: float(value.detach().cpu()) for name, value in told.items()}, counted

    return step


@pytest.mark.parametrize(("detector", "method"), served())
def test_a_method_computes_the_same_on_the_gpu_and_waits_little_for_it(
    step: Callable[..., Any], detector: str, method: str
) -> None:
    found, waits = step(detector, method, True)
    assert found == pytest.approx(step(detector, method, False)[0], rel=1e-4, abs=1e-6)
    _, plain = step(detector, "", True)
    added = waits - plain
    most = MOST.get((detector, method)) or MOST.get(method, 10)
    assert added.total() <= most, "\n".join(f"{n} {what}" for what, n in added.most_common())
