"""Prediction-guided Feature Imitation against numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs, Priors
from kdlab.methods.pfi import (
    PredictionGuidedFeatureImitation,
    feature_difference,
    masked_feature_loss,
    pfi_loss,
    prediction_difference,
)

LN3 = math.log(3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- the formula ---


def test_prediction_difference_is_the_mean_square_over_classes() -> None:
    # (1/2 - 3/4)^2 and (1/2 - 1/4)^2, each 1/16
    student, teacher = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    assert prediction_difference(student.view(1, 2, 1, 1), teacher.view(1, 2, 1, 1)).item() == 0.0625


def test_feature_difference_is_the_mean_square_over_channels() -> None:
    # ((1 - 0)^2 + (3 - 0)^2) / 2
    assert feature_difference(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).item() == 5


def test_loss_is_the_mean_over_cells_of_the_product() -> None:
    # (0.0625 * 5 + 1 * 2) / 2 over an image of two cells
    assert pfi_loss(torch.tensor([[[0.0625, 1.0]]]), torch.tensor([[[5.0, 2.0]]])).item() == 1.15625


def test_loss_is_zero_where_at_every_cell_one_of_the_two_is_zero() -> None:
    prediction, feature = random(2, 3, 4), random(2, 3, 4, seed=1)
    mask = random(2, 3, 4, seed=2) > 0.5
    assert pfi_loss(prediction * mask, feature * ~mask).item() == 0


def test_doubling_the_feature_difference_doubles_the_loss() -> None:
    prediction, feature = random(2, 3, 4), random(2, 3, 4, seed=1)
    assert pfi_loss(prediction, 2 * feature) == 2 * pfi_loss(prediction, feature) > 0


def test_no_gradient_reaches_the_teacher() -> None:
    maps = [random(1, 2, 3, 3, seed=seed).requires_grad_() for seed in range(4)]
    scores_student, scores_teacher, feat_student, feat_teacher = maps
    prediction = prediction_difference(scores_student, scores_teacher)
    pfi_loss(prediction, feature_difference(feat_student, feat_teacher)).backward()
    assert scores_teacher.grad is None
    assert feat_teacher.grad is None
    assert scores_student.grad is not None
    assert feat_student.grad is not None


def test_masked_loss_is_the_mean_over_the_masked_cells() -> None:
    # (2 + 4) / 2
    feature = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert masked_feature_loss(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), feature).item() == 3


def test_an_empty_mask_costs_zero_in_the_graph() -> None:
    feature = random(1, 2, 2).requires_grad_()
    loss = masked_feature_loss(torch.zeros(1, 2, 2), feature)
    loss.backward()
    assert loss.item() == 0
    assert feature.grad is not None


# --- the method: one image of 16 x 16 px, a level of stride 8 with 2 x 2 cells, two anchors, one class ---

BATCH = Batch(
    # covers the centres (4, 4) and (4, 12), touches (12, 4) with its open right side, begins at x = 4
    gt_boxes=torch.tensor([[4.0, 0.0, 12.0, 16.0]]),
    gt_labels=torch.tensor([0]),
    gt_image=torch.tensor([0]),
    image_shapes=torch.tensor([[16, 16]]),
    pad_shapes=torch.tensor([[16, 16]]),
    input_shape=(16, 16),
)
# cells in rows: one positive of two anchors; all ignored; ignored and background; background
ASSIGNMENT = Assignment(torch.tensor([[-1, 0, -2, -2, -2, -1, -1, -1]]), torch.ones(1, 8), torch.tensor(1.0))


def priors(sizes: Any, device: Any) -> Priors:
    return Priors(
        torch.zeros(8, 4), torch.full((8,), 8.0), torch.zeros(8, dtype=torch.long), (0, 8), ((2, 2),)
    )


def outputs(feat: Tensor, cls_map: Tensor) -> DetectorOutputs:
    adapter: Any = SimpleNamespace(priors=priors, facts=SimpleNamespace(strides=(8,), anchors=2))
    return DetectorOutputs(
        adapter, neck_maps=[feat], feats=[feat], levels=(0,), cls_maps=[cls_map], box_maps=[]
    )


def loss_of(feat_student: Tensor, cls_student: Tensor, batch: Batch = BATCH, **options: Any) -> Tensor:
    teacher = outputs(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    method = PredictionGuidedFeatureImitation(None, **options)
    return method(batch, outputs(feat_student, cls_student), teacher, ASSIGNMENT)


# squares 1, 4, 9, 16 are the feature differences
FEAT = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
# of the teacher's logit 0 only the first cell's first anchor differs
SCORES = torch.tensor([LN3, 0, 0, 0, 0, 0, 0, 0]).view(1, 2, 2, 2)


def test_probabilities_are_compared_by_default() -> None:
    # P = (1/4)^2 / 2 anchors at the first cell: 1/32 * 1 over 4 cells
    assert loss_of(FEAT, SCORES).item() == pytest.approx(1 / 128)


def test_logits_are_compared_on_request() -> None:
    assert loss_of(FEAT, SCORES, y="logit").item() == pytest.approx(LN3**2 / 2 / 4)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("whole", (1 + 4 + 9 + 16) / 4),
        ("positives", 1.0),
        ("negatives", (9 + 16) / 2),
        ("gt_mask", (1 + 9) / 2),
    ],
)
def test_region_averages_over_its_cells(region: str, expected: float) -> None:
    assert loss_of(FEAT, SCORES, region=region).item() == expected


def test_objects_of_another_image_are_not_in_the_mask() -> None:
    two = Batch(BATCH.gt_boxes, BATCH.gt_labels, torch.tensor([1]), torch.tensor([[16, 16]] * 2),
                torch.tensor([[16, 16]] * 2), (16, 16))  # fmt: skip
    method = PredictionGuidedFeatureImitation(None, region="gt_mask")
    feat = torch.cat([10 * FEAT, FEAT])
    teacher = outputs(torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 2, 2))
    loss = method(two, outputs(feat, SCORES.repeat(2, 1, 1, 1)), teacher, ASSIGNMENT)
    assert loss.item() == (1 + 9) / 2


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_flows_through_the_weight_unless_detached(detach: bool) -> None:
    feat, scores = FEAT.clone().requires_grad_(), SCORES.clone().requires_grad_()
    loss_of(feat, scores, detach_weight=detach).backward()
    assert feat.grad is not None
    assert (scores.grad is None) == detach


def test_loss_is_the_mean_over_levels() -> None:
    teacher = outputs(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))
    student = outputs(FEAT, SCORES)
    twice = [one.through((0, 0), [one.feats[0], 3 * one.feats[0]]) for one in (student, teacher)]
    loss = PredictionGuidedFeatureImitation(None)(BATCH, *twice, ASSIGNMENT)
    assert loss.item() == pytest.approx((1 + 9) / 128 / 2)
