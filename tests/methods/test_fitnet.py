"""FitNet against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.methods.fitnet import FitNet, whole_map_loss


def seen(*feats: Tensor) -> Any:
    return SimpleNamespace(feats=list(feats))


def loss_of(student: Any, teacher: Any) -> Tensor:
    return FitNet(None)(None, student, teacher, None)


def test_loss_is_the_mean_square_over_images_channels_and_cells() -> None:
    # two channels of two cells: (1 + 4 + 0 + 9) / 4
    student = torch.tensor([[[[1.0, 2.0]], [[5.0, 3.0]]]])
    teacher = torch.tensor([[[[0.0, 0.0]], [[5.0, 0.0]]]])
    assert whole_map_loss(student, teacher).item() == 3.5


def test_levels_add_up_whatever_their_size() -> None:
    # 4 on a level of four cells and 9 on one of a single cell
    student = seen(torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 1, 1), 3.0))
    teacher = seen(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1))
    assert loss_of(student, teacher).item() == 13


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (torch.full((1, 1, 1, 1), value, requires_grad=True) for value in (1.0, 3.0))
    loss_of(seen(student), seen(teacher)).backward()
    # the derivative of (x - 3)^2 at 1
    assert student.grad is not None
    assert student.grad.item() == -4
    assert teacher.grad is None


def test_each_level_trains_a_convolution_also_where_channels_agree(
    distil: Callable[..., Any], term: Callable[..., Any]
) -> None:
    distiller = distil("retinanet", {"fitnet": term("fitnet")})
    shapes = [connector.weight.shape for connector in distiller.terms["fitnet"].connectors]
    assert shapes == [(16, 16, 1, 1)] * 3
    assert distiller.trained_parts["fitnet"] == 3 * (16 * 16 + 16)


@pytest.mark.parametrize("method", ["fitnet", "frs"])
def test_a_projector_of_two_convolutions_stands_in_for_the_one(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = distil("retinanet", {method: term(method, projector="mlp")}, neck_channels=8).train()
    (first, activation, second), *others = distiller.terms[method].connectors
    assert [tuple(layer.weight.shape) for layer in (first, second)] == [(16, 8, 1, 1), (16, 16, 1, 1)]
    assert isinstance(activation, torch.nn.ReLU)
    assert len({id(one) for one in (first, *others)}) == 3
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    assert sum(losses[f"loss_{name}"] for name in distiller.raw_terms).isfinite()
