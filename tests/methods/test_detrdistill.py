"""DETRDistill and KD-DETR against independent formulas, query by query."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch
from kdlab.detectors.queries import Queries, Starts
from kdlab.methods._queries import matched, pair_costs, query_losses, taken
from kdlab.methods.detrdistill import attended, matching_loss, usefulness
from kdlab.methods.kd_detr import agreement_loss, random_starts


def queries(seed: int, layers: int = 2, images: int = 2, number: int = 4, classes: int = 3) -> Queries:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(layers, images, number, *shape, generator=generator, dtype=torch.float64)

    boxes = torch.cat([0.3 + 0.4 * drawn(2), 0.1 + 0.4 * drawn(2)], dim=3)
    return Queries(6 * drawn(classes) - 4, boxes, 2 * drawn(8) - 1)


def batch(boxes: list[list[float]], image: list[int]) -> Batch:
    """Two images of 80 x 100 pixels and 50 x 40."""
    shapes = torch.tensor([[80, 100], [50, 40]])
    return Batch(
        gt_boxes=torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        gt_labels=torch.zeros(len(image), dtype=torch.long),
        gt_image=torch.tensor(image, dtype=torch.long),
        image_shapes=shapes,
        pad_shapes=shapes,
        input_shape=(80, 100),
    )


def corners(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap_and_hull(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Intersection, union and smallest rectangle around two boxes (x1, y1, x2, y2)."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    return width * height, sum(areas) - width * height, hull


def giou(one: list[float], other: list[float]) -> float:
    inside, union, hull = overlap_and_hull(corners(one), corners(other))
    return inside / union - (hull - union) / hull


def cross_entropy(logits: list[float], target: list[float]) -> float:
    total = 0.0
    for z, t in zip(logits, target, strict=True):
        p, q = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-t))
        total -= q * math.log(p) + (1 - q) * math.log(1 - p)
    return total


def at(one: Queries, *place: int) -> tuple[list[float], list[float]]:
    return one.logits[place].tolist(), one.boxes[place].tolist()


def reference_cost(student: Queries, teacher: Queries, layer: int, image: int, i: int, j: int) -> float:
    (z, box), (t, target) = at(student, layer, image, i), at(teacher, layer, image, j)
    apart = sum(abs(a - b) for a, b in zip(box, target, strict=True))
    return cross_entropy(z, t) + 5 * apart - 2 * giou(box, target)


def test_costs_are_those_of_every_pair() -> None:
    student, teacher = queries(0), queries(1, number=5)
    costs = pair_costs(student, teacher)
    for layer, image, i, j in itertools.product(range(2), range(2), range(4), range(5)):
        expected = reference_cost(student, teacher, layer, image, i, j)
        assert costs[layer, image, i, j].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_the_pairs_are_the_cheapest_of_all(number: int) -> None:
    student, teacher = queries(0), queries(1, number=number)
    costs = pair_costs(student, teacher)
    mine, theirs = matched(costs)
    assert mine.shape == theirs.shape == (2, 2, min(4, number))
    few, many = sorted((4, number))
    for layer, image in itertools.product(range(2), range(2)):
        table = costs[layer, image] if number >= 4 else costs[layer, image].T
        best = min(
            sum(table[i, j].item() for i, j in enumerate(order))
            for order in itertools.permutations(range(many), few)
        )
        found = costs[layer, image][mine[layer, image], theirs[layer, image]].sum()
        assert found.item() == pytest.approx(best, rel=1e-9)


def test_costs_that_are_no_numbers_still_give_pairs() -> None:
    mine, theirs = matched(torch.full((1, 1, 3, 3), torch.nan))
    assert sorted(mine.flatten().tolist()) == sorted(theirs.flatten().tolist()) == [0, 1, 2]


def test_matched_queries_cost_their_distance_over_their_number() -> None:
    student, teacher = queries(0), queries(1, number=5)
    mine, theirs = matched(pair_costs(student, teacher))
    total = 0.0
    for layer, image, pair in itertools.product(range(2), range(2), range(4)):
        i, j = mine[layer, image, pair].item(), theirs[layer, image, pair].item()
        # a cost has no constant, a loss is 0 where boxes are equal
        total += reference_cost(student, teacher, layer, image, int(i), int(j)) + 2
    assert matching_loss(student, teacher).item() == pytest.approx(total / 8, rel=1e-9)


def test_the_order_of_queries_does_not_matter_to_what_they_cost() -> None:
    student, teacher = queries(0), queries(1)
    order = torch.tensor([2, 0, 3, 1]).expand(2, 2, 4)
    assert matching_loss(taken(student, order), teacher).item() == pytest.approx(
        matching_loss(student, teacher).item()
    )


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = queries(0), queries(1)
    for one in (student, teacher):
        one.logits.requires_grad_()
        one.boxes.requires_grad_()
    (matching_loss(student, teacher) + agreement_loss(student, teacher)).backward()
    assert teacher.logits.grad is None
    assert teacher.boxes.grad is None
    assert student.logits.grad.abs().sum() > 0
    assert student.boxes.grad.abs().sum() > 0


def test_a_query_is_worth_its_best_overlap_with_an_object_of_its_image() -> None:
    teacher = queries(1)
    objects = [[20.0, 16.0, 60.0, 48.0], [40.0, 8.0, 90.0, 72.0], [8.0, 10.0, 28.0, 40.0]]
    images, sizes = [0, 0, 1], [(100, 80), (40, 50)]
    worth = usefulness(teacher, batch(objects, images))
    for layer, image, i in itertools.product(range(2), range(2), range(4)):
        width, height = sizes[image]
        box = corners(at(teacher, layer, image, i)[1])
        pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        best = 0.0
        for one, where in zip(objects, images, strict=True):
            inside, union, _ = overlap_and_hull(pixels, one)
            best = max(best, inside / union if where == image else 0.0)
        assert worth[layer, image, i].item() == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("boxes", "image"), [([], []), ([[20.0, 16.0, 60.0, 48.0]], [0])])
def test_queries_of_an_image_without_objects_are_worth_their_probability(
    boxes: list[list[float]], image: list[int]
) -> None:
    worth = usefulness(queries(1), batch(boxes, image))
    assert torch.equal(worth[:, 1], torch.ones_like(worth[:, 1]))
    assert torch.isfinite(worth).all()


def test_a_map_is_attended_where_it_resembles_the_best_queries() -> None:
    teacher = queries(1)
    generator = torch.Generator().manual_seed(3)
    worth = torch.rand(2, 2, 4, generator=generator, dtype=torch.float64)
    feat = torch.randn(2, 8, 3, 5, generator=generator, dtype=torch.float64)
    (mask,) = attended(teacher, worth, [feat])
    for layer, image in itertools.product(range(2), range(2)):
        expected = torch.zeros(3, 5, dtype=torch.float64)
        for y, x in itertools.product(range(3), range(5)):
            for i, k in itertools.product(range(4), range(3)):
                # fewer than 100 pairs of query and class, so all of them count
                p = teacher.logits[layer, image, i, k].sigmoid()
                a, b = teacher.states[layer, image, i], feat[image, :, y, x]
                expected[y, x] += p * worth[layer, image, i] * (a @ b) / (a.norm() * b.norm())
        expected = expected.clamp(min=0.01)
        torch.testing.assert_close(mask[layer, image], expected / expected.max())


def test_only_the_hundred_best_pairs_are_looked_at() -> None:
    teacher = queries(1, layers=1, images=1, number=60, classes=2)
    feat = torch.randn(1, 8, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    worth = torch.ones(1, 1, 60, dtype=torch.float64)
    (whole,) = attended(teacher, worth, [feat])
    least = teacher.logits.flatten().sort(descending=True).values[100]
    logits = teacher.logits.where(teacher.logits > least, -100)
    (best,) = attended(Queries(logits, teacher.boxes, teacher.states), worth, [feat])
    torch.testing.assert_close(best, whole)


def test_agreement_is_weighted_by_what_the_teacher_is_sure_of() -> None:
    student, teacher = queries(0), queries(1)
    total = 0.0
    for layer in range(2):
        parts, weights = [], []
        for image, i in itertools.product(range(2), range(4)):
            (z, box), (t, target) = at(student, layer, image, i), at(teacher, layer, image, i)
            apart = sum(abs(a - b) for a, b in zip(box, target, strict=True))
            divergence = cross_entropy(z, t) - cross_entropy(t, t)
            weights.append(max(1 / (1 + math.exp(-one)) for one in t))
            parts.append(weights[-1] * (divergence + 5 * apart + 2 * (1 - giou(box, target))))
        total += sum(parts) / sum(weights)
    assert agreement_loss(student, teacher).item() == pytest.approx(total, rel=1e-9)


def test_equal_decoders_agree() -> None:
    assert agreement_loss(queries(1), queries(1)).item() == pytest.approx(0, abs=1e-9)


def test_a_teacher_that_is_sure_costs_a_number() -> None:
    student = queries(0)
    certain = Queries(torch.full_like(student.logits, 200), student.boxes, student.states)
    assert torch.isfinite(agreement_loss(student, certain))
    assert torch.isfinite(query_losses(student, certain)).all()


def test_random_queries_resemble_the_teachers_and_come_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    content = 3 + 2 * torch.randn(2, 50, 8, generator=generator)
    like = Starts(content, boxes=torch.rand(2, 50, 4))

    def drawn(seed: int) -> Starts:
        return random_starts(like, 2000, torch.Generator().manual_seed(seed))

    found, again, other = drawn(1), drawn(1), drawn(2)
    assert found.content.shape == (2, 2000, 8)
    assert found.content.mean().item() == pytest.approx(3, abs=0.2)
    assert found.content.std().item() == pytest.approx(2, abs=0.2)
    assert found.position is None
    assert found.boxes is not None
    assert 0 <= found.boxes.min() < found.boxes.max() <= 1
    assert torch.equal(found.content, again.content)
    assert not torch.equal(found.content, other.content)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"features": False, "prior": False}, {"logits"}),
        ({"logits": False, "prior": False}, {"features"}),
        ({"logits": False, "features": False}, {"prior"}),
    ],
)
def test_parts_are_switched_one_by_one(
    distil: Any, term: Any, raw_batch: Any, options: dict[str, bool], parts: set[str]
) -> None:
    distiller = distil("deformable_detr", {"detrdistill": term("detrdistill", **options)}).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    told = {name.rpartition(".")[2] for name in losses if "detrdistill" in name}
    assert told == parts


def test_features_go_through_a_convolution_where_channels_differ(
    distil: Any, term: Any, raw_batch: Any
) -> None:
    methods = {"detrdistill": term("detrdistill", prior=False)}
    distiller = distil("deformable_detr", methods, neck_channels=8).train()
    distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")[
        "loss_detrdistill.features"
    ].backward()
    connectors = distiller.terms["detrdistill"].connectors
    assert all(connector.weight.grad.abs().sum() > 0 for connector in connectors)


def test_without_features_no_convolution_is_trained(distil: Any, term: Any) -> None:
    methods = {"detrdistill": term("detrdistill", features=False, prior=False)}
    distiller = distil("deformable_detr", methods, neck_channels=8)
    assert distiller.trained_parts == {"detrdistill": 0}
