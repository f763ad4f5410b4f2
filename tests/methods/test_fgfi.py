"""Fine-grained Feature Imitation against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch, DetectorOutputs, Priors
from kdlab.methods.fgfi import FineGrainedFeatureImitation, imitation_region, region_imitation_loss
from kdlab.training.distiller import Distiller


def objects(boxes: list[list[float]], image: list[int], images: int = 1) -> Batch:
    shapes = torch.tensor([[16, 16]] * images)
    return Batch(
        torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long),
        torch.tensor(image, dtype=torch.long), shapes, shapes, (16, 16),
    )  # fmt: skip


# --- the region ---


def test_places_within_a_share_of_the_objects_own_best_are_in_the_region() -> None:
    batch = objects([[0, 0, 1, 1]] * 2, [0, 0])
    # half of 0.4 is 0.2, which is not more than itself; half of 0.9 is 0.45
    overlap = torch.tensor([[0.4, 0.2, 0.21, 0.0], [0.0, 0.0, 0.44, 0.9]])
    assert imitation_region(overlap, batch, 0.5).tolist() == [[1, 0, 1, 1]]
    assert imitation_region(overlap, batch, 0.25).tolist() == [[1, 1, 1, 1]]


def test_an_object_that_no_anchor_overlaps_has_no_region() -> None:
    assert imitation_region(torch.zeros(1, 3), objects([[0, 0, 0, 0]], [0]), 0.5).sum() == 0


def test_regions_stay_in_their_image() -> None:
    batch = objects([[0, 0, 1, 1]], [1], images=3)
    assert imitation_region(torch.tensor([[0.5, 0.0]]), batch, 0.5).tolist() == [[0, 0], [1, 0], [0, 0]]


# --- the loss ---


def test_loss_is_the_sum_over_twice_the_cells_of_all_levels() -> None:
    # (1^2 + 2^2) and 3^2 under one cell of each level: 14 over twice two cells
    fine = torch.tensor([[[[1.0, 9.0]], [[2.0, 9.0]]]])
    coarse = torch.tensor([[[[3.0]], [[0.0]]]])
    masks = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0]]])]
    loss = region_imitation_loss([fine, coarse], [torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 1)], masks)
    assert loss.item() == pytest.approx(14 / 4)


def test_empty_masks_cost_zero_in_the_graph() -> None:
    feat = torch.ones(1, 2, 1, 2).requires_grad_()
    loss = region_imitation_loss([feat], [torch.zeros(1, 2, 1, 2)], [torch.zeros(1, 1, 2)])
    loss.backward()
    assert loss.item() == 0
    assert feat.grad is not None


def test_no_gradient_reaches_the_teacher() -> None:
    feats = [torch.full((1, 1, 1, 1), value).requires_grad_() for value in (1.0, 2.0)]
    region_imitation_loss(feats[:1], feats[1:], [torch.ones(1, 1, 1)]).backward()
    assert feats[0].grad is not None
    assert feats[1].grad is None


# --- the method: levels of stride 8 (1 x 2 cells) and 16 (one), two anchors a cell ---

ANCHORS = torch.tensor(
    [[0, 0, 8, 8], [0, 0, 8, 4], [8, 0, 16, 8], [8, 0, 16, 4], [0, 0, 16, 16], [0, 0, 16, 8]],
    dtype=torch.float,
)


def priors(sizes: Any, device: Any) -> Priors:
    level = torch.tensor([0, 0, 0, 0, 1, 1])
    return Priors(ANCHORS, torch.tensor([8.0, 16.0])[level], level, (0, 4, 6), ((1, 2), (1, 1)))


def outputs(feats: list[Tensor]) -> DetectorOutputs:
    adapter: Any = SimpleNamespace(priors=priors, facts=SimpleNamespace(strides=(8, 16), anchors=2))
    maps = [torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 1)]
    return DetectorOutputs(adapter, feats, feats, tuple(range(len(feats))), cls_maps=maps, box_maps=[])


def loss_of(box: list[float], feats: list[Tensor] | None = None, **options: Any) -> float:
    feats = feats or [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0]]]])]
    method: Any = FineGrainedFeatureImitation(None, **options)
    teacher = outputs([torch.zeros_like(feat) for feat in feats])
    return method(objects([box], [0]), outputs(feats), teacher, None).item()


def test_a_place_counts_by_the_best_of_its_anchors_and_all_levels_compete() -> None:
    # IoU 1 with the second anchor of the first cell; at most 1/4 elsewhere: 1^2 / 2
    assert loss_of([0, 0, 8, 4]) == 0.5


def test_a_lower_threshold_lets_more_places_in() -> None:
    # 32 / 128 with the smaller anchor of the coarse level: (1 + 9) / (2 * 2)
    assert loss_of([0, 0, 8, 4], threshold=0.2) == pytest.approx(2.5)


def test_per_level_seeks_the_best_on_the_objects_own_level() -> None:
    # smaller than 14 cells of stride 16: on the first level, where both cells overlap it by half
    wide = [0, 0, 16, 8]
    assert loss_of(wide) == 9 / 2
    assert loss_of(wide, per_level=True) == pytest.approx((1 + 4) / 4)


def test_an_object_without_area_costs_nothing() -> None:
    assert loss_of([4, 4, 4, 4]) == 0


def test_a_resized_cell_is_in_the_region_if_any_is_that_it_came_from() -> None:
    # the teacher's maps have one cell where the student's head has two
    assert loss_of([0, 0, 8, 4], [torch.tensor([[[[2.0]]]]), torch.tensor([[[[3.0]]]])]) == 4 / 2


def test_the_teachers_head_is_left_alone(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    teacher = build("fcos", 99)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher's head was run")

    monkeypatch.setattr(teacher.bbox_head, "forward", refuse)
    distiller = Distiller(build("retinanet"), {"fgfi": term("fgfi")}, teacher).train()
    distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    assert distiller.raw_terms["fgfi"] > 0
