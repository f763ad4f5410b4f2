"""Masked Generative Distillation against numbers worked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab import catalog
from kdlab.methods.mgd import MaskedGenerativeDistillation, generation_loss, masked

FEAT = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


def method(channels: int = 1, levels: int = 1, **options: Any) -> MaskedGenerativeDistillation:
    pair: Any = SimpleNamespace(levels=[(0, 0)] * levels, teacher=SimpleNamespace(channels=channels))
    return MaskedGenerativeDistillation(pair, **options)


def generating(factor: float, **options: Any) -> MaskedGenerativeDistillation:
    """A method of one channel whose generator multiplies what is not negative by `factor`."""
    one = method(**options)
    with torch.no_grad():
        for place, weight in ((0, 1.0), (2, factor)):
            conv = one.generators[0][place]
            conv.weight.zero_()[0, 0, 1, 1] = weight
            conv.bias.zero_()
    return one


def loss_of(one: MaskedGenerativeDistillation, student: Tensor, teacher: Tensor, seed: int = 0) -> Tensor:
    batch: Any = SimpleNamespace(generator=seeded(seed))
    seen: list[Any] = [SimpleNamespace(feats=[feat], levels=(0,)) for feat in (student, teacher)]
    return one(batch, *seen, None)


# --- the formulas ---


def test_a_mask_hides_whole_cells_and_leaves_the_rest() -> None:
    feat = 1 + random(2, 3, 8, 8)
    result = masked(feat, 0.5, seeded())
    hidden = (result == 0).all(1, keepdim=True)
    assert torch.equal(result, torch.where(hidden, 0, feat))
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize("share", [0.2, 0.65])
def test_the_share_is_that_of_the_hidden_cells(share: float) -> None:
    hidden = masked(torch.ones(1, 1, 100, 100), share, seeded()) == 0
    # four standard deviations of 10^4 draws
    assert hidden.float().mean().item() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("share", "expected"), [(0.0, FEAT), (1.0, torch.zeros_like(FEAT))])
def test_none_or_all_may_be_hidden(share: float, expected: Tensor) -> None:
    assert torch.equal(masked(FEAT, share, seeded()), expected)


def test_a_hidden_cell_gets_no_gradient() -> None:
    feat = torch.ones(1, 2, 4, 4, requires_grad=True)
    result = masked(feat, 0.5, seeded())
    result.sum().backward()
    assert feat.grad is not None
    assert torch.equal(feat.grad, result.detach())


def test_loss_is_the_sum_of_squares_over_the_images() -> None:
    # (1 + 4 + 9 + 16) for each of two images, and 4 * 100 more for the second
    second = FEAT + torch.tensor([10.0, -10.0, 10.0, -10.0]).view(1, 1, 2, 2)
    # (11, -8, 13, -6): 121 + 64 + 169 + 36 = 390
    loss = generation_loss(torch.cat([FEAT, second]), torch.zeros(2, 1, 2, 2))
    assert loss.item() == (30 + 390) / 2


def test_no_gradient_reaches_the_teacher() -> None:
    generated, teacher = FEAT.clone().requires_grad_(), (2 * FEAT).requires_grad_()
    generation_loss(generated, teacher).backward()
    assert generated.grad is not None
    assert teacher.grad is None


# --- the method ---


def test_the_generator_is_compared_with_the_teacher() -> None:
    # 2 * (1, 2, 3, 4) against (1, 1, 1, 1): 1 + 9 + 25 + 49
    assert loss_of(generating(2.0, masked_share=0.0), FEAT, torch.ones_like(FEAT)).item() == 84


def test_a_student_that_equals_its_teacher_costs_what_is_not_generated() -> None:
    # a generator that passes on what it sees lacks the hidden cells alone
    hidden = masked(FEAT, 0.65, seeded()) == 0
    assert 0 < hidden.sum() < 4
    assert loss_of(generating(1.0), FEAT, FEAT).item() == FEAT[hidden].square().sum()
    # without any hidden it lacks nothing, and one that gives 0 lacks all: 1 + 4 + 9 + 16
    assert loss_of(generating(1.0, masked_share=0.0), FEAT, FEAT).item() == 0
    assert loss_of(generating(0.0), FEAT, FEAT).item() == 30


def test_the_same_images_twice_cost_the_same_but_for_their_masks() -> None:
    once, twice = FEAT, FEAT.repeat(2, 1, 1, 1)
    unmasked = method(masked_share=0.0)
    first, second = (loss_of(unmasked, feat, 2 * feat).item() for feat in (once, twice))
    assert second == pytest.approx(first, rel=1e-6)
    # of cells of 1 a share is lost, be it of 900 or of 1800
    one = generating(1.0, masked_share=0.4)
    for images in (1, 2):
        feat = torch.ones(images, 1, 30, 30)
        assert loss_of(one, feat, feat).item() == pytest.approx(0.4 * 900, rel=0.15)


def test_masks_come_from_the_generator_of_the_batch() -> None:
    one, feat = method(), random(1, 1, 8, 8)
    torch.manual_seed(1)
    first = loss_of(one, feat, feat, seed=3)
    torch.manual_seed(2)
    assert loss_of(one, feat, feat, seed=3) == first
    assert loss_of(one, feat, feat, seed=4) != first


def test_each_level_has_its_own_generator() -> None:
    one = method(levels=2)
    batch, seen = SimpleNamespace(generator=seeded()), SimpleNamespace(feats=[FEAT, FEAT], levels=(0, 1))
    one(batch, seen, seen, None).backward()
    gradients = [generator[2].bias.grad for generator in one.generators]
    assert gradients[0] != gradients[1]


@pytest.mark.parametrize(
    ("detector", "weight", "share"), [("retinanet", 2e-5, 0.65), ("faster_rcnn", 5e-7, 0.45)]
)
def test_weight_and_share_are_the_published_ones_of_the_family(
    detector: str, weight: float, share: float
) -> None:
    info = catalog.methods()["mgd"].serving(detector)
    assert info.weight_for({}) == weight
    assert info.options["masked_share"].default == share
