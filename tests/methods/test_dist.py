"""DIST against correlations worked by hand and scipy's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from kdlab.methods.dist import StrongerTeacher, correlation_losses


def loss(student: Any, teacher: Any) -> float:
    return correlation_losses(torch.tensor(student), torch.tensor(teacher)).mean().item()


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ([[1.0, 2.0, 3.0]], 0.0),
        ([[5.0, 7.0, 9.0]], 0.0),  # shift and scale leave it as it is
        ([[3.0, 2.0, 1.0]], 2.0),
        ([[1.0, 3.0, 1.0]], 1.0),  # centred -2/3, 4/3, -2/3 on -1, 0, 1
        ([[2.0, 2.0, 2.0]], 1.0),  # without spread
    ],
)
def test_rows_cost_by_how_they_rise_with_the_teacher(student: Any, expected: float) -> None:
    assert loss(student, [[1.0, 2.0, 3.0]]) == pytest.approx(expected, abs=1e-6)


def test_it_is_scipys_correlation_averaged_over_rows() -> None:
    mine, theirs = np.random.default_rng(0).normal(size=(2, 5, 7))
    expected = 1 - np.mean([pearsonr(*rows).statistic for rows in zip(mine, theirs, strict=True)])
    assert loss(mine, theirs) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (4, 1), (0, 1), (4, 0)])
def test_nothing_to_correlate_costs_nothing_and_stays_in_the_graph(shape: tuple[int, int]) -> None:
    student = torch.ones(shape, requires_grad=True)
    found = correlation_losses(student, torch.zeros(shape)).sum()
    found.backward()
    assert found.item() == 0
    assert student.grad is not None


def test_no_gradient_reaches_the_teacher_and_rows_without_spread_have_none() -> None:
    student = torch.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], requires_grad=True)
    correlation_losses(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad[0].tolist() == [0, 0, 0]
    assert student.grad[1].isfinite().all()
    assert student.grad[1].abs().sum() > 0


# --- the method ---


def parts(student: Any, teacher: Any, **options: Any) -> dict[str, float]:
    """Of one image whose priors are all positives, with these rows of logits."""
    places = torch.zeros(len(student), dtype=torch.long), torch.arange(len(student)), None
    assignment: Any = SimpleNamespace(positives=lambda _: places)
    models: list[Any] = [
        SimpleNamespace(gather_logits=lambda _, prior, rows=rows: torch.tensor(rows)[prior])
        for rows in (student, teacher)
    ]
    nothing: Any = None
    method = StrongerTeacher(nothing, **options)
    return {name: value.item() for name, value in method(nothing, *models, assignment).items()}


# sigmoid(0) is 1/2, and sigmoid(-z) is 1 - sigmoid(z)
ROWS = [[-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]


def test_classes_of_a_positive_and_positives_of_a_class_are_parts_of_their_own() -> None:
    # the class in the middle has no spread, which counts 1 of three
    assert parts(ROWS, ROWS) == pytest.approx({"inter": 0, "intra": 1 / 3}, abs=1e-5)
    # the student's rows swapped: each still rises with the teacher's, and each class the other way round
    swapped = parts(ROWS[::-1], ROWS)
    assert swapped["inter"] == pytest.approx(0, abs=1e-6)
    assert swapped["intra"] == pytest.approx((2 + 1 + 2) / 3, abs=1e-5)


def test_factors_and_temperature_are_options() -> None:
    found = parts(ROWS[::-1], ROWS, inter=3.0, intra=0.5)
    assert found["intra"] == pytest.approx(0.5 * 5 / 3, abs=1e-5)
    warm = [[2 * value for value in row] for row in ROWS]
    assert parts(warm[::-1], warm, temperature=2.0)["intra"] == pytest.approx(4 * 5 / 3, abs=1e-4)


def test_a_single_class_has_positives_to_compare_and_no_classes() -> None:
    found = parts([[1.0], [0.0], [-1.0]], [[-1.0], [0.0], [1.0]])
    assert found == pytest.approx({"inter": 0, "intra": 2}, abs=1e-5)


def test_a_single_positive_has_classes_alone() -> None:
    found = parts([[1.0, 0.0, -1.0]], [[-1.0, 0.0, 1.0]])
    assert found == pytest.approx({"inter": 2, "intra": 0}, abs=1e-5)
