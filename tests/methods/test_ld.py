"""Localization Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.models.task_modules import ATSSAssigner
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_iou

from kdlab import catalog
from kdlab.detectors.outputs import Assignment, Batch
from kdlab.errors import ShapeError
from kdlab.methods.ld import (
    LocalizationDistillation,
    atss_thresholds,
    balanced_mean,
    distribution_divergence,
    valuable_weights,
)

LN3 = math.log(3)
# KL of (3/4, 1/4) from (1/2, 1/2)
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def edges(*logits: float) -> Tensor:
    """(1, 4, 2) a distribution over two bins for each edge, the first bin's logit given."""
    return torch.tensor([[[logit, 0.0] for logit in logits]])


# --- the divergence ---


def test_divergence_is_the_mean_over_bins_and_edges() -> None:
    # one of four edges differs, two bins
    found = distribution_divergence(torch.zeros(1, 4, 2), edges(LN3, 0, 0, 0), 1.0)
    assert found.tolist() == pytest.approx([KL / 2 / 4], abs=1e-6)


def test_temperature_softens_and_scales_by_its_square() -> None:
    found = distribution_divergence(torch.zeros(1, 4, 2), edges(*[10 * LN3] * 4), 10.0)
    assert found.tolist() == pytest.approx([100 * KL / 2], rel=1e-5)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.zeros(1, 4, 2, requires_grad=True), edges(1, 2, 3, 4).requires_grad_()
    distribution_divergence(student, teacher, 10.0).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_heads_with_other_bins_are_told() -> None:
    with pytest.raises(ShapeError, match=r"(?s)student \(1, 4, 2\), teacher \(1, 4, 3\).*same reg_max"):
        distribution_divergence(torch.zeros(1, 4, 2), torch.zeros(1, 4, 3), 10.0)


# --- the region ---


def centres(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_threshold_is_mean_plus_deviation_of_the_nearest() -> None:
    # one level of three anchors, one of one; deviations of (0, 0.3, 0.6, 0.7) from 0.4 over 4 - 1
    overlaps = torch.tensor([[0.0, 0.3, 0.6, 0.7]])
    deviation = math.sqrt((0.16 + 0.01 + 0.04 + 0.09) / 3)
    found = atss_thresholds(overlaps, torch.ones(1, 4), (0, 3, 4))
    assert found.tolist() == pytest.approx([0.4 + deviation])


def test_only_the_nine_nearest_of_a_level_count() -> None:
    overlaps = torch.tensor([[0.5] * 9 + [0.0] * 11])
    assert atss_thresholds(overlaps, torch.arange(20.0)[None], (0, 20)).tolist() == pytest.approx([0.5])


def test_anchors_that_are_not_counted_set_no_threshold() -> None:
    overlaps = torch.tensor([[0.2, 0.4, 1.0]])
    distances = torch.tensor([[1.0, 1.0, math.inf]])
    expected = 0.3 + math.sqrt(2 * 0.01)
    assert atss_thresholds(overlaps, distances, (0, 3)).tolist() == pytest.approx([expected])
    assert atss_thresholds(overlaps, torch.full((1, 3), math.inf), (0, 3)).tolist() == [0]


def grid(size: int, stride: int, side: float) -> Tensor:
    places = (torch.arange(size) + 0.5) * stride
    y, x = torch.meshgrid(places, places, indexing="ij")
    middle = torch.stack([x, y], -1).view(-1, 2)
    return torch.cat([middle - side / 2, middle + side / 2], 1)


ANCHORS = torch.cat([grid(8, 8, 64.0), grid(4, 16, 128.0)])
FIRST = (0, 64, 80)
BOXES = torch.tensor([[4.0, 4.0, 44.0, 50.0], [20.0, 10.0, 60.0, 60.0], [-30.0, -30.0, 40.0, 40.0]])


def test_thresholds_are_those_of_mmdets_assigner() -> None:
    # the first box has no positive: no anchor reaches its threshold
    boxes = BOXES[1:]
    overlaps, distances = box_iou(boxes, ANCHORS), torch.cdist(centres(boxes), centres(ANCHORS))
    found = atss_thresholds(overlaps, distances, FIRST)
    for number, threshold in enumerate(found):
        truth = InstanceData(bboxes=boxes[number : number + 1], labels=torch.zeros(1, dtype=torch.long))
        assigned = ATSSAssigner(topk=9).assign(InstanceData(priors=ANCHORS), [64, 16], truth)
        positive = overlaps[number, assigned.gt_inds > 0]
        assert len(positive)
        assert positive.min() >= threshold
        near = distances[number, :64].topk(9, largest=False).indices
        inside = ((centres(ANCHORS)[near] - boxes[number, :2]) > 0.01).all(1)
        inside &= ((boxes[number, 2:] - centres(ANCHORS)[near]) > 0.01).all(1)
        left_out = near[inside & (assigned.gt_inds[near] == 0)]
        assert (overlaps[number, left_out] < threshold).all()


def region(boxes: Tensor, image: list[int], counted: Tensor | None = None, images: int = 1) -> Tensor:
    counted = torch.ones(images, len(ANCHORS), dtype=torch.bool) if counted is None else counted
    return valuable_weights(ANCHORS, FIRST, boxes, torch.tensor(image, dtype=torch.long), counted)


def test_region_is_where_diou_is_between_a_quarter_and_the_whole_threshold() -> None:
    # of this object each anchor's DIoU is IoU minus squared distance of centres over the hull's diagonal
    box = BOXES[0]
    overlaps = box_iou(box[None], ANCHORS)[0]
    distances = torch.cdist(centres(box[None]), centres(ANCHORS))
    threshold = atss_thresholds(overlaps[None], distances, FIRST).item()
    hull = torch.maximum(ANCHORS[:, 2:], box[2:]) - torch.minimum(ANCHORS[:, :2], box[:2])
    diou = overlaps - distances[0].square() / hull.square().sum(1)
    inside = (diou >= threshold / 4) & (diou < threshold)
    assert 0 < inside.sum() < len(ANCHORS)
    torch.testing.assert_close(region(box[None], [0])[0], overlaps * inside)


def test_the_nearest_object_decides_where_several_claim_an_anchor() -> None:
    together = region(BOXES, [0, 0, 0])
    alone = [region(box[None], [0]) for box in BOXES]
    torch.testing.assert_close(together, torch.stack(alone).amax(0))


def test_objects_weigh_in_their_own_image_only() -> None:
    found = region(BOXES[:2], [0, 2], images=3)
    torch.testing.assert_close(found[0], region(BOXES[:1], [0])[0])
    torch.testing.assert_close(found[2], region(BOXES[1:2], [0])[0])
    assert found[1].sum() == 0


def test_anchors_that_the_loss_does_not_count_are_left_out() -> None:
    counted = torch.ones(1, len(ANCHORS), dtype=torch.bool)
    counted[0, 40:] = False
    assert region(BOXES, [0, 0, 0], counted)[0, 40:].sum() == 0
    assert region(BOXES, [0, 0, 0], torch.zeros_like(counted)).sum() == 0


def test_a_box_without_area_or_outside_the_map_has_no_region() -> None:
    lost = torch.tensor([[20.0, 20.0, 20.0, 20.0], [900.0, 900.0, 950.0, 950.0]])
    assert region(lost, [0, 0]).tolist() == [[0.0] * len(ANCHORS)]


def test_without_objects_there_is_no_region() -> None:
    assert region(torch.zeros(0, 4), [], images=2).tolist() == [[0.0] * len(ANCHORS)] * 2


# --- the method: one image, two positives, the student's scores 3/4 and 1/2 ---

BATCH = Batch(
    gt_boxes=BOXES[:1],
    gt_labels=torch.tensor([0]),
    gt_image=torch.tensor([0]),
    image_shapes=torch.tensor([[64, 64]]),
    pad_shapes=torch.tensor([[64, 64]]),
    input_shape=(64, 64),
)


def parts(images: int = 1, **options: Any) -> dict[str, float]:
    gt_index = torch.full((images, len(ANCHORS)), -1)
    gt_index[:, :2] = 0
    assignment = Assignment(gt_index, torch.ones(images, len(ANCHORS)), torch.tensor(2.0 * images))
    batch = Batch(
        **vars(BATCH)
        | {
            "gt_boxes": BOXES[:1].repeat(images, 1),
            "gt_labels": torch.zeros(images, dtype=torch.long),
            "gt_image": torch.arange(images),
            "image_shapes": torch.full((images, 2), 64),
        }
    )
    # the first positive's edges all differ, the second's none, all others differ
    differs = torch.ones(len(ANCHORS))
    differs[1] = 0
    sure = torch.stack([differs * LN3, torch.zeros(len(ANCHORS))], 1)[:, None].expand(-1, 4, -1)
    scores = torch.tensor([[LN3, -9.0]] + [[0.0, -9.0]] * (len(ANCHORS) - 1))
    student: Any = SimpleNamespace(
        priors=SimpleNamespace(boxes=ANCHORS, first=FIRST),
        gather_logits=lambda image, prior: scores[prior],
        gather_distributions=lambda image, prior: torch.zeros(len(prior), 4, 2, requires_grad=True),
    )
    teacher: Any = SimpleNamespace(gather_distributions=lambda image, prior: sure[prior])
    nothing: Any = None
    method = LocalizationDistillation(nothing, temperature=1.0, **options)
    return {name: value.item() for name, value in method(batch, student, teacher, assignment).items()}


def test_main_part_is_a_mean_under_the_students_scores() -> None:
    # weights 3/4 and 1/2, of which the first costs KL / 2 bins
    assert parts(region="main") == pytest.approx({"main": 0.25 * 0.75 * (KL / 2) / 1.25}, abs=1e-6)


def test_parity_sums_and_divides_by_no_count() -> None:
    assert parts(region="main", parity=True) == pytest.approx({"main": 0.25 * 0.75 * KL / 2}, abs=1e-6)


def test_valuable_part_is_a_mean_under_overlaps() -> None:
    weights = valuable_weights(
        ANCHORS, FIRST, BOXES[:1], torch.tensor([0]), torch.ones(1, len(ANCHORS), dtype=torch.bool)
    )[0]
    assert weights.sum() > 1
    differing = weights.sum() - weights[1]
    expected = (0.25 * differing * (KL / 2) / weights.sum()).item()
    assert parts(region="valuable")["valuable"] == pytest.approx(expected, rel=1e-5)
    # by the code a quarter of the sum
    summed = (0.25 * differing * (KL / 2) / 4).item()
    assert parts(region="valuable", parity=True)["valuable"] == pytest.approx(summed, rel=1e-5)


def test_both_are_two_parts_with_their_factors() -> None:
    assert parts() == pytest.approx(parts(region="main") | parts(region="valuable"))
    doubled, once = parts(main=0.5, valuable=0.75), parts()
    assert doubled["main"] == pytest.approx(2 * once["main"])
    assert doubled["valuable"] == pytest.approx(3 * once["valuable"])


@pytest.mark.parametrize(("parity", "growth"), [(False, 1.0), (True, 3.0)])
def test_the_code_as_published_grows_with_the_images_of_one_gpu(parity: bool, growth: float) -> None:
    once, thrice = parts(parity=parity), parts(images=3, parity=parity)
    for name, loss in once.items():
        assert thrice[name] == pytest.approx(growth * loss, rel=1e-5)


def test_a_head_without_distributions_is_told_by_the_plan() -> None:
    info = catalog.methods()["ld"]
    assert "box_distributions" in info.needs
    assert "anchor_boxes" not in info.needs_for({"region": "main"})[0]
    assert "anchor_boxes" in info.needs_for({})[0]


# --- balanced, as D-FINE has it ---


def test_means_of_positives_and_of_the_rest_are_weighted_by_the_roots_of_their_counts() -> None:
    losses = torch.tensor([2.0, 4.0, 1.0, 1.0, 1.0, 5.0])
    positive = torch.tensor([False, False, True, True, True, True])
    # means 3 of two and 2 of four
    expected = (2**0.5 * 3 + 4**0.5 * 2) / (2**0.5 + 4**0.5)
    assert balanced_mean(losses, positive).item() == pytest.approx(expected)
    assert balanced_mean(losses, torch.ones(6, dtype=torch.bool)).item() == pytest.approx(14 / 6)
    assert balanced_mean(losses[:0], positive[:0]).item() == 0


def test_the_balanced_form_weighs_every_prior_that_counts(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"ld": term("ld", balanced=True, temperature=5.0)}).train()
    assert catalog.methods()["ld"].weight_for({"balanced": True, "parity": False}) == 1.5
    seen: list[Any] = []
    distiller.terms["ld"].method.register_forward_pre_hook(lambda _, args: seen.append(args))
    distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    batch, student, teacher, assignment = seen[0]
    total = {True: 0.0, False: 0.0}
    count = {True: 0, False: 0}
    for image, prior in (assignment.gt_index > -2).nonzero().tolist():
        at = torch.tensor([image]), torch.tensor([prior])
        index = int(assignment.gt_index[image, prior])
        weight = teacher.cls_logits[image, prior].sigmoid().max().item()
        if index >= 0:
            box = batch.gt_boxes[batch.gt_image == image][index : index + 1]
            weight = box_iou(student.gather_boxes(*at), box).item()
        logits = student.gather_distributions(*at), teacher.gather_distributions(*at)
        log_student, log_teacher = ((one[0] / 5).log_softmax(1) for one in logits)
        divergence = 25 * (log_teacher.exp() * (log_teacher - log_student)).sum(1).mean().item()
        total[index >= 0] += weight * divergence
        count[index >= 0] += 1
    roots = {key: value**0.5 for key, value in count.items()}
    expected = sum(roots[key] * total[key] / count[key] for key in count) / sum(roots.values())
    assert distiller.raw_terms["ld.balanced"].item() == pytest.approx(expected, rel=1e-4)
