"""Feature Richness Score against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab import catalog
from kdlab.detectors.outputs import DetectorOutputs
from kdlab.methods.frs import FeatureRichnessScore, frs_class_loss, frs_feature_loss, rich_mean, richness

LN3 = math.log(3)
# of probabilities 3/4 and 1/2
ENTROPY = [math.log(4) - 0.75 * LN3, math.log(2)]


def maps(*rows: list[float]) -> Tensor:
    """(1, C, 1, W) from the values of each channel."""
    return torch.tensor(rows).view(1, len(rows), 1, -1)


# two cells, two classes: the best of the first is 3/4, of the second 1/4
TEACHER = maps([LN3, -LN3], [0.0, -2.0])
SCORE = torch.tensor([[[0.75, 0.25]]])


# --- the formula ---


def test_richness_is_the_best_probability_over_classes_and_anchors() -> None:
    assert torch.allclose(richness(TEACHER), SCORE)


def test_mean_weighs_cells_by_their_richness() -> None:
    # (0.75 * 8 + 0.25 * 4) / (0.75 + 0.25)
    assert rich_mean(torch.tensor([[[8.0, 4.0]]]), SCORE).item() == 7


def test_mean_of_a_level_of_few_poor_cells_has_no_floor() -> None:
    assert rich_mean(torch.tensor([[[8.0, 4.0]]]), SCORE / 100).item() == pytest.approx(7)


def test_cells_without_any_richness_cost_zero_in_the_graph() -> None:
    values = torch.ones(1, 1, 2, requires_grad=True)
    loss = rich_mean(values, torch.zeros(1, 1, 2))
    loss.backward()
    assert loss.item() == 0
    assert values.grad is not None


def test_feature_part_sums_over_channels() -> None:
    # cells (1 + 4) and (9 + 0): 0.75 * 5 + 0.25 * 9
    student = maps([1.0, 3.0], [2.0, 0.0])
    assert frs_feature_loss(student, torch.zeros_like(student), SCORE).item() == 6


def test_class_part_sums_over_classes() -> None:
    # at logit 0 each class of each cell costs ln 2, whatever the target
    student = torch.zeros(1, 2, 1, 2)
    assert frs_class_loss(student, TEACHER, SCORE).item() == pytest.approx(2 * math.log(2))


def test_equal_classes_cost_the_weighted_entropy_without_gradient() -> None:
    # one cell of probabilities 3/4 and 1/2
    student = maps([LN3], [0.0]).requires_grad_()
    loss = frs_class_loss(student, student, torch.tensor([[[0.5]]]))
    loss.backward()
    assert loss.item() == pytest.approx(sum(ENTROPY))
    assert torch.allclose(student.grad, torch.zeros(()), atol=1e-7)


def test_no_gradient_reaches_the_teacher() -> None:
    leaves = [torch.rand(1, 2, 3, 3).requires_grad_() for _ in range(4)]
    feat_student, feat_teacher, cls_student, cls_teacher = leaves
    score = richness(cls_teacher)
    loss = frs_feature_loss(feat_student, feat_teacher, score) + frs_class_loss(
        cls_student, cls_teacher, score
    )
    loss.backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, True, False]


# --- the method ---


def outputs(feats: list[Tensor], cls_maps: list[Tensor], levels: tuple[int, ...]) -> DetectorOutputs:
    adapter: Any = SimpleNamespace(facts=SimpleNamespace(strides=(8, 16), anchors=1))
    return DetectorOutputs(adapter, neck_maps=feats, feats=feats, levels=levels, cls_maps=cls_maps)


def losses_of(levels: tuple[int, ...] = (0,), **options: Any) -> dict[str, float]:
    feat = maps([1.0, 3.0], [2.0, 0.0])
    student = outputs([feat] * len(levels), [torch.zeros(1, 2, 1, 2)] * 2, levels)
    teacher = outputs([torch.zeros_like(feat)] * len(levels), [TEACHER] * 2, levels)
    losses = FeatureRichnessScore(None, **options)(None, student, teacher, None)
    return {name: loss.item() for name, loss in losses.items()}


def test_parts_carry_their_factors() -> None:
    losses = losses_of()
    assert losses["feature"] == pytest.approx(0.005 * 6)
    assert losses["cls"] == pytest.approx(0.02 * 2 * math.log(2))
    assert losses_of(feature=0.5, cls=1.0) == pytest.approx({"feature": 3, "cls": 2 * math.log(2)})


def test_levels_are_summed() -> None:
    once, twice = losses_of(), losses_of((0, 1))
    assert twice == pytest.approx({name: 2 * loss for name, loss in once.items()})


def test_class_maps_are_those_of_the_matched_levels() -> None:
    feat = maps([1.0])
    cls = [maps([50.0]), maps([LN3])]
    student, teacher = (outputs([feat], cls, (1,)) for _ in range(2))
    losses = FeatureRichnessScore(None, cls=1.0)(None, student, teacher, None)
    assert losses["cls"].item() == pytest.approx(ENTROPY[0])


@pytest.mark.parametrize(
    ("detector", "expected"),
    [("retinanet", (0.005, 0.02)), ("gfl", (0.1, 0.05)), ("fcos", (0.01, 0.05)), ("atss", (0.01, 0.05))],
)
def test_factors_are_those_of_the_family(detector: str, expected: tuple[float, float]) -> None:
    options = catalog.methods()["frs"].serving(detector).options
    assert (options["feature"].default, options["cls"].default) == expected


def test_a_convolution_is_trained_also_where_channels_agree(
    distil: Callable[..., Any], term: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"frs": term("frs")})
    # three levels of 16 x 16 channels, kernel 3, and a bias
    assert distiller.trained_parts == {"frs": 3 * (16 * 16 * 9 + 16)}
