"""Pearson Distillation against numbers worked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab import catalog
from kdlab.methods.pkd import PearsonDistillation, pearson_loss, standardised_channels

# of two patterns over four cells that do not correlate
ROWS = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])
COLUMNS = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(*feats: Tensor) -> Any:
    return SimpleNamespace(feats=list(feats))


# --- the formula ---


@pytest.mark.parametrize(
    ("student", "expected"),
    [(ROWS, 0.0), (COLUMNS, 1.0), (-ROWS, 2.0), (ROWS + COLUMNS, 1 - 0.5**0.5)],
    ids=["equal", "unlike", "opposite", "half"],
)
def test_loss_is_one_minus_the_correlation(student: Tensor, expected: float) -> None:
    # (1, 0, 0, -1) and (1, 1, -1, -1): covariance 2, lengths sqrt 2 and 2, r = sqrt 1/2
    assert pearson_loss(student, ROWS).item() == pytest.approx(expected, abs=1e-5)


def test_mean_and_scale_of_a_channel_are_free() -> None:
    teacher = random(2, 3, 4, 5)
    scale, shift = torch.tensor([0.1, 3.0, 20.0]).view(3, 1, 1), torch.tensor([5.0, 0.0, -2.0]).view(3, 1, 1)
    assert pearson_loss(scale * teacher + shift, teacher).item() == pytest.approx(0, abs=1e-6)


def test_channels_count_alike() -> None:
    # r of 1 and of -1
    student, teacher = torch.cat([ROWS, -COLUMNS], 1), torch.cat([100 * ROWS, COLUMNS], 1)
    assert pearson_loss(student, teacher).item() == pytest.approx(1.0, abs=1e-5)


def test_images_share_mean_and_deviation() -> None:
    # each image alone is constant, together they are (0, 0, 4, 4): mean 2, deviation 2
    feat = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    expected = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    torch.testing.assert_close(standardised_channels(feat), expected)


def test_the_unbiased_deviation_costs_less_by_one_part_in_the_values() -> None:
    # opposite patterns of four values cost 2, times 3/4
    assert pearson_loss(-ROWS, ROWS, correction=1).item() == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("correction", [0, 1])
def test_a_map_of_a_single_value_costs_nothing_and_stays_finite(correction: int) -> None:
    student = torch.tensor([[[[3.0]], [[-1.0]]]], requires_grad=True)
    loss = pearson_loss(student, torch.zeros(1, 2, 1, 1), correction)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


@pytest.mark.parametrize("correction", [0, 1])
def test_a_constant_channel_costs_a_half_with_a_finite_gradient(correction: int) -> None:
    student = torch.full((1, 1, 2, 2), 7.0, requires_grad=True)
    loss = pearson_loss(student, ROWS, correction)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 if correction == 0 else 0.375, abs=1e-5)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random(1, 2, 3, 3).requires_grad_(), random(1, 2, 3, 3, seed=1).requires_grad_()
    pearson_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


# --- the method ---


def test_levels_add_up() -> None:
    loss = PearsonDistillation(None)(None, seen(COLUMNS, -ROWS), seen(ROWS, ROWS), None)
    assert loss.item() == pytest.approx(1 + 2, abs=1e-5)


def test_parity_has_the_unbiased_deviation() -> None:
    loss = PearsonDistillation(None, parity=True)(None, seen(-ROWS), seen(ROWS), None)
    assert loss.item() == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize(("parity", "ratio"), [(False, 1.0), (True, (7 / 8) / (3 / 4))])
def test_only_with_parity_the_same_images_twice_cost_more(parity: bool, ratio: float) -> None:
    method = PearsonDistillation(None, parity=parity)
    once = method(None, seen(COLUMNS), seen(ROWS), None)
    twice = method(None, seen(COLUMNS.repeat(2, 1, 1, 1)), seen(ROWS.repeat(2, 1, 1, 1)), None)
    assert (twice / once).item() == pytest.approx(ratio, abs=1e-5)


@pytest.mark.parametrize(("detector", "weight"), [("retinanet", 10), ("gfl", 6), ("faster_rcnn", 6)])
def test_weight_is_the_published_one_of_the_family(detector: str, weight: float) -> None:
    assert catalog.methods()["pkd"].serving(detector).weight_for({"parity": False}) == weight
