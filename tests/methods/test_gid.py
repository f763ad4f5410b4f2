"""General Instance Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab.detectors.outputs import Batch, DetectorOutputs, Priors
from kdlab.methods.gid import (
    GeneralInstanceDistillation,
    Instances,
    best_scores,
    box_values,
    general_instances,
    gid_feature_loss,
    gid_relation_loss,
    gid_response_losses,
    pooled_level,
    regions,
)

LN3 = math.log(3)
DETECTORS = ["retinanet", "fcos", "atss", "gfl"]


# --- a head whose raw boxes are the boxes: one level of stride 8, one anchor a cell, one class ---


class Adapter:
    def __init__(self, anchors: int = 1) -> None:
        self.facts = SimpleNamespace(strides=(8,), anchors=anchors)
        self.matched: list[tuple[Tensor, list[int]]] = []

    def priors(self, sizes: Any, device: Any) -> Priors:
        count = sizes[0][0] * sizes[0][1] * self.facts.anchors
        level = torch.zeros(count, dtype=torch.long)
        return Priors(torch.zeros(count, 4), torch.full((count,), 8.0), level, (0, count), tuple(sizes))

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        return raw

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        return boxes

    def match(self, boxes: Tensor, pad_shape: tuple[int, int], priors: Priors) -> Tensor:
        """As many of the first priors as there are boxes; of the next it is unsure."""
        self.matched.append((boxes, pad_shape))
        served = torch.full((len(priors.level),), -1)
        served[: len(boxes)] = torch.arange(len(boxes))
        served[len(boxes) : len(boxes) + 1] = -2
        return served


def outputs(logits: list[list[float]], boxes: list[list[list[float]]], feat: Tensor | None = None) -> Any:
    """Of a batch of images, each with a logit and a box at every cell of a row."""
    cls_map = torch.tensor(logits)[:, None, None, :]
    box_map = torch.tensor(boxes).permute(0, 2, 1)[:, :, None, :]
    feats = [torch.zeros(len(logits), 1, 4, 4) if feat is None else feat]
    return DetectorOutputs(Adapter(), feats, feats, (0,), cls_maps=[cls_map], box_maps=[box_map])


def batch_of(images: int = 1) -> Batch:
    """Images of 100 px a side, padded to 104, without objects."""
    nothing, shapes = torch.zeros(0).long(), torch.full((images, 2), 100)
    return Batch(torch.zeros(0, 4), nothing, nothing, shapes, shapes + 4, (104, 104))


LEFT, RIGHT, SMALL = [0.0, 0.0, 40.0, 40.0], [50.0, 0.0, 90.0, 40.0], [60.0, 60.0, 70.0, 90.0]


def chosen(student: Any, teacher: Any, most: int = 10, min_side_px: float = 10.0) -> Instances:
    shapes = torch.tensor([[100, 120]] * len(student.feats[0]))
    return general_instances(student, teacher, shapes, most, min_side_px)


# --- which instances ---


def test_scores_are_the_best_of_each_prior_in_flat_order() -> None:
    # channels: anchor 0 of two classes, anchor 1 of two classes; two cells in a row
    cls_map = torch.tensor([[LN3, 0], [0, -LN3], [-LN3, -9], [-9, LN3]]).view(1, 4, 1, 2)
    one = DetectorOutputs(Adapter(anchors=2), [], [], (0,), cls_maps=[cls_map])
    assert torch.allclose(best_scores(one), torch.tensor([[0.75, 0.25, 0.5, 0.75]]))


def test_boxes_are_those_of_the_surer_model_where_the_two_differ_most_first() -> None:
    student = outputs([[0.0, LN3]], [[LEFT, RIGHT]])
    teacher = outputs([[LN3, 0.5]], [[[0.0, 0.0, 30.0, 30.0], [50.0, 0.0, 80.0, 30.0]]])
    found = chosen(student, teacher)
    # the teacher is surer of the first by 1/4, the student of the second by less
    assert found.boxes.tolist() == [[0, 0, 30, 30], RIGHT]
    assert found.place.tolist() == [0, 1]


def test_only_the_best_of_boxes_that_overlap_remains() -> None:
    box = [2.0, 0.0, 42.0, 40.0]
    equal = [[LEFT, box, RIGHT]]
    found = chosen(outputs([[0.0, 0.0, 0.0]], equal), outputs([[1.0, 2.0, 0.5]], equal))
    assert found.boxes.tolist() == [box, RIGHT]


def test_boxes_are_clipped_to_the_image_and_small_ones_left_out() -> None:
    equal = [[[80.0, 50.0, 140.0, 140.0], SMALL, [-40.0, 0.0, 0.0, 40.0]]]
    scores = outputs([[0.0, 0.0, 0.0]], equal), outputs([[1.0, 2.0, 3.0]], equal)
    # the second is 10 px wide, the third lies outside
    assert chosen(*scores).boxes.tolist() == [[80, 50, 120, 100]]
    assert chosen(*scores, min_side_px=9.0).boxes.tolist() == [SMALL, [80, 50, 120, 100]]


def test_images_do_not_suppress_each_other_and_each_has_its_most() -> None:
    equal = [[LEFT, RIGHT]] * 2
    scores = outputs([[0.0, 0.0]] * 2, equal), outputs([[1.0, 2.0], [4.0, 3.0]], equal)
    found = chosen(*scores)
    assert found.image.tolist() == [0, 0, 1, 1]
    assert found.place.tolist() == [0, 1, 0, 1]
    assert found.boxes.tolist() == [RIGHT, LEFT, LEFT, RIGHT]
    assert chosen(*scores, most=1).boxes.tolist() == [RIGHT, LEFT]


# --- their features ---


@pytest.mark.parametrize(
    ("side_px", "strides", "level"),
    [(20, (8, 16, 32), 0), (223, (8, 16, 32), 0), (224, (8, 16, 32), 1), (447, (8, 16, 32), 1),
     (448, (8, 16, 32), 2), (2000, (8, 16, 32), 2), (300, (8, 32), 0), (300, (8,), 0)],
)  # fmt: skip
def test_a_box_of_224_px_is_pooled_from_stride_16(side_px: float, strides: Any, level: int) -> None:
    assert pooled_level(torch.tensor([[10.0, 10.0, 10 + side_px, 10 + side_px]]), strides).tolist() == [level]


def instances(boxes: list[list[float]], image: list[int]) -> Instances:
    return Instances(torch.tensor(image), torch.arange(len(image)), torch.tensor(boxes).view(-1, 4))


def test_regions_come_from_the_level_of_their_size_in_the_order_of_the_boxes() -> None:
    feats = [torch.full((1, 1, 64 // scale, 64 // scale), float(scale)) for scale in (1, 2)]
    large, small = [0.0, 0.0, 300.0, 300.0], [0.0, 0.0, 50.0, 50.0]
    pooled = regions(feats, (8, 16), instances([large, small, large], [0, 0, 0]))
    assert pooled.shape == (3, 1, 10, 10)
    assert pooled.mean((1, 2, 3)).tolist() == [2, 1, 2]


def test_a_cell_stands_for_its_middle() -> None:
    # the middle of x = 8 to 24 px lies between cells 1 and 2
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pooled = regions([ramp], (8,), instances([[8.0, 16.0, 24.0, 32.0]], [0]))
    assert pooled.mean().item() == pytest.approx(1.5)


def test_feature_part_is_the_mean_over_cells_and_instances_of_sums_over_channels() -> None:
    # two regions of two channels and two cells: ((1 + 4) + (0 + 1)) / 2 and 0
    student = torch.tensor([[[[1.0, 0.0]], [[2.0, 1.0]]], [[[5.0, 5.0]], [[5.0, 5.0]]]])
    teacher = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]], [[[5.0, 5.0]], [[5.0, 5.0]]]])
    assert gid_feature_loss(student, teacher).item() == 3 / 2


# --- their relations ---

# distances 3, 6, 9 of mean 6 and 1, 1, 2 of mean 4/3: relative 1/2, 1, 3/2 and 3/4, 3/4, 3/2
APART, EVEN = torch.tensor([[[0.0], [3.0], [9.0]]]), torch.tensor([[[0.0], [1.0], [2.0]]])
# two of three pairs differ by 1/4
EXPECTED = 2 * 0.5 * 0.25**2 / 3
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_relation_part_compares_distances_relative_to_their_mean() -> None:
    assert gid_relation_loss(APART, EVEN, ALL).item() == pytest.approx(EXPECTED)
    assert gid_relation_loss(50 * APART, EVEN + 7, ALL).item() == pytest.approx(EXPECTED)


def test_padding_has_no_part_in_relations() -> None:
    padded = [torch.cat([one, torch.zeros(1, 2, 1)], dim=1) for one in (APART, EVEN)]
    valid = torch.tensor([[True, True, True, False, False]])
    assert gid_relation_loss(*padded, valid).item() == pytest.approx(EXPECTED)


def test_relations_are_averaged_over_the_pairs_of_all_groups() -> None:
    # the second group of 4 is equal: 6 pairs more that cost nothing
    student = torch.cat([torch.cat([APART, torch.zeros(1, 1, 1)], dim=1), torch.rand(1, 4, 1)])
    teacher = torch.cat([torch.cat([EVEN, torch.zeros(1, 1, 1)], dim=1), student[1:]])
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert gid_relation_loss(student, teacher, valid).item() == pytest.approx(EXPECTED * 3 / 9)


def test_an_image_of_two_regions_has_no_part_in_the_mean_over_pairs() -> None:
    student, teacher = (torch.cat([one, one.flip(1)]) for one in (APART, EVEN))
    valid = torch.tensor([[True, True, True], [True, True, False]])
    assert gid_relation_loss(student, teacher, valid).item() == pytest.approx(EXPECTED)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_regions_have_no_relation(count: int) -> None:
    student = APART.clone().requires_grad_()
    loss = gid_relation_loss(student, EVEN, torch.arange(3)[None] < count)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


def test_regions_that_all_agree_keep_the_gradient_finite() -> None:
    student = torch.zeros(1, 3, 2).requires_grad_()
    gid_relation_loss(student, EVEN.repeat(1, 1, 2), ALL).backward()
    assert torch.isfinite(student.grad).all()


# --- their responses ---


def test_responses_are_summed_over_classes_and_edges_and_averaged_over_priors() -> None:
    # at logit 0 a class costs ln 2; edges differ by 1 + 2, and by 4
    boxes = torch.tensor([[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0]])
    logits = torch.tensor([[LN3, 0.0, 1.0], [0.0, 5.0, -1.0]])
    cls, box = gid_response_losses(torch.zeros(2, 3), logits, boxes, torch.zeros(2, 4))
    assert cls.item() == pytest.approx(3 * math.log(2))
    assert box.item() == 7 / 2


def test_equal_logits_cost_their_entropy_without_gradient() -> None:
    # probabilities 3/4 and 1/2
    student = torch.tensor([[LN3, 0.0]]).requires_grad_()
    cls, box = gid_response_losses(student, student, torch.zeros(1, 4), torch.zeros(1, 4))
    cls.backward()
    assert cls.item() == pytest.approx(math.log(4) - 0.75 * LN3 + math.log(2))
    assert torch.allclose(student.grad, torch.zeros(()), atol=1e-7)
    assert box.item() == 0


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = ([torch.rand(1, 3, 4).requires_grad_() for _ in range(2)] for _ in range(2))
    cls, box = gid_response_losses(student[0][0], teacher[0][0], student[0][0], teacher[0][0])
    feature = gid_feature_loss(student[1][None], teacher[1][None])
    (cls + box + feature + gid_relation_loss(student[1], teacher[1], ALL)).backward()
    assert all(leaf.grad is not None for leaf in student)
    assert all(leaf.grad is None for leaf in teacher)


def test_boxes_of_distributions_are_their_means() -> None:
    # left: 0 or 2 alike; top: 3 surely; right: 1 with 3/4, else 2; bottom: alike
    rows = [[0, -99, 0, -99], [-99, -99, -99, 0], [-99, LN3, 0, -99], [0, 0, 0, 0]]
    box_map = torch.tensor(rows, dtype=torch.float32).view(1, 16, 1, 1)
    one = DetectorOutputs(Adapter(), [], [], (0,), cls_maps=[torch.zeros(1, 1, 1, 1)], box_maps=[box_map])
    values = box_values(one, torch.tensor([0]), torch.tensor([0]))
    assert torch.allclose(values, torch.tensor([[1, 3, 1.25, 1.5]]))


# --- the method ---


def losses_of(student: Any, teacher: Any, images: int = 1, **options: Any) -> dict[str, float]:
    losses = GeneralInstanceDistillation(None, **options)(batch_of(images), student, teacher, None)
    return {name: loss.item() for name, loss in losses.items()}


def test_parts_carry_their_factors() -> None:
    student = outputs([[0.0, 0.0]], [[LEFT, RIGHT]], torch.full((1, 2, 16, 16), 3.0))
    teacher = outputs([[2.0, 0.0]], [[[4.0, 0.0, 40.0, 40.0], RIGHT]], torch.full((1, 2, 16, 16), 1.0))
    # two instances and so two priors: 4 px of one edge over two; two channels of 2^2
    expected = {"feature": 8 * 0.0005, "relation": 0.0, "cls": 0.1 * math.log(2), "box": 4 / 2}
    assert losses_of(student, teacher) == pytest.approx(expected)
    assert losses_of(student, teacher, feature=1.0, cls=1.0, box=1.0) == pytest.approx(
        {"feature": 8, "relation": 0, "cls": math.log(2), "box": 2}
    )


def test_each_image_asks_the_students_matcher_for_its_own_instances() -> None:
    equal = [[LEFT, RIGHT]] * 2
    student = outputs([[0.0, 0.0], [0.0, 0.0]], equal)
    losses_of(student, outputs([[1.0, 2.0], [4.0, 3.0]], equal), images=2)
    (first, pad_shape), (second, _) = student.adapter.matched
    assert (first.tolist(), second.tolist()) == ([RIGHT, LEFT], [LEFT, RIGHT])
    assert pad_shape == (104, 104)


def related(**options: Any) -> float:
    """Two images of two instances each, in features that only the teacher tells apart."""
    equal = [[LEFT, RIGHT]] * 2
    feats = [torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    student = outputs([[0.0, 0.0]] * 2, equal, feats[0])
    teacher = outputs([[1.0, 2.0]] * 2, equal, feats[1])
    return losses_of(student, teacher, images=2, **options)["relation"]


def test_relations_are_within_an_image_unless_parity_is_asked_for() -> None:
    assert related() == 0
    assert related(parity=True) > 0
    assert related(parity=True, relation=80.0) == pytest.approx(2 * related(parity=True))


def test_parity_changes_nothing_for_one_image(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    values = []
    for parity in (False, True):
        distiller = distil("retinanet", {"gid": term("gid", parity=parity)}).train()
        distiller(**distiller.data_preprocessor(raw_batch([0]), True), mode="loss")
        values.append(distiller.raw_terms["gid.relation"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] > 0


@pytest.mark.parametrize("detector", DETECTORS)
def test_equal_models_cost_only_the_entropy_of_their_classes(
    distil: Callable[..., Any], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any], detector: str,
) -> None:  # fmt: skip
    distiller = distil(detector, {"gid": term("gid")}, teacher=build(detector, 0)).eval()
    distiller.student.bbox_head.train()
    distiller.terms["gid"].connectors = nn.ModuleList(nn.Identity() for _ in range(3))
    distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    costs = {name: value.item() for name, value in distiller.raw_terms.items()}
    assert costs.pop("gid.cls") > 0
    # decoding clamps boxes of 62.5 times their anchor's side
    assert costs == pytest.approx({"gid.feature": 0, "gid.relation": 0, "gid.box": 0}, abs=1e-2)


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_instance_at_all_costs_zero_in_the_graph(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    distiller = distil(detector, {"gid": term("gid", min_side_px=1000.0)}).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    parts = [losses[f"loss_gid.{part}"] for part in ("feature", "relation", "cls", "box")]
    assert all(part.item() == 0 and part.requires_grad for part in parts)
    sum(parts).backward()
    assert all(torch.isfinite(p.grad).all() for p in distiller.parameters() if p.grad is not None)


def test_the_shared_connector_runs_and_is_trained_by_regions_and_relations(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("retinanet", {"gid": term("gid")}).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    (weight, _) = distiller.terms["gid"].connectors.parameters()
    assert weight.shape == (16, 16, 3, 3)
    for part in ("feature", "relation"):
        (gradient,) = torch.autograd.grad(losses[f"loss_gid.{part}"], weight, retain_graph=True)
        assert gradient.abs().sum() > 0
