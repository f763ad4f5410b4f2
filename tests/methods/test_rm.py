"""Rank Mimicking against numbers worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.detectors.outputs import Assignment, Batch
from kdlab.errors import ShapeError
from kdlab.methods.rm import RankMimicking, joint_logit, rank_mimicking_loss, segment_log_softmax

LN3 = math.log(3)


def test_two_priors_of_one_object_by_hand() -> None:
    # teacher: softmax(ln 3, 0) = (3/4, 1/4); student: (1/2, 1/2)
    # 3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2) = 0.304099 - 0.173287
    loss = rank_mimicking_loss(torch.zeros(2), torch.tensor([LN3, 0.0]), torch.zeros(2, dtype=torch.long))
    assert loss.item() == pytest.approx(0.130812, abs=1e-6)


def test_loss_is_the_mean_over_objects() -> None:
    # object 7 as above, object 2 aligned: (0.130812 + 0) / 2
    loss = rank_mimicking_loss(
        torch.tensor([0.0, 0.5, 0.0, 0.1]), torch.tensor([LN3, 0.9, 0.0, 0.5]), torch.tensor([7, 2, 7, 2])
    )
    assert loss.item() == pytest.approx(0.065406, abs=1e-6)


def test_temperature_divides_both_score_lists() -> None:
    scores = torch.tensor([0.2, 0.0]), torch.tensor([2 * LN3, 0.0])
    group = torch.zeros(2, dtype=torch.long)
    expected = rank_mimicking_loss(scores[0] / 2, scores[1] / 2, group)
    assert torch.equal(rank_mimicking_loss(*scores, group, temperature=2.0), expected)


def test_a_reversed_ranking_costs_more_than_an_aligned_one() -> None:
    teacher = torch.tensor([0.9, 0.5, 0.1])
    group = torch.zeros(3, dtype=torch.long)
    aligned = rank_mimicking_loss(torch.tensor([0.8, 0.4, 0.2]), teacher, group)
    reverse = rank_mimicking_loss(torch.tensor([0.2, 0.4, 0.8]), teacher, group)
    assert reverse > 10 * aligned > 0


def test_shifting_all_scores_of_an_object_costs_nothing() -> None:
    teacher = torch.tensor([0.9, 0.5, 0.1])
    loss = rank_mimicking_loss(teacher - 5, teacher, torch.zeros(3, dtype=torch.long))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_an_object_with_a_single_prior_costs_nothing() -> None:
    assert rank_mimicking_loss(torch.tensor([0.1]), torch.tensor([0.9]), torch.tensor([4])).item() == 0


def test_without_objects_the_loss_is_zero_and_in_the_graph() -> None:
    scores = torch.zeros(0, requires_grad=True)
    loss = rank_mimicking_loss(scores, torch.zeros(0), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (torch.tensor([0.1, 0.7], requires_grad=True) for _ in range(2))
    rank_mimicking_loss(student * 2, teacher, torch.zeros(2, dtype=torch.long)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_scores_of_different_priors_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"student \(3,\), teacher \(2,\).*\n.*equal priors"):
        rank_mimicking_loss(torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.long))


positives = st.lists(
    st.tuples(st.integers(0, 4), st.floats(-20, 20, width=32), st.floats(-20, 20, width=32)), min_size=1
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(positives, st.randoms(use_true_random=False))
def test_interleaving_the_objects_changes_nothing(rows: list[tuple[int, float, float]], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    losses = []
    for order in (rows, shuffled):
        group, student, teacher = (torch.tensor(column) for column in zip(*order, strict=True))
        losses.append(rank_mimicking_loss(student.double(), teacher.double(), group))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(positives)
def test_segment_softmax_equals_a_softmax_of_each_object(rows: list[tuple[int, float, float]]) -> None:
    group, scores, _ = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = segment_log_softmax(scores.double(), group, 5)
    for one in group.unique():
        expected = scores[group == one].double().log_softmax(0)
        torch.testing.assert_close(found[group == one], expected, rtol=1e-9, atol=1e-9)


def test_segment_softmax_survives_scores_that_overflow_exp() -> None:
    found = segment_log_softmax(torch.tensor([1000.0, 0.0]), torch.zeros(2, dtype=torch.long), 1)
    assert found.tolist() == [0, -1000]


# --- the method: two images, one object each, of class 1 and class 0, two priors each ---

BATCH = Batch(
    gt_boxes=torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]]),
    gt_labels=torch.tensor([1, 0]),
    gt_image=torch.tensor([0, 1]),
    image_shapes=torch.tensor([[16, 16], [16, 16]]),
    pad_shapes=torch.tensor([[16, 16], [16, 16]]),
    input_shape=(16, 16),
)
ASSIGNMENT = Assignment(torch.tensor([[0, 0, -1], [-2, 0, 0]]), torch.ones(2, 3), torch.tensor(4.0))
# class logits and boxes of the four positives: image 0 priors 0 and 1, image 1 priors 1 and 2
LOGITS = [[9.0, LN3], [9.0, 0.0], [LN3, 9.0], [LN3, 9.0]]
FLAT = [[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]]
HALF, WHOLE = [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 10.0]


def outputs(logits: list[list[float]], boxes: list[list[float]]) -> Any:
    def gather(values: list[list[float]]) -> Any:
        def gather_at(image: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
            assert (image.tolist(), prior.tolist()) == ([0, 0, 1, 1], [0, 1, 1, 2])
            return torch.tensor(values, requires_grad=True)

        return gather_at

    quality = torch.tensor([LN3, 0.0, 0.0, 0.0])
    return SimpleNamespace(
        gather_logits=gather(logits), gather_boxes=gather(boxes), gather_quality=lambda *_: quality
    )


def loss(**options: Any) -> float:
    student, teacher = outputs(FLAT, [WHOLE] * 4), outputs(LOGITS, [HALF, WHOLE, WHOLE, WHOLE])
    return RankMimicking(None, **options)(BATCH, student, teacher, ASSIGNMENT).item()


def kl_from_even(first: float, second: float) -> float:
    """KL of softmax(first, second) from (1/2, 1/2)."""
    p = 1 / (1 + math.exp(second - first))
    return p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))


def test_priors_are_ranked_by_the_class_of_their_object() -> None:
    # image 0: teacher (ln 3, 0) at class 1; image 1: teacher (ln 3, ln 3) at class 0; the other class is 9
    assert loss(score="logit") == pytest.approx(0.130812 / 2, abs=1e-6)


def test_probabilities_are_ranked_by_default() -> None:
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2
    assert loss() == pytest.approx(kl_from_even(0.75, 0.5) / 2, abs=1e-6)


def test_localisation_ranks_by_overlap_with_the_object() -> None:
    # IoU 1/2 and 1 in image 0, 1 and 1 in image 1; the student's are all 1
    assert loss(rank="loc") == pytest.approx(kl_from_even(0.5, 1.0) / 2, abs=1e-6)


def test_both_rankings_add_up() -> None:
    assert loss(rank="both") == pytest.approx(loss(rank="cls") + loss(rank="loc"), abs=1e-7)


def test_quality_multiplies_the_probability_of_each_model() -> None:
    # image 0: teacher 3/4 * 3/4 and 1/2 * 1/2, student 1/2 * 3/4 and 1/2 * 1/2
    # image 1: teacher 3/4 * 1/2 twice, student 1/2 * 1/2 twice: even
    teacher, student = torch.tensor([0.5625, 0.25]).softmax(0), torch.tensor([0.375, 0.25]).softmax(0)
    expected = (teacher * (teacher / student).log()).sum().item() / 2
    assert loss(quality=True) == pytest.approx(expected, abs=1e-6)


def test_quality_on_logits_ranks_by_the_product_of_the_probabilities() -> None:
    logits, quality = torch.tensor([-4.0, -4.0, 2.0]), torch.tensor([-2.2, 2.2, 0.0])
    product = logits.sigmoid() * quality.sigmoid()
    assert torch.allclose(joint_logit(logits, quality).sigmoid(), product, atol=1e-6)
    assert joint_logit(logits, quality).argsort().tolist() == [0, 1, 2]
