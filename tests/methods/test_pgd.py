"""Prediction-Guided Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch, DetectorOutputs, Priors
from kdlab.methods.pgd import (
    PredictionGuidedDistillation,
    box_tower_losses,
    class_tower_losses,
    foreground_weights,
    gaussian_weights,
    middles,
    prediction_quality,
    predictions_of_objects,
)

LN3 = math.log(3)


def batch_of(boxes: list[list[float]], image: list[int] | None = None, images: int = 1) -> Batch:
    shapes = torch.tensor([[8, 32]] * images)
    return Batch(
        torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long),
        torch.tensor(image or [0] * len(boxes), dtype=torch.long), shapes, shapes, (8, 32),
    )  # fmt: skip


# --- which cells count, and how much ---


def test_quality_is_the_weighted_geometric_mean() -> None:
    quality = prediction_quality(torch.tensor([0.25]), torch.tensor([0.01]), 0.5)
    assert quality.item() == pytest.approx(0.05)
    assert prediction_quality(torch.tensor([0.5]), torch.tensor([0.0]), 0.8).item() == 0


def test_gaussian_is_fitted_to_the_places() -> None:
    # a cross: variance (4^2 + 4^2) / 4 = 8 px2 each way, so its ends are at distance^2 16 / 8
    places = torch.tensor([[[-4.0, 0], [4, 0], [0, -4], [0, 4]]]) + 100
    assert gaussian_weights(places)[0].tolist() == pytest.approx([math.exp(-1)] * 4, rel=1e-3)


def test_gaussian_follows_the_direction_in_which_places_lie() -> None:
    # on a line, at -3, -1, 1 and 3 along it: variance 5
    line = torch.tensor([[[-3.0, -3], [-1, -1], [1, 1], [3, 3]]]) * 100
    expected = [math.exp(-9 / 5 / 2), math.exp(-1 / 5 / 2)]
    assert gaussian_weights(line)[0, :2].tolist() == pytest.approx(expected, rel=1e-3)


def test_one_place_alone_counts_fully() -> None:
    assert gaussian_weights(torch.tensor([[[7.0, 7.0]]])).tolist() == [[1]]
    assert gaussian_weights(torch.full((1, 3, 2), 7.0)).tolist() == [[1, 1, 1]]


ONE = batch_of([[0, 0, 1, 1]])
PLACES = torch.tensor([[4.0, 4], [12, 4], [20, 4], [28, 4]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_only_the_best_cells_of_an_object_count() -> None:
    # two best, 8 px apart: each 4 px from their mean at variance 16
    weights = foreground_weights(torch.tensor([[0.1, 0.9, 0.2, 0.8]]), PLACES, ALL, ONE, 1)
    assert weights.tolist() == [[0, 1, 0, 0]]
    weights = foreground_weights(torch.tensor([[0.1, 0.9, 0.8, 0.2]]), PLACES, ALL, ONE, 2)
    assert weights[0].tolist() == pytest.approx([0, math.exp(-0.5), math.exp(-0.5), 0], rel=1e-3)


def test_cells_outside_the_box_shape_the_gaussian_but_count_nothing() -> None:
    inside = torch.tensor([[True, True, False, True]])
    weights = foreground_weights(torch.tensor([[0, 0.9, 0.8, 0]]), PLACES, inside, ONE, 2)
    assert weights[0].tolist() == pytest.approx([0, math.exp(-0.5), 0, 0], rel=1e-3)


def test_more_cells_than_there_are_is_all() -> None:
    weights = foreground_weights(torch.rand(1, 4), PLACES, ALL, ONE, 30)
    assert (weights > 0).all()


def test_objects_weigh_on_their_own_image_alone() -> None:
    batch = batch_of([[0, 0, 1, 1]], [1], images=2)
    assert foreground_weights(torch.rand(1, 4), PLACES, ALL, batch, 1).sum(1).tolist() == [0, 1]
    nobody = foreground_weights(torch.rand(0, 4), PLACES, ALL[:0], batch_of([]), 30)
    assert nobody.tolist() == [[0] * 4]


# --- the losses: one image of 1 x 2 cells, two channels ---

# at the first cell channel attention is 3/2 and 1/2, at the second 1 and 1; to places 3/2 and 1/2
TEACHER = torch.tensor([[[[LN3, 0.0]], [[0.0, 0.0]]]])
STUDENT = TEACHER + torch.tensor([[[[1.0, 0.0]], [[2.0, 3.0]]]])
FIRST, SECOND = torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[0.0, 1.0]]])


def attention_to_places(first: float, second: float) -> list[float]:
    """Twice the softmax over two places of mean magnitudes."""
    shares = [math.exp(first), math.exp(second)]
    return [2 * share / sum(shares) for share in shares]


def test_class_towers_cost_by_both_attentions_of_the_teacher() -> None:
    found = class_tower_losses(STUDENT, TEACHER, FIRST, SECOND, 1.0)
    places = attention_to_places(LN3 / 2, 0)
    assert found["foreground"].item() == pytest.approx(0.5 * places[0] * (1.5 * 1 + 0.5 * 4))
    assert found["background"].item() == pytest.approx(places[1] * 9)


def test_class_masks_are_shared_by_their_cells() -> None:
    whole = class_tower_losses(STUDENT, TEACHER, FIRST + 0.5 * SECOND, 0 * SECOND, 1.0)
    places = attention_to_places(LN3 / 2, 0)
    assert whole["foreground"].item() == pytest.approx(0.5 * (places[0] * 3.5 + places[1] * 9) / 2)
    assert whole["background"].item() == 0


def test_class_attentions_cost_their_absolute_differences() -> None:
    found = class_tower_losses(0 * TEACHER, TEACHER, FIRST, SECOND, 1.0)["attention"]
    places = attention_to_places(LN3 / 2, 0)
    # to places summed, to channels (1/2 + 1/2 and 0) averaged over the two places
    assert found.item() == pytest.approx((places[0] - 1) + (1 - places[1]) + (0.5 + 0.5) / 2)


def test_box_towers_cost_the_mean_over_the_foreground() -> None:
    found = box_tower_losses(STUDENT, TEACHER, FIRST, 1.0)
    assert found["regression"].item() == pytest.approx(0.5 * (1.5 * 1 + 0.5 * 4) / 2)
    both = box_tower_losses(STUDENT, TEACHER, FIRST + SECOND, 1.0)
    assert both["regression"].item() == pytest.approx((0.5 * 3.5 / 2 + 1 * 9 / 2) / 2)


def test_box_attentions_cost_at_the_foreground_alone() -> None:
    assert box_tower_losses(0 * TEACHER, TEACHER, FIRST, 1.0)["attention"].item() == pytest.approx(1)
    assert box_tower_losses(0 * TEACHER, TEACHER, SECOND, 1.0)["attention"].item() == pytest.approx(0)


def test_no_foreground_costs_zero_in_the_graph() -> None:
    student = STUDENT.clone().requires_grad_()
    losses = [
        box_tower_losses(student, TEACHER, 0 * FIRST, 1.0)["regression"],
        class_tower_losses(student, TEACHER, 0 * FIRST, SECOND, 1.0)["foreground"],
    ]
    torch.stack(losses).sum().backward()
    assert [loss.item() for loss in losses] == [0, 0]
    assert student.grad is not None


def test_no_gradient_reaches_the_teacher() -> None:
    maps = [level.clone().requires_grad_() for level in (STUDENT, TEACHER)]
    losses = [*class_tower_losses(*maps, FIRST, SECOND, 1.0).values()]
    losses += box_tower_losses(*maps, FIRST, 1.0).values()
    torch.stack(losses).sum().backward()
    assert maps[0].grad is not None
    assert maps[1].grad is None


# --- the method: a level of 1 x 4 cells of stride 8 and one of 1 x 1 of stride 32, one class ---

BOXES = torch.tensor([[0, 0, 8, 8], [8, 0, 16, 8], [8, 0, 24, 8], [24, 0, 32, 8], [0, 0, 32, 8]]).float()


def priors(sizes: Any, device: Any) -> Priors:
    points = torch.tensor([[4.0, 4], [12, 4], [20, 4], [28, 4], [16, 16]])
    level = torch.tensor([0, 0, 0, 0, 1])
    return Priors(points, torch.tensor([8.0, 32.0])[level], level, (0, 4, 5), ((1, 4), (1, 1)))


def outputs(towers: list[Tensor], images: int = 1) -> DetectorOutputs:
    """A model that predicts `BOXES`, each with probability 1/2."""
    adapter: Any = SimpleNamespace(
        priors=priors,
        facts=SimpleNamespace(strides=(8, 32), anchors=1),
        decode=lambda priors, strides, raw: raw,
    )
    boxes = [BOXES[:4].T.reshape(1, 4, 1, 4), BOXES[4:].T.reshape(1, 4, 1, 1)]
    return DetectorOutputs(
        adapter, [], [], (),
        cls_maps=[torch.zeros(images, 1, 1, width) for width in (4, 1)],
        box_maps=[level.repeat(images, 1, 1, 1) for level in boxes],
        towers={("cls", 0): towers, ("reg", 0): towers},
    )  # fmt: skip


def regions(batch: Batch, **options: Any) -> dict[str, list[Tensor]]:
    teacher = outputs([], images=len(batch.image_shapes))
    method: Any = PredictionGuidedDistillation
    return method(None, **options).regions(batch, teacher)


def test_the_best_predictions_of_an_object_are_found_over_all_levels() -> None:
    # IoU with (8, 0, 24, 8): 0, 1/2, 1, 0 and 1/2; the one level's best place is outside the box
    found = regions(batch_of([[8, 0, 24, 8]]), topk=1)
    assert [level.flatten().tolist() for level in found["cls"]] == [[0, 0, 1, 0], [0]]
    assert [level.flatten().tolist() for level in found["background"]] == [[1, 0, 0, 1], [1]]


def test_a_wide_object_covers_columns_and_not_rows() -> None:
    # the authors' FCOS asks whether x lies between the box's top and bottom
    found = regions(batch_of([[0, 0, 32, 8]]), topk=4)
    assert found["background"][0].sum() == 0
    assert (found["reg"][0] > 0).sum() >= 3


def test_predictions_are_of_each_objects_class_and_image() -> None:
    teacher = outputs([], images=2)
    assert teacher.cls_maps is not None
    teacher.cls_maps[0] = torch.tensor([0.0, LN3]).view(2, 1, 1, 1).repeat(1, 1, 1, 4)
    batch = batch_of([[0, 0, 8, 8], [0, 0, 32, 8]], [0, 1], images=2)
    probability, overlap = predictions_of_objects(batch, teacher)
    assert probability[:, 0].tolist() == pytest.approx([0.5, 0.75])
    assert overlap[0].tolist() == pytest.approx([1, 0, 0, 0, 0.25])
    assert overlap[1].tolist() == pytest.approx([0.25, 0.25, 0.5, 0.25, 1])


def test_a_cell_counts_as_the_best_of_its_anchors() -> None:
    teacher: Any = outputs([])
    teacher.adapter.facts.anchors = 2
    boxes = torch.tensor([[0, 0, 8, 8], [0, 0, 8, 8], [8, 0, 16, 8], [8, 0, 16, 8]]).float()
    flat = Priors(boxes, torch.full((4,), 8.0), torch.zeros(4), (0, 4), ((1, 2),))
    teacher.__dict__["priors"] = flat
    assert middles(teacher).tolist() == [[4, 4], [12, 4]]
    # the second anchor of the second cell alone fits
    teacher.__dict__["boxes"] = torch.tensor([[[0, 0, 1, 1]] * 3 + [[0, 0, 16, 8]]]).float()
    teacher.cls_maps[:] = [torch.zeros(1, 2, 1, 2)]
    method: Any = PredictionGuidedDistillation
    assert method(None, topk=1).regions(batch_of([[0, 0, 16, 8]]), teacher)["cls"][0].tolist() == [[[0, 1]]]


def losses_of(batch: Batch, towers: list[Tensor] | None = None, **options: Any) -> dict[str, float]:
    student = towers or [torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 1)]
    teacher = outputs([torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 1)])
    method: Any = PredictionGuidedDistillation(None, **options)
    return {name: loss.item() for name, loss in method(batch, outputs(student), teacher, None).items()}


def test_parts_are_summed_over_levels_with_their_factors() -> None:
    found = losses_of(batch_of([[8, 0, 24, 8]]), topk=1)
    # squared difference 1 + 1 at one cell of weight 1; at two of four cells, and 5/4 times at the next level
    assert found["foreground"] == pytest.approx(0.04 * 2)
    assert found["background"] == pytest.approx(0.02 * (2 + 1.25 * 2))
    assert found["regression"] == pytest.approx(0.064 * 1)
    assert found["attention"] == 0


@pytest.mark.parametrize("name", ["foreground", "background", "regression", "attention"])
def test_each_factor_multiplies_its_part(name: str) -> None:
    towers = [torch.rand(1, 2, 1, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 2, 1, 1)]
    batch = batch_of([[8, 0, 24, 8]])
    factors = dict.fromkeys(("foreground", "background", "regression", "attention"), 1.0)
    once = losses_of(batch, towers, **factors)
    assert once[name] > 0
    assert losses_of(batch, towers, **factors | {name: 3.0}) == pytest.approx(once | {name: 3 * once[name]})


def test_towers_are_compared_after_their_activation() -> None:
    negative = [-torch.ones(1, 2, 1, 4), -torch.ones(1, 2, 1, 1)]
    assert set(losses_of(batch_of([[8, 0, 24, 8]]), negative).values()) == {0}


def test_without_objects_the_background_and_attention_of_classes_remain() -> None:
    found = losses_of(batch_of([]))
    assert found["foreground"] == found["regression"] == 0
    assert found["background"] == pytest.approx(0.02 * (2 + 1.25 * 2))


def test_an_object_without_area_has_no_foreground() -> None:
    found = losses_of(batch_of([[4, 4, 4, 4]]))
    assert found["foreground"] == found["regression"] == 0
