"""Decoupled Features against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch, DetectorOutputs, RoiOutputs, Rois
from kdlab.methods.defeat import DecoupledFeatures, decoupled_feature_loss, proposal_loss
from kdlab.training.distiller import Distiller

LN3 = math.log(3)


# --- the formulas ---


def test_features_cost_half_their_mean_square_under_the_mask() -> None:
    # (1^2 + 3^2) / 2 channels at the first cell, halved
    feat = torch.tensor([[[[1.0, 5.0]], [[3.0, 5.0]]]])
    mask = torch.tensor([[[1.0, 0.0]]])
    assert decoupled_feature_loss(feat, torch.zeros_like(feat), mask).item() == 2.5


def test_an_empty_mask_costs_zero_in_the_graph() -> None:
    feat = torch.ones(1, 2, 1, 2).requires_grad_()
    loss = decoupled_feature_loss(feat, torch.zeros(1, 2, 1, 2), torch.zeros(1, 1, 2))
    loss.backward()
    assert loss.item() == 0
    assert feat.grad is not None


def test_proposals_cost_the_mean_kl_from_the_teacher() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2) at one of two chosen, equal at the other
    logits_teacher = torch.tensor([[LN3, 0.0], [1.0, 0.0], [9.0, 0.0]])
    logits_student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    chosen = torch.tensor([True, True, False])
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert proposal_loss(logits_student, logits_teacher, chosen).item() == pytest.approx(expected)


@pytest.mark.parametrize("proposals", [0, 2])
def test_no_chosen_proposal_costs_zero_in_the_graph(proposals: int) -> None:
    logits = torch.ones(proposals, 3).requires_grad_()
    loss = proposal_loss(logits, torch.zeros(proposals, 3), torch.zeros(proposals, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0


def test_no_gradient_reaches_the_teacher() -> None:
    mine, theirs = (torch.tensor([[value, 0.0]]).requires_grad_() for value in (1.0, 2.0))
    proposal_loss(mine, theirs, torch.tensor([True])).backward()
    feats = [torch.full((1, 1, 1, 1), value).requires_grad_() for value in (1.0, 2.0)]
    decoupled_feature_loss(*feats, torch.ones(1, 1, 1)).backward()
    assert mine.grad is not None and feats[0].grad is not None
    assert theirs.grad is None and feats[1].grad is None


# --- the method: levels of stride 4 (1 x 4 cells) and 8 (1 x 2 cells), one channel ---


def batch_of(*boxes: list[float]) -> Batch:
    shape = torch.tensor([[4, 16]])
    return Batch(
        torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long),
        torch.zeros(len(boxes), dtype=torch.long), shape, shape, (4, 16),
    )  # fmt: skip


FEATS = [torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), torch.tensor([[[[5.0, 6.0]]]])]


def outputs(feats: list[Tensor], **more: Any) -> DetectorOutputs:
    adapter: Any = SimpleNamespace(facts=SimpleNamespace(strides=(4, 8)), **more.pop("adapter", {}))
    return DetectorOutputs(adapter, feats, feats, tuple(range(len(feats))), **more)


def neck_losses(batch: Batch, **options: Any) -> dict[str, float]:
    method: Any = DecoupledFeatures(None, **options)
    losses = method(batch, outputs(FEATS), outputs([0 * feat for feat in FEATS]), None)
    return {name: loss.item() for name, loss in losses.items()}


def test_foreground_and_background_are_the_mean_over_levels_with_their_factors() -> None:
    # a small object, on the first level: cells 1 and 2, squares 4 and 9, outside 1 and 16, then 25 and 36
    found = neck_losses(batch_of([4, 0, 12, 4]))
    assert found["foreground"] == pytest.approx(3 * ((4 + 9) / 2 / 2 + 0) / 2)
    assert found["background"] == pytest.approx(12 * ((1 + 16) / 2 / 2 + (25 + 36) / 2 / 2) / 2)


def test_a_large_object_lies_on_the_next_level_alone() -> None:
    # 112 px and more from stride 8 on: beyond the map, its cells on it are all
    found = neck_losses(batch_of([0, 0, 120, 120]), foreground=1.0, background=1.0)
    assert found["foreground"] == pytest.approx((0 + (25 + 36) / 4) / 2)
    assert found["background"] == pytest.approx(((1 + 4 + 9 + 16) / 8 + 0) / 2)


def test_an_object_smaller_than_a_cell_has_one() -> None:
    assert neck_losses(batch_of([9, 1, 10, 2]), foreground=1.0)["foreground"] == 9 / 2 / 2


def test_without_objects_all_is_background() -> None:
    found = neck_losses(batch_of(), background=1.0)
    assert found["foreground"] == 0
    assert found["background"] == pytest.approx(((1 + 4 + 9 + 16) / 8 + (25 + 36) / 4) / 2)


ROIS = Rois(torch.zeros(3, 5), torch.tensor([0, 1, 1]), torch.tensor([0, -1, -1]))
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def head_losses(**options: Any) -> dict[str, float]:
    """A teacher that is surer than the student of the one positive and the first of two negatives."""
    mine = RoiOutputs(torch.zeros(3, 2), torch.zeros(3, 4))
    asked: list[Rois] = []

    def answer(_: Any, rois: Rois) -> RoiOutputs:
        asked.append(rois)
        return RoiOutputs(torch.tensor([[LN3, 0.0], [0.0, LN3], [0.0, 0.0]]), torch.zeros(3, 4))

    teacher = outputs([0 * feat for feat in FEATS], adapter={"roi_outputs": answer})
    method: Any = DecoupledFeatures(None, **options)
    losses = method(batch_of(), outputs(FEATS, rois=ROIS, own_roi_outputs=mine), teacher, None)
    # the same proposals for both: the reference compares rows of different ones
    assert [rois is ROIS for rois in asked] == [True]
    return {name: loss.item() for name, loss in losses.items()}


def test_proposals_of_both_kinds_are_averaged_apart() -> None:
    found = head_losses(parts="head")
    assert found == {
        "head_foreground": pytest.approx(2 * KL),
        "head_background": pytest.approx(2 * KL / 2),
    }


def test_factors_of_the_head_apply_to_their_kind() -> None:
    found = head_losses(parts="head", head_foreground=1.0, head_background=10.0)
    assert list(found.values()) == pytest.approx([KL, 5 * KL])


def test_both_parts_are_all_four_terms() -> None:
    assert list(head_losses(parts="both")) == [
        "foreground",
        "background",
        "head_foreground",
        "head_background",
    ]


def test_the_head_alone_trains_no_connectors(build: Callable[..., Any], term: Callable[..., Any]) -> None:
    student, teacher = (build("faster_rcnn", seed) for seed in (0, 99))
    assert Distiller(student, {"it": term("defeat", parts="head")}, teacher).trained_parts["it"] == 0


def test_connectors_begin_near_zero(build: Callable[..., Any], term: Callable[..., Any]) -> None:
    distiller = Distiller(build("retinanet"), {"it": term("defeat")}, build("retinanet", 99))
    (conv, *_) = distiller.terms["it"].connectors
    assert conv.kernel_size == (3, 3)
    assert conv.weight.std().item() == pytest.approx(1e-4, rel=0.1)
