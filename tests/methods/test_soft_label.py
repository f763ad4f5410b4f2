"""Soft labels against numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdlab.detectors.outputs import Assignment, Batch
from kdlab.methods._logits import standardised
from kdlab.methods.soft_label import SoftLabel, sigmoid_soft_label_loss, softmax_soft_label_loss

LN3 = math.log(3)
ONE = torch.tensor(1.0)


def test_sigmoid_form_by_hand() -> None:
    # target sigmoid(0) = 1/2 for both classes; student 3/4 and 1/2
    # -(1/2 ln 3/4 + 1/2 ln 1/4) + ln 2 = 0.836988 + 0.693147
    loss = sigmoid_soft_label_loss(torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2), ONE)
    assert loss.item() == pytest.approx(1.530135, abs=1e-6)


def test_softmax_form_by_hand() -> None:
    # at T = 2 the teacher is softmax(ln 3, 0) = (3/4, 1/4), the student (1/2, 1/2): KL 0.130812
    # mean over two classes, times T^2
    loss = softmax_soft_label_loss(torch.zeros(1, 2), torch.tensor([[2 * LN3, 0.0]]), ONE, 2.0)
    assert loss.item() == pytest.approx(0.130812 / 2 * 4, abs=1e-6)


@pytest.mark.parametrize("form", ["sigmoid", "softmax"])
class TestBothForms:
    @staticmethod
    def loss(
        form: str, student: torch.Tensor, teacher: torch.Tensor, avg_factor: float = 1.0
    ) -> torch.Tensor:
        factor = torch.tensor(avg_factor)
        if form == "sigmoid":
            return sigmoid_soft_label_loss(student, teacher, factor)
        return softmax_soft_label_loss(student, teacher, factor, 2.0)

    def test_positives_add_up_over_the_avg_factor(self, form: str) -> None:
        student, teacher = torch.tensor([[0.3, -1.0]]), torch.tensor([[2.0, 0.1]])
        three = self.loss(form, student.repeat(3, 1), teacher.repeat(3, 1), 2.0)
        assert three.item() == pytest.approx(1.5 * self.loss(form, student, teacher).item())

    def test_without_positives_it_is_zero_and_in_the_graph(self, form: str) -> None:
        student = torch.zeros(0, 3, requires_grad=True)
        loss = self.loss(form, student, torch.zeros(0, 3))
        loss.backward()
        assert loss.item() == 0
        assert student.grad is not None

    def test_it_is_smallest_at_the_teacher(self, form: str) -> None:
        student = torch.tensor([[0.5, -1.0]], requires_grad=True)
        self.loss(form, student, student.detach().clone()).backward()
        assert student.grad is not None
        assert student.grad.abs().max() < 1e-7

    def test_no_gradient_reaches_the_teacher(self, form: str) -> None:
        student, teacher = (torch.tensor([[value, 0.0]], requires_grad=True) for value in (1.0, 2.0))
        self.loss(form, student, teacher).backward()
        assert teacher.grad is None
        assert student.grad is not None
        assert student.grad.abs().sum() > 0


# --- the method's own options of the softmax form: one positive, two classes ---

BATCH = Batch(
    gt_boxes=torch.zeros(1, 4),
    gt_labels=torch.tensor([0]),
    gt_image=torch.tensor([0]),
    image_shapes=torch.tensor([[8, 8]]),
    pad_shapes=torch.tensor([[8, 8]]),
    input_shape=(8, 8),
)
ASSIGNMENT = Assignment(torch.tensor([[0]]), torch.ones(1, 1), ONE)


def method_loss(student: list[float], teacher: list[float], **options: Any) -> float:
    models: list[Any] = [
        SimpleNamespace(gather_logits=lambda image, prior, row=row: torch.tensor([row]))
        for row in (student, teacher)
    ]
    return SoftLabel(None, form="softmax", **options)(BATCH, *models, ASSIGNMENT).item()


def test_standardised_rows_that_differ_in_scale_only_cost_nothing() -> None:
    student, teacher = [1.0, 3.0, 8.0], [10.0, 30.0, 80.0]
    assert method_loss(student, teacher) > 0.1
    assert method_loss(student, teacher, standardise=True) == pytest.approx(0, abs=1e-7)


def test_rows_of_equal_logits_have_no_gradient() -> None:
    rows = torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 4.0]], requires_grad=True)
    (standardised(rows) * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert rows.grad is not None
    assert rows.grad[0].tolist() == [0, 0, 0]
    assert rows.grad[1].abs().sum() > 0


def test_standardised_rows_by_hand() -> None:
    # (4, 0) becomes (1, -1) / sqrt 2, and (0, 2) the reverse; at T = 1 the sigmoid of their difference sqrt 2
    p = 1 / (1 + math.exp(-math.sqrt(2)))
    divergence = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    loss = method_loss([0.0, 2.0], [4.0, 0.0], standardise=True, temperature=1.0)
    assert loss == pytest.approx(divergence / 2, abs=1e-6)


def test_kendall_adds_its_share_of_the_disagreement_on_the_order() -> None:
    # one pair: differences ln 3 and -ln 3, whose tanh is 4/5
    student, teacher = [LN3, 0.0], [0.0, LN3]
    plain = method_loss(student, teacher)
    assert method_loss(student, teacher, kendall=0.5) - plain == pytest.approx(0.5 * (1 + 16 / 25), abs=1e-6)


def test_kendall_sees_the_rows_as_they_are_compared() -> None:
    # standardised, any two distinct logits are (1, -1) / sqrt 2
    loss = method_loss([9.0, 0.0], [0.1, 0.0], standardise=True, kendall=1.0)
    assert loss == pytest.approx(1 - math.tanh(math.sqrt(2)) ** 2, abs=1e-5)
