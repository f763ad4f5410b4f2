"""Channel-wise Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab import catalog
from kdlab.methods.cwd import ChannelWiseDistillation, channel_wise_loss, normalised
from kdlab.training.distiller import Distiller

LN3 = math.log(3)
# one channel of two cells: softmax (3/4, 1/4), and (1/2, 1/2) where all is 0
PEAK, FLAT = torch.tensor([LN3, 0.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
# 3/4 ln(3/2) + 1/4 ln(1/2)
KL = 0.130812


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(feat: Tensor, cls_map: Tensor) -> Any:
    return SimpleNamespace(feats=[feat], cls_maps=[cls_map])


# --- the formula ---


def test_loss_is_the_divergence_over_cells() -> None:
    assert channel_wise_loss(FLAT, PEAK).item() == pytest.approx(KL, abs=1e-6)


def test_temperature_softens_both_and_its_square_scales() -> None:
    # at tau = 2 the teacher of twice the height is softmax (3/4, 1/4) again
    assert channel_wise_loss(FLAT, 2 * PEAK, 2.0).item() == pytest.approx(4 * KL, abs=1e-6)


def test_loss_is_the_mean_over_images_and_channels() -> None:
    # of six channels in two images one differs
    student, teacher = torch.zeros(2, 3, 1, 2), torch.zeros(2, 3, 1, 2)
    teacher[1, 2] = PEAK[0, 0]
    assert channel_wise_loss(student, teacher).item() == pytest.approx(KL / 6, abs=1e-6)


def test_a_constant_added_to_a_channel_changes_nothing() -> None:
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    shifted = student + torch.tensor([1.0, -4.0, 9.0]).view(3, 1, 1)
    expected = channel_wise_loss(student, teacher).item()
    assert channel_wise_loss(shifted, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_map_of_one_cell_costs_nothing_in_the_graph() -> None:
    student = random(2, 3, 1, 1).requires_grad_()
    loss = channel_wise_loss(student, random(2, 3, 1, 1, seed=1))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random(1, 2, 3, 3).requires_grad_(), random(1, 2, 3, 3, seed=1).requires_grad_()
    channel_wise_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


# --- the method ---


# in mmrazor a recipe that is named after the class head has come to distil the neck
@pytest.mark.parametrize(("on", "expected"), [("neck", 0.368064), ("cls", KL)])
def test_it_compares_the_maps_that_are_asked_for(on: Any, expected: float) -> None:
    # on the neck softmax (9/10, 1/10): 9/10 ln(9/5) + 1/10 ln(1/5)
    loss = ChannelWiseDistillation(None, on=on)(None, seen(FLAT, FLAT), seen(2 * PEAK, PEAK), None)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_levels_add_up() -> None:
    student, teacher = (SimpleNamespace(feats=[level, level]) for level in (FLAT, PEAK))
    loss = ChannelWiseDistillation(None)(None, student, teacher, None)
    assert loss.item() == pytest.approx(2 * KL, abs=1e-6)


def test_temperature_is_the_methods_option() -> None:
    method = ChannelWiseDistillation(None, temperature=2.0)
    loss = method(None, seen(FLAT, FLAT), seen(2 * PEAK, PEAK), None)
    assert loss.item() == pytest.approx(4 * KL, abs=1e-6)


def test_what_it_needs_depends_on_the_maps() -> None:
    info = catalog.methods()["cwd"]
    assert info.needs_for({}) == (("feats",), ())
    assert info.needs_for({"on": "cls"}) == (("cls_maps",), ("classes", "strides", "anchors"))
    assert [info.weight_for({"on": on, "normalise": False}) for on in ("neck", "cls")] == [10, 5]
    assert info.weight_for({"on": "neck", "normalise": True}) == 1


def test_one_instance_of_each_works_in_one_arm(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    methods = {"cwd@neck": term("cwd"), "cwd@cls": term("cwd", on="cls")}
    distiller = distil("gfl", methods, neck_channels=8).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    both = losses["loss_cwd@neck"], losses["loss_cwd@cls"]
    assert all(loss.isfinite() and loss > 0 for loss in both)
    assert both[0] != both[1]
    assert distiller.terms["cwd@cls"].connectors is None
    assert distiller.trained_parts == {"cwd@neck": 3 * (8 * 16 + 16), "cwd@cls": 0}


def test_neck_maps_of_other_sizes_meet_by_position(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    teacher = build("gfl", 99, strides=(16, 32, 64))
    distiller = Distiller(build("gfl", 0), {"cwd": term("cwd", match="index")}, teacher).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    assert losses["loss_cwd"].isfinite()
    assert losses["loss_cwd"] > 0


# --- normalised, as MMYOLO has it ---


def test_a_normalised_map_is_what_batchnorm_without_weights_makes_of_it() -> None:
    feat = 3 * random(2, 3, 4, 5) + 7
    expected = torch.nn.BatchNorm2d(3, affine=False).train()(feat)
    torch.testing.assert_close(normalised(feat), expected)


def test_a_channel_of_one_value_is_normalised_to_nothing_with_a_finite_gradient() -> None:
    feat = torch.full((1, 2, 1, 1), 5.0, requires_grad=True)
    normalised(feat).sum().backward()
    assert torch.equal(normalised(feat), torch.zeros(1, 2, 1, 1))
    assert torch.isfinite(feat.grad).all()


def test_normalised_maps_are_compared_and_scale_and_shift_of_a_channel_cost_nothing(
    distil: Callable[..., Any], term: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"cwd": term("cwd", normalise=True)})
    assert all(isinstance(one, torch.nn.Conv2d) for one in distiller.terms["cwd"].connectors)
    method, feat = distiller.terms["cwd"].method, random(2, 3, 4, 5)
    moved = feat * torch.tensor([2.0, 0.5, 9.0]).view(3, 1, 1) + 4
    same = method(None, seen(feat, feat), seen(moved, feat), None).item()
    assert same == pytest.approx(0.0, abs=1e-6)
    other = method(None, seen(feat, feat), seen(random(2, 3, 4, 5, seed=1), feat), None).item()
    expected = channel_wise_loss(normalised(feat), normalised(random(2, 3, 4, 5, seed=1))).item()
    assert other == pytest.approx(expected) != same
