"""Masked Distillation: a level by hand, what the tokens do, and when the student narrows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdlab import catalog
from kdlab.methods.maskd import ReceptiveTokens, TokenLearning, dice_similarity, masked_loss
from kdlab.training.distiller import Distiller


def test_a_level_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[0.0, 0.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[0.0, 0.0]], [[0.0, 2.0]]]])
    masks = torch.tensor([[[[1.0, 0.5]], [[0.0, 1.0]]]])
    shares = torch.tensor([[0.25, 0.75]])
    # mean over channels: 1/2 and (4 + 4)/2; masks squared 1, 1/4 and 0, 1; sizes 1.5 and 1
    first, second = (0.5 * 1 + 4 * 0.25) / 1.5, 4 * 1 / 1
    loss = masked_loss(student, teacher, masks, shares)
    assert loss.item() == pytest.approx(0.25 * first + 0.75 * second)
    loss.backward()
    assert student.grad is not None
    # d/dx of 0.25/1.5 * (x^2)/2 at x = 1
    assert student.grad[0, 0, 0, 0].item() == pytest.approx(0.25 / 1.5)


def test_equal_masks_resemble_each_other_fully_and_disjoint_ones_not_at_all() -> None:
    one = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).view(1, 1, 2, 2)
    assert dice_similarity(torch.cat([one, one], 1)).item() == pytest.approx(1.0)
    assert dice_similarity(torch.cat([one, 1 - one], 1)).item() == 0.0
    # 2*1/(2+1) between the first two, 0 otherwise: two of six ordered pairs
    half = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).view(1, 1, 2, 2)
    assert dice_similarity(torch.cat([one, half, torch.zeros_like(one)], 1)).item() == pytest.approx(2 / 9)
    assert dice_similarity(one).item() == 0.0


def test_masks_are_the_tokens_likeness_and_shares_sum_to_one() -> None:
    torch.manual_seed(0)
    level, feat = ReceptiveTokens(channels=2, tokens=3), torch.randn(2, 2, 4, 5)
    level.tokens.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]])
    masks = level.masks(feat)
    assert masks.shape == (2, 3, 4, 5)
    assert (masks[:, 0] == 0.5).all()
    torch.testing.assert_close(masks[:, 1], feat[:, 0].sigmoid())
    torch.testing.assert_close(masks[:, 2], (-2 * feat[:, 1]).sigmoid())
    torch.testing.assert_close(level.shares(feat).sum(1), torch.ones(2))


def test_the_head_sees_the_map_under_all_masks_by_their_shares() -> None:
    torch.manual_seed(0)
    learning, feat = TokenLearning(channels=2, levels=1, tokens=3), torch.randn(2, 2, 4, 5)
    (masked,), losses = learning([feat])
    level = learning.levels[0]
    masks, shares = level.masks(feat), level.shares(feat)
    expected = sum(feat * masks[:, [t]] * shares[:, t, None, None, None] for t in range(3))
    torch.testing.assert_close(masked, expected)
    assert losses["loss_diversity"].item() == pytest.approx(dice_similarity(masks).item())


@pytest.fixture
def distiller(distil: Callable[..., Distiller], term: Callable[..., Any]) -> Distiller:
    distiller = distil("gfl", {"maskd": term("maskd", narrow_after=10)}).train()
    for level in distiller.terms["maskd"].method.prepared.levels:
        torch.nn.init.normal_(level.tokens)
    return distiller


def loss_at(distiller: Distiller, iteration: int, data: dict[str, Any]) -> float:
    distiller.iteration, distiller.max_iterations = iteration, 20
    distiller(**distiller.data_preprocessor(data, True), mode="loss")
    return float(distiller.raw_terms["maskd"])


def test_the_students_own_masks_narrow_the_teachers_later(
    distiller: Distiller, raw_batch: Callable[..., Any]
) -> None:
    early, before, after = (loss_at(distiller, at, raw_batch()) for at in (0, 9, 10))
    assert early == pytest.approx(before, rel=1e-5)
    assert after != pytest.approx(before, rel=1e-2)


def test_a_fraction_is_in_step_with_the_schedule(distiller: Distiller, raw_batch: Callable[..., Any]) -> None:
    distiller.terms["maskd"].method.narrow_after = 0.25
    before, after = (loss_at(distiller, at, raw_batch()) for at in (4, 5))
    assert after != pytest.approx(before, rel=1e-2)


def test_each_family_has_its_published_weight_and_start() -> None:
    info = catalog.methods()["maskd"]
    found = {key: info.serving(key) for key in ("retinanet", "fcos", "faster_rcnn")}
    assert {key: one.default_weight for key, one in found.items()} == {
        "retinanet": 7, "fcos": 10, "faster_rcnn": 1
    }  # fmt: skip
    # 7,000, 5,000 and 7,330 of the iterations of COCO's 2x, 117,266 images in batches of 16
    whole = 24 * 117_266 // 16
    begins = {key: one.options["narrow_after"].default * whole for key, one in found.items()}
    assert begins == pytest.approx({"retinanet": 7000, "fcos": 5000, "faster_rcnn": 7330}, rel=0.02)


def test_tokens_learn_nothing_beside_the_student(distiller: Distiller, raw_batch: Callable[..., Any]) -> None:
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    losses["loss_maskd"].backward()
    assert all(p.grad is None and not p.requires_grad for p in
               distiller.terms["maskd"].method.prepared.parameters())  # fmt: skip
    assert distiller.trained_parts == {"maskd": 3 * (16 * 16 + 16)}


def test_tokens_of_a_level_stay_with_it_whichever_levels_are_used(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    one = distil("gfl", {"maskd": term("maskd", levels=[16])})
    used = one.terms["maskd"].method.prepared.levels
    for place in (0, 2):
        used[place].tokens.data.fill_(torch.nan)
    assert loss_at(one.train(), 0, raw_batch()) > 0


def test_more_images_cost_as_much(distiller: Distiller, raw_batch: Callable[..., Any]) -> None:
    distiller.eval()
    distiller.student.bbox_head.train()
    once, twice = (loss_at(distiller, 0, raw_batch([0, 1, 2] * times)) for times in (1, 2))
    assert twice == pytest.approx(once, rel=1e-4)
