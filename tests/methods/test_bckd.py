"""Bridging Cross-task Knowledge Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Assignment
from kdlab.methods.bckd import BridgingCrossTask, localisation_loss
from kdlab.training.distiller import Distiller

LN3 = math.log(3)
WHOLE, HALF, BESIDE = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [10.0, 0.0, 20.0, 10.0]


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_boxes_cost_their_missing_overlap() -> None:
    # IoU 1/2 within the hull; no overlap, and no room between the two in their hull: GIoU 0
    found = localisation_loss(boxes(HALF, BESIDE, WHOLE), boxes(WHOLE, WHOLE, WHOLE), torch.ones(3))
    assert found.tolist() == pytest.approx([0.5, 1.0, 0.0], abs=1e-5)


def test_boxes_far_apart_cost_more_than_neighbours() -> None:
    # hull 30 x 10, of which 100 lie between the two: GIoU -1/3
    far = localisation_loss(boxes([20.0, 0.0, 30.0, 10.0]), boxes(WHOLE), torch.ones(1))
    assert far.tolist() == pytest.approx([4 / 3], abs=1e-5)


def test_a_box_without_area_has_a_finite_gradient() -> None:
    student = boxes([5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]).requires_grad_()
    localisation_loss(student, boxes(WHOLE, [5.0, 5.0, 5.0, 5.0]), torch.ones(2)).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_teacher_or_weight() -> None:
    student, teacher = boxes(HALF).requires_grad_(), boxes(WHOLE).requires_grad_()
    weight = torch.ones(1, requires_grad=True)
    localisation_loss(student, teacher, weight).sum().backward()
    assert teacher.grad is None
    assert weight.grad is None
    assert student.grad is not None


# --- the method: one image, three priors, two classes ---

# the last prior lies outside the image: its label does not count
WEIGHTS = torch.tensor([[1.0, 1.0, 0.0]])
LOGITS = torch.tensor([[[LN3, 0.0], [0.0, 0.0], [9.0, 9.0]]])


def parts(positives: float = 1.0, **options: Any) -> dict[str, Tensor]:
    student: Any = SimpleNamespace(
        cls_logits=LOGITS.clone().requires_grad_(), boxes=boxes(HALF, HALF, HALF)[None].requires_grad_()
    )
    teacher: Any = SimpleNamespace(cls_logits=torch.zeros(1, 3, 2), boxes=boxes(WHOLE, WHOLE, WHOLE)[None])
    assignment = Assignment(torch.tensor([[0, -1, -2]]), WEIGHTS, torch.tensor(positives))
    nothing: Any = None
    found: dict[str, Tensor] = BridgingCrossTask(nothing, **options)(nothing, student, teacher, assignment)
    found["student"] = student
    return found


def test_both_parts_by_hand() -> None:
    # only the first prior's first class differs, 3/4 against 1/2: by 1/4; its box has IoU 1/2
    found = parts()
    assert found["cls"].item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 8, abs=1e-6)
    assert found["loc"].item() == pytest.approx(4 * 0.25 * 0.5, abs=1e-5)


def test_parts_are_divided_by_the_positives() -> None:
    once, less = parts(), parts(positives=4.0)
    assert [less[name].item() for name in ("cls", "loc")] == pytest.approx(
        [once[name].item() / 4 for name in ("cls", "loc")]
    )


def test_an_image_without_objects_counts_as_one_positive() -> None:
    counted = Assignment(torch.tensor([[0, -1, -2]]), WEIGHTS, torch.tensor(9.0), torch.tensor(10.0))
    assert (counted.num_positives.item(), counted.avg_factor.item()) == (9, 10)
    assert Assignment(counted.gt_index, WEIGHTS, torch.tensor(9.0)).avg_factor.item() == 9
    # 9 positives in one image and none in the other: a ninth less than over the batch's
    assert parts(positives=10.0)["cls"].item() == pytest.approx(parts(positives=9.0)["cls"].item() * 0.9)


def test_factors_are_options() -> None:
    once, other = parts(), parts(cls=2.0, loc=1.0)
    assert other["cls"].item() == pytest.approx(2 * once["cls"].item())
    assert other["loc"].item() == pytest.approx(once["loc"].item() / 4)


def test_boxes_pull_on_no_score() -> None:
    found = parts()
    student: Any = found["student"]
    found["loc"].backward()
    assert student.cls_logits.grad is None
    assert student.boxes.grad[0, 0].abs().sum() > 0
    assert student.boxes.grad[0, 1:].abs().sum() == 0


# --- the count of positives ---


@pytest.mark.parametrize("detector", ["retinanet", "atss", "gfl"])
@pytest.mark.parametrize("images", [[0, 1], [1], [1, 1], [0, 2]], ids=str)
def test_sums_over_all_priors_are_divided_as_the_detectors_own_loss(
    distil: Callable[..., Distiller],
    term: Callable[..., Any],
    raw_batch: Callable[..., Any],
    detector: str,
    images: list[int],
) -> None:
    distiller = distil(detector, {"bckd": term("bckd")}).train()
    head, seen = distiller.student.bbox_head, []
    targets = head.get_targets

    def told(*args: Any, **kwargs: Any) -> Any:
        found = targets(*args, **kwargs)
        seen.append(float(found[-1]))
        return found

    head.get_targets = told
    method = distiller.terms["bckd"].method
    method.register_forward_pre_hook(lambda _, args: seen.append(args[3].avg_factor.item()))
    distiller(**distiller.data_preprocessor(raw_batch(images), True), mode="loss")
    own, ours = seen
    assert ours == own
