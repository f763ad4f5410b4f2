"""RdimKD against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.methods.fitnet import whole_map_loss
from kdlab.methods.rdimkd import DimensionalityReduction, projected_loss

# one cell of two channels, and the line on which they are compared
FEAT, ZERO = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
LINE = torch.tensor([[0.6], [0.8]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method(channels: int = 16, **options: Any) -> DimensionalityReduction:
    pair: Any = SimpleNamespace(teacher=SimpleNamespace(channels=channels))
    return DimensionalityReduction(pair, **options)


def seen(*feats: Tensor) -> Any:
    return SimpleNamespace(feats=list(feats))


# --- the formula ---


def test_loss_is_the_square_of_the_projected_difference() -> None:
    # (0.6 * 1 + 0.8 * 2)^2
    assert projected_loss(FEAT, ZERO, LINE).item() == pytest.approx(4.84)


def test_loss_is_the_mean_over_images_cells_and_dimensions() -> None:
    # the first two of three channels, two images of one cell: (1 + 4 + 9 + 16) / 4
    student = torch.tensor([[1.0, 2.0, 7.0], [3.0, 4.0, 8.0]]).view(2, 3, 1, 1)
    assert projected_loss(student, torch.zeros(2, 3, 1, 1), torch.eye(3)[:, :2]).item() == 7.5


def test_what_the_projection_drops_is_free() -> None:
    # (0.8, -0.6) is at a right angle to the line
    student = torch.tensor([0.8, -0.6]).view(1, 2, 1, 1).requires_grad_()
    loss = projected_loss(student, ZERO, LINE)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None


def test_the_gradient_lies_in_the_subspace_and_not_in_the_teacher() -> None:
    student, teacher = FEAT.clone().requires_grad_(), ZERO.clone().requires_grad_()
    projected_loss(student, teacher, LINE).backward()
    # 2 * 2.2 along (0.6, 0.8)
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([2.64, 3.52])
    assert teacher.grad is None


# --- the method ---


def test_columns_are_orthonormal() -> None:
    projection = method(16, share=0.25).projection
    assert projection.shape == (16, 4)
    torch.testing.assert_close(projection.T @ projection, torch.eye(4))


@pytest.mark.parametrize(("share", "dimensions"), [(0.5, 3), (1.0, 6), (0.01, 1)])
def test_the_share_gives_the_dimensions(share: float, dimensions: int) -> None:
    assert method(6, share=share).projection.shape == (6, dimensions)


def test_all_dimensions_cost_what_whole_maps_cost() -> None:
    student, teacher = random(2, 6, 3, 4), random(2, 6, 3, 4, seed=1)
    loss = method(6, share=1.0)(None, seen(student), seen(teacher), None)
    assert loss.item() == pytest.approx(whole_map_loss(student, teacher).item(), rel=1e-5)


def test_half_the_dimensions_cost_about_as_much() -> None:
    student, teacher = random(2, 64, 16, 16), random(2, 64, 16, 16, seed=1)
    loss = method(64)(None, seen(student), seen(teacher), None)
    assert loss.item() == pytest.approx(whole_map_loss(student, teacher).item(), rel=0.05)


def test_levels_add_up_under_one_projection() -> None:
    one, student, teacher = method(), random(1, 16, 2, 2), random(1, 16, 2, 2, seed=1)
    single = one(None, seen(student), seen(teacher), None).item()
    both = one(None, seen(student, 3 * student), seen(teacher, 3 * teacher), None)
    assert both.item() == pytest.approx(10 * single, rel=1e-5)


def test_the_projection_is_saved_restored_and_never_trained(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    one, other = (distil("gfl", {"rdimkd": term("rdimkd")}, seed=seed) for seed in (0, 1))
    key = "terms.rdimkd.method.projection"
    before = one.state_dict()[key].clone()
    assert not torch.equal(other.state_dict()[key], before)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.terms["rdimkd"].method.projection, before)
    assert one.trained_parts == {"rdimkd": 0}
    assert key not in dict(one.named_parameters())
    one.train()
    losses = one(**one.data_preprocessor(raw_batch(), True), mode="loss")
    losses["loss_rdimkd"].backward()
    assert torch.equal(one.terms["rdimkd"].method.projection, before)


def test_a_seed_draws_the_same_projection(distil: Callable[..., Any], term: Callable[..., Any]) -> None:
    projections = [
        distil("gfl", {"rdimkd": term("rdimkd")}).terms["rdimkd"].method.projection for _ in range(2)
    ]
    assert torch.equal(*projections)
