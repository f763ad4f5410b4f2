"""PP-YOLOE's logits against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, Facts
from kdlab.methods.base import Pair
from kdlab.methods.ppyoloe import PPYOLOELogits, distribution_cross_entropy
from kdlab.training.distiller import Distiller

LN3 = math.log(3)


def test_distributions_cost_their_cross_entropy_as_a_mean_over_edges() -> None:
    teacher = torch.tensor([[[LN3, 0.0]] * 4])
    student = torch.tensor([[[0.0, 0.0]] * 3 + [[LN3, 0.0]]])
    # the teacher's 3/4, 1/4 against even ones three times, and against themselves: their entropy
    entropy = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    found = distribution_cross_entropy(student, teacher)
    assert found.tolist() == pytest.approx([(3 * math.log(2) + entropy) / 4], abs=1e-6)


def test_no_gradient_reaches_the_teacher_s_distributions() -> None:
    student, teacher = torch.zeros(1, 4, 3, requires_grad=True), torch.ones(1, 4, 3, requires_grad=True)
    distribution_cross_entropy(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


# one image of one object; two positives, a prior of background and one that the loss ignores
BATCH = Batch(
    gt_boxes=torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
    gt_labels=torch.tensor([0]),
    gt_image=torch.tensor([0]),
    image_shapes=torch.tensor([[32, 32]]),
    pad_shapes=torch.tensor([[32, 32]]),
    input_shape=(32, 32),
)
ASSIGNMENT = Assignment(
    torch.tensor([[0, 0, -1, -2]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]]), torch.tensor(2.0)
)
WHOLE, HALF = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]


def outputs(logits: list[float], boxes: list[list[float]], distribution: list[float]) -> Any:
    """What a model with one class says; the same distribution for every edge."""
    return SimpleNamespace(
        cls_logits=torch.tensor(logits).view(1, -1, 1),
        gather_boxes=lambda image, prior: torch.tensor(boxes)[prior],
        gather_distributions=lambda image, prior: torch.tensor(distribution).expand(len(prior), 4, 2),
    )


def parts(bins: int, batch: Batch = BATCH, assignment: Assignment = ASSIGNMENT) -> dict[str, Tensor]:
    facts = Facts("gfl", (), 1, (8,), 16, "", bins=bins)
    models: Any = (
        outputs([0.0, LN3, 0.0, 9.0], [HALF, WHOLE, WHOLE, WHOLE], [0.0, 0.0]),
        outputs([LN3, LN3, LN3, -9.0], [WHOLE, WHOLE, WHOLE, WHOLE], [LN3, 0.0]),
    )
    return PPYOLOELogits(Pair(facts, facts, ()))(batch, *models, assignment)


def test_each_part_has_its_factor_weights_and_normaliser() -> None:
    found = {name: part.item() for name, part in parts(2).items()}
    # probabilities 1/2 against 3/4 at a positive and at background: (1/4)^2 times log 2; over two positives
    assert found["cls"] == pytest.approx(2 * math.log(2) / 16 / 2, abs=1e-6)
    # the first positive overlaps its object by half, the second whole; the boxes' GIoU are 1/2 and 1
    assert found["box"] == pytest.approx(2.5 * (0.5 * 0.5 + 1 * 0) / 1.5, abs=1e-5)
    assert found["dfl"] == pytest.approx(0.5 * math.log(2), abs=1e-6)


def test_a_head_without_distributions_has_two_parts() -> None:
    assert set(parts(0)) == {"cls", "box"}


@pytest.mark.parametrize("detector", ["gfl", "rtmdet", "yolox"])
def test_an_equal_teacher_costs_the_entropy_of_its_distributions_alone(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    distiller = Distiller(build(detector, 0), {"ppyoloe": term("ppyoloe")}, build(detector, 0))
    seen: list[float] = []

    def entropy(_: Any, args: Any) -> None:
        batch, student, teacher, assignment = args
        if student.adapter.facts.bins:
            image, prior, group = assignment.positives(batch)
            boxes, objects = student.gather_boxes(image, prior).detach(), batch.gt_boxes[group]
            low = torch.maximum(boxes[:, :2], objects[:, :2])
            inner = (torch.minimum(boxes[:, 2:], objects[:, 2:]) - low).clamp(min=0).prod(1)
            areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, objects)]
            weight = inner / (sum(areas) - inner)
            p = teacher.gather_distributions(image, prior).double().softmax(-1)
            each = -(p * p.log()).sum(-1).mean(-1)
            seen.append(float(0.5 * (weight * each).sum() / weight.sum().clamp(min=1)))

    distiller.terms["ppyoloe"].method.register_forward_pre_hook(entropy)
    distiller.eval().student.bbox_head.train()
    for layer in distiller.student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    found = {name: losses[f"loss_{name}"].item() for name in distiller.raw_terms}
    assert found.pop("ppyoloe.cls") == pytest.approx(0, abs=1e-6)
    assert found.pop("ppyoloe.box") == pytest.approx(0, abs=2e-3)
    assert list(found.values()) == pytest.approx(seen, rel=1e-4)
