"""What logit losses share, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdlab.methods._logits import disagreement_loss, kendall_loss, standardised

LN3 = math.log(3)


def tanh(x: float) -> float:
    return (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1)


# --- standardised rows ---


def test_a_row_is_centred_and_divided_by_its_deviation() -> None:
    # mean 2, deviations -1, 0, 1, so std with K - 1 is 1; then ten times as far apart around 5
    rows = standardised(torch.tensor([[1.0, 2.0, 3.0], [-5.0, 5.0, 15.0]]))
    torch.testing.assert_close(rows, torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]))


def test_shift_and_scale_of_a_row_are_forgotten() -> None:
    row = torch.tensor([[0.3, -2.0, 1.1, 4.0]])
    torch.testing.assert_close(standardised(7 * row - 3), standardised(row))


@pytest.mark.parametrize("row", [[[5.0]], [[2.0, 2.0, 2.0]]])
def test_a_single_class_or_equal_logits_become_zero_with_a_finite_gradient(row: list[list[float]]) -> None:
    logits = torch.tensor(row, requires_grad=True)
    rows = standardised(logits)
    rows.sum().backward()
    assert rows.tolist() == [[0.0] * len(row[0])]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_rows_stay_no_rows() -> None:
    assert standardised(torch.zeros(0, 4)).shape == (0, 4)


# --- order of the classes ---


def test_kendall_is_the_mean_over_pairs() -> None:
    # pairs (0, 1), (0, 2), (1, 2): student differences 1, 3, 2, teacher 1, -1, -2
    agreement = [tanh(1) * tanh(1), tanh(3) * tanh(-1), tanh(2) * tanh(-2)]
    loss = kendall_loss(torch.tensor([[3.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 2.0]]))
    assert loss.tolist() == pytest.approx([1 - sum(agreement) / 3])


def test_a_reversed_order_costs_two_and_a_sure_equal_one_nothing() -> None:
    order = torch.tensor([[30.0, 20.0, 10.0]])
    assert kendall_loss(order, order).item() == pytest.approx(0, abs=1e-6)
    assert kendall_loss(order.flip(1), order).item() == pytest.approx(2, abs=1e-6)


def test_equal_but_undecided_rows_cost_one() -> None:
    assert kendall_loss(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 1


def test_a_single_class_has_no_order() -> None:
    logits = torch.zeros(2, 1, requires_grad=True)
    loss = kendall_loss(logits, torch.ones(2, 1))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]


def test_kendall_gives_the_teacher_no_gradient() -> None:
    student, teacher = (torch.tensor([[value, 0.0]], requires_grad=True) for value in (1.0, 2.0))
    kendall_loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


# --- cross-entropy where the two disagree ---


def test_disagreement_weighs_the_cross_entropy_of_each_class() -> None:
    # teacher 1/2 and 1/2, student 3/4 and 1/2: |1/4| times -(ln 3/4 + ln 1/4) / 2, and nothing
    loss = disagreement_loss(torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2))
    assert loss.tolist() == pytest.approx([-(math.log(3 / 4) + math.log(1 / 4)) / 8])


def test_equal_logits_cost_nothing_whatever_they_are() -> None:
    logits = torch.tensor([[0.0, 3.0, -200.0, 200.0]], requires_grad=True)
    loss = disagreement_loss(logits, logits.detach().clone())
    loss.sum().backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_disagreement_gives_the_teacher_no_gradient() -> None:
    student, teacher = (torch.tensor([[value, 0.0]], requires_grad=True) for value in (1.0, 2.0))
    disagreement_loss(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
