"""One step of the optimiser, whatever the number of forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from kdlab.training.optimising import build_optimiser
from kdlab.training.step import Step, parts_of
from tests.stubs.jobs import schedule

SCHEDULE = schedule(optimizer="sgd", lr=0.1, weight_decay=0.0, clip_grad=1.0)


class Mean(BaseModel):
    """A model whose loss is a mean over images, and counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.raw_terms: dict[str, Any] = {}
        self.shares: dict[str, Any] = {}
        self.forwards: list[int] = []

    def forward(self, inputs: list[Any], data_samples: list[Any], mode: str = "loss") -> dict[str, Any]:
        rows = torch.stack(list(inputs)).float()
        self.forwards.append(len(rows))
        loss = (rows @ self.weight).square().mean()
        self.raw_terms = {"own": loss.detach() / 2}
        return {"loss_own": loss}


def data() -> dict[str, list[Any]]:
    return {"inputs": list(torch.arange(10.0).view(5, 2) / 10), "data_samples": list(range(5))}


def stepped(micro_batch: int | None) -> tuple[Mean, list[dict[str, float]], Step]:
    model = Mean()
    step = Step(model, build_optimiser(model, SCHEDULE), micro_batch)
    losses = [{name: value.item() for name, value in step(data()).items()} for _ in range(3)]
    return model, losses, step


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_make_the_step_of_the_whole_batch(micro_batch: int) -> None:
    whole, losses, _ = stepped(None)
    model, found, _ = stepped(micro_batch)
    assert torch.allclose(model.weight, whole.weight, rtol=1e-6)
    for mine, theirs in zip(found, losses, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def test_no_forward_is_larger_than_asked_and_the_last_takes_the_rest() -> None:
    model, _, step = stepped(2)
    assert model.forwards == [2, 2, 1] * 3
    assert step.images == 2


@pytest.mark.parametrize("micro_batch", [None, 5, 8])
def test_a_batch_that_fits_is_one_forward(micro_batch: int | None) -> None:
    model, _, step = stepped(micro_batch)
    assert model.forwards == [5, 5, 5]
    assert step.images == 5


def test_raw_losses_are_told_besides() -> None:
    _, losses, _ = stepped(2)
    assert losses[0]["raw_own"] == pytest.approx(losses[0]["loss_own"] / 2)


def test_parts_hold_all_images_in_order() -> None:
    parts = list(parts_of(data(), 2))
    assert [image for part in parts for image in part["data_samples"]] == [0, 1, 2, 3, 4]
