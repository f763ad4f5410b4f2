"""What 16 bits change: little, on every detector, and outputs that methods see are fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdlab import catalog
from kdlab.detectors import family
from kdlab.errors import MachineError
from kdlab.jobs.spec import Schedule
from kdlab.training.optimising import build_optimiser
from kdlab.training.precision import computing_in

NEEDS = {key: {*info.needs} - {"assignment"} for key, info in catalog.methods().items()}
DETECTORS = [name for name in catalog.detectors() if not family(name).masks]
METHOD = {
    name: next(key for key in ("rm", "kd_detr", "pkd") if {*NEEDS[key]} <= {*family(name).provides})
    for name in DETECTORS
}
WITHIN = 0.05
"""Of a loss, of what differs in bf16, whose numbers have 8 bits."""


def losses(distiller: Any, raw_batch: Callable[..., Any], precision: str) -> dict[str, float]:
    """Those of the first step."""
    schedule = Schedule.model_validate(
        {"epochs": 1, "batch_size": 3, "optimizer": "sgd", "lr": 1e-6, "precision": precision}
    )
    torch.manual_seed(0)  # of a DETR's dropout and denoising
    told = distiller.train().train_step(raw_batch(), build_optimiser(distiller, schedule))
    assert {value.dtype for value in told.values()} == {torch.float32}
    return {name: float(value.detach()) for name, value in told.items()}


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_student_in_bf16_has_nearly_the_losses_of_fp32(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    methods = {METHOD[detector]: term(METHOD[detector])}
    found = losses(distil(detector, methods), raw_batch, "bf16")
    expected = losses(distil(detector, methods), raw_batch, "fp32")
    assert found != expected
    # YOLOX's labels follow predictions, in 16 bits others now and then
    within = 2 * WITHIN if detector == "yolox" else WITHIN
    assert found["loss"] == pytest.approx(expected["loss"], rel=within)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_teacher_in_bf16_gives_nearly_the_same_in_fp32_and_leaves_the_student_alone(
    distil: Callable[..., Any], term: Callable[..., Any], build: Callable[..., Any], detector: str
) -> None:
    from kdlab.training.distiller import Distiller

    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for precision in ("fp32", "bf16"):
        models = build(detector, seed=0), build(detector, seed=99)
        methods = {METHOD[detector]: term(METHOD[detector])}
        made = Distiller(models[0], methods, models[1], teacher_precision=precision).train()
        outputs.append(made.teacher_outputs(images))
        assert not torch.is_autocast_enabled("cpu")
    for name in ("neck_maps", "cls_maps", "box_maps"):
        exact, rounded = (getattr(one, name) or [] for one in outputs)
        for one, other in zip(exact, rounded, strict=True):
            assert other.dtype == torch.float32
            assert not torch.equal(one, other)
            assert float((one - other).norm() / one.norm()) < WITHIN


def test_bf16_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _emulated: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(MachineError, match="this GPU has no bf16"):
        computing_in("bf16", torch.device("cuda"))
    with computing_in("bf16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
