"""Decoupled Knowledge Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdlab.detectors.outputs import RoiOutputs, Rois
from kdlab.methods.dkd import DecoupledKnowledgeDistillation, decoupled_losses

LN2, LN3 = math.log(2), math.log(3)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# three classes: the teacher's probabilities 1/2, 1/3, 1/6, the student's 1/3, 1/3, 1/3
TEACHER = [[LN3, LN2, 0.0]]
STUDENT = [[0.0, 0.0, 0.0]]
TARGET_0 = kl([1 / 2, 1 / 2], [1 / 3, 2 / 3])
OTHERS_0 = kl([2 / 3, 1 / 3], [1 / 2, 1 / 2])


def losses(student: Any, teacher: Any, target: list[int], temperature: float = 1.0) -> tuple[float, float]:
    found = decoupled_losses(torch.tensor(student), torch.tensor(teacher), torch.tensor(target), temperature)
    return found[0].sum().item(), found[1].sum().item()


def test_target_class_and_the_rest_by_hand() -> None:
    assert losses(STUDENT, TEACHER, [0]) == pytest.approx((TARGET_0, OTHERS_0), abs=1e-6)


def test_another_target_splits_elsewhere() -> None:
    expected = kl([1 / 6, 5 / 6], [1 / 3, 2 / 3]), kl([3 / 5, 2 / 5], [1 / 2, 1 / 2])
    assert losses(STUDENT, TEACHER, [2]) == pytest.approx(expected, abs=1e-6)


def test_the_parts_make_up_the_whole_divergence() -> None:
    # KL = TCKD + (1 - p_target of the teacher) NCKD
    whole = kl([1 / 2, 1 / 3, 1 / 6], [1 / 3] * 3)
    target, others = losses(STUDENT, TEACHER, [0])
    assert target + others / 2 == pytest.approx(whole, abs=1e-6)


def test_temperature_softens_and_scales_by_its_square() -> None:
    doubled = [[2 * LN3, 2 * LN2, 0.0]]
    assert losses(STUDENT, doubled, [0], 2.0) == pytest.approx((4 * TARGET_0, 4 * OTHERS_0), abs=1e-5)


def test_rows_that_are_sure_stay_finite() -> None:
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    target, others = decoupled_losses(student, torch.tensor([[-200.0, 200.0, 0.0]]), torch.tensor([0]))
    (target + others).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_single_other_class_costs_nothing_among_the_others() -> None:
    target, others = losses([[0.0, 0.0]], [[LN3, 0.0]], [0])
    assert target == pytest.approx(kl([3 / 4, 1 / 4], [1 / 2, 1 / 2]), abs=1e-6)
    assert others == 0


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (torch.tensor([[value, 0.0, 1.0]], requires_grad=True) for value in (1.0, 2.0))
    target, others = decoupled_losses(student, teacher, torch.tensor([0]))
    (target + others).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


# --- the method ---


def parts(student: Any, teacher: Any, labels: list[int], **options: Any) -> dict[str, float]:
    rois = Rois(torch.zeros(len(labels), 5), torch.tensor(labels, dtype=torch.long), torch.tensor([]))
    models: list[Any] = [
        SimpleNamespace(
            rois=rois,
            roi_outputs=lambda asked, rows=rows: RoiOutputs(torch.tensor(rows).view(-1, 3), torch.zeros(0)),
        )
        for rows in (student, teacher)
    ]
    nothing: Any = None
    method = DecoupledKnowledgeDistillation(nothing, **options)
    return {name: value.item() for name, value in method(nothing, *models, nothing).items()}


def test_published_factors_and_the_mean_over_proposals() -> None:
    found = parts(STUDENT * 2, [*TEACHER, *STUDENT], [0, 0])
    assert found == pytest.approx({"target": TARGET_0 / 2, "non_target": 0.25 * OTHERS_0 / 2}, abs=1e-6)


def test_four_times_the_proposals_cost_the_same() -> None:
    once, often = parts(STUDENT, TEACHER, [0]), parts(STUDENT * 4, TEACHER * 4, [0] * 4)
    assert often == pytest.approx(once, abs=1e-6)


def test_factors_are_options() -> None:
    found = parts(STUDENT, TEACHER, [0], target=2.0, non_target=3.0)
    assert found == pytest.approx({"target": 2 * TARGET_0, "non_target": 3 * OTHERS_0}, abs=1e-6)


def test_background_proposals_alone_are_compared_too() -> None:
    # K = 2 is background
    expected = kl([1 / 6, 5 / 6], [1 / 3, 2 / 3])
    assert parts(STUDENT, TEACHER, [2])["target"] == pytest.approx(expected, abs=1e-6)


def test_without_proposals_every_part_is_zero() -> None:
    assert parts([], [], [], kendall=1.0) == {"target": 0, "non_target": 0, "kendall": 0}


def test_standardised_rows_forget_their_scale() -> None:
    rows = [[1.0, 3.0, 8.0]]
    found = parts(rows, [[10.0, 30.0, 80.0]], [0], standardise=True)
    assert found == pytest.approx({"target": 0, "non_target": 0}, abs=1e-6)


def test_kendall_is_a_part_of_its_own() -> None:
    # the student's rows are undecided in every pair
    assert parts(STUDENT, TEACHER, [0], kendall=0.5)["kendall"] == pytest.approx(0.5)
