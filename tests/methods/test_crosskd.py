"""CrossKD against numbers worked by hand, and with a student that equals its teacher."""

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
from kdlab.methods.crosskd import CrossHead, distribution_loss, quality_loss, restandardised
from kdlab.training.distiller import Distiller

LN3 = math.log(3)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


# --- the student's maps ---


def test_a_channel_gets_the_teachers_mean_and_deviation() -> None:
    # student -1, 1 (mean 0, deviation 1); teacher 10, 30 (mean 20, deviation 10)
    student, teacher = torch.tensor([-1.0, 1.0]), torch.tensor([30.0, 10.0])
    found = restandardised(student.view(1, 1, 1, 2), teacher.view(1, 1, 1, 2))
    assert found.flatten().tolist() == pytest.approx([10.0, 30.0], rel=1e-5)


def test_statistics_are_of_the_channel_over_the_batch() -> None:
    student = torch.tensor([[[[0.0]], [[5.0]]], [[[2.0]], [[5.0]]]])
    teacher = torch.tensor([[[[4.0]], [[1.0]]], [[[8.0]], [[3.0]]]])
    # first channel 0, 2 to mean 6 and deviation 2; the second is constant and becomes the mean 2
    assert restandardised(student, teacher).flatten().tolist() == pytest.approx([4, 2, 8, 2], rel=1e-4)


def test_a_single_cell_has_a_finite_value_and_gradient() -> None:
    student = torch.tensor([[[[3.0]]]], requires_grad=True)
    found = restandardised(student, torch.tensor([[[[7.0]]]]))
    found.sum().backward()
    assert found.item() == 7
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_gradient_reaches_the_teachers_map() -> None:
    student, teacher = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    restandardised(student, teacher).square().sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize(("depth", "conv"), [(4, 2), (2, 0), (1, 0)])
def test_maps_are_taken_after_the_last_but_one_convolution(depth: int, conv: int) -> None:
    facts = Facts("fcos", (), 3, (8,), 16, "", tower_depth=depth)
    assert CrossHead(Pair(facts, facts, ())).towers == (("cls", conv), ("reg", conv))


@pytest.mark.parametrize(("form", "crossed"), [("paper", [10.0, 30.0]), ("published", [0.0, 20.0])])
def test_the_published_form_crosses_what_the_activation_left(form: Any, crossed: list[float]) -> None:
    # before it student -1, 1 and teacher 10, 30; after a ReLU the student's 0, 1 meet the teacher's 0, 20
    facts = Facts("fcos", (), 3, (8,), 16, "", tower_depth=4)
    low, high = (10.0, 30.0) if form == "paper" else (-5.0, 20.0)
    student = SimpleNamespace(tower=lambda *_: [torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)])
    teacher = SimpleNamespace(tower=lambda *_: [torch.tensor([low, high]).view(1, 1, 1, 2)])
    models: list[Any] = [student, teacher]
    (found,) = CrossHead(Pair(facts, facts, ()), form=form).maps("cls", *models)
    assert found.flatten().tolist() == pytest.approx(crossed, rel=1e-4, abs=1e-3)


# --- boxes and quality ---


def test_distributions_are_summed_over_bins_and_averaged_over_edges() -> None:
    teacher = torch.tensor([[[LN3, 0.0]] * 4])
    crossed = torch.tensor([[[0.0, 0.0]] * 2 + [[LN3, 0.0]] * 2])
    # two of four edges are 3/4, 1/4 for the teacher and even for the other
    expected = kl([3 / 4, 1 / 4], [1 / 2, 1 / 2]) / 2
    assert distribution_loss(crossed, teacher).tolist() == pytest.approx([expected], abs=1e-6)


# one image of two positives and a prior that does not count
ASSIGNMENT = Assignment(torch.tensor([[0, 0, -2]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor(2.0))
BATCH = Batch(
    gt_boxes=torch.zeros(1, 4),
    gt_labels=torch.tensor([0]),
    gt_image=torch.tensor([0]),
    image_shapes=torch.tensor([[8, 8]]),
    pad_shapes=torch.tensor([[8, 8]]),
    input_shape=(8, 8),
)
# the teacher's best probabilities are 3/4, 1/2, 3/4
SCORES = torch.tensor([[[LN3, -9.0], [0.0, -9.0], [LN3, -9.0]]])


def box_loss(detector: str, crossed: dict[str, Any], teacher: dict[str, Any]) -> float:
    provides = ("box_distributions",) if detector == "gfl" else ()
    facts = Facts(detector, provides, 2, (8,), 16, "", tower_depth=4)
    models: list[Any] = [SimpleNamespace(**crossed), SimpleNamespace(cls_logits=SCORES, **teacher)]
    return CrossHead(Pair(facts, facts, ())).box_loss(*models, ASSIGNMENT).item()


def test_boxes_are_weighted_by_the_teachers_certainty_over_the_positives() -> None:
    # GIoU 1/2 at the first prior, 1 at the second, nothing at the third
    half, whole = [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 10.0]
    loss = box_loss(
        "fcos", {"boxes": torch.tensor([[half, whole, half]])}, {"boxes": torch.tensor([[whole] * 3])}
    )
    assert loss == pytest.approx(0.75 * 0.5 / 2, abs=1e-5)


def test_distributions_are_a_weighted_mean_for_gfl() -> None:
    def gather(rows: list[list[float]]) -> dict[str, Any]:
        edges = torch.tensor(rows)[:, None].expand(-1, 4, -1)
        return {"gather_distributions": lambda image, prior: edges[prior]}

    even, sure = [0.0, 0.0], [LN3, 0.0]
    loss = box_loss("gfl", gather([even, sure, even]), gather([sure, sure, sure]))
    # certainties 3/4 and 1/2 add up to 5/4
    assert loss == pytest.approx(0.75 * kl([3 / 4, 1 / 4], [1 / 2, 1 / 2]) / 1.25, abs=1e-6)


def test_quality_is_copied_at_the_positives() -> None:
    def gather(logit: float) -> Any:
        return SimpleNamespace(gather_quality=lambda image, prior: torch.full((len(prior),), logit))

    # the teacher's centerness 1/2, the crossed one 3/4, at two positives of two
    loss = quality_loss(gather(LN3), gather(0.0), BATCH, ASSIGNMENT)
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, abs=1e-6)


# --- a student that equals its teacher ---


def equal_losses(distiller: Distiller, data: dict[str, Any]) -> dict[str, Tensor]:
    distiller.eval().student.bbox_head.train()
    losses = distiller(**distiller.data_preprocessor(data, True), mode="loss")
    return {name.removeprefix("crosskd."): losses[f"loss_{name}"] for name in distiller.raw_terms}


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "atss", "gfl", "rtmdet", "yolox"])
def test_an_equal_teacher_costs_its_entropy_of_centerness_alone(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    student, teacher = build(detector, 0), build(detector, 0)
    if detector == "fcos":
        # boxes without area have no overlap with themselves
        for model in (student, teacher):
            model.bbox_head.conv_reg.bias.data.fill_(2.0)
    distiller = Distiller(student, {"crosskd": term("crosskd")}, teacher)
    entropies: list[float] = []

    def entropy(_: Any, args: Any) -> None:
        batch, _, outputs, assignment = args
        if outputs.quality_maps:
            p = outputs.gather_quality(*assignment.positives(batch)[:2]).double().sigmoid()
            total = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
            entropies.append((total / assignment.avg_factor).item())

    distiller.terms["crosskd"].method.register_forward_pre_hook(entropy)
    losses = equal_losses(distiller, raw_batch())
    assert losses["cls"].item() == pytest.approx(0, abs=1e-5)
    assert losses["reg"].item() == pytest.approx(0, abs=1e-3)
    quality = [losses["quality"].item()] if "quality" in losses else []
    assert quality == pytest.approx(entropies, rel=1e-4)
    assert ("quality" in losses) == (detector in ("fcos", "atss"))


def test_gradients_reach_the_students_tower_but_not_its_own_predictor(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"crosskd": term("crosskd")}).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    sum(losses[f"loss_{name}"] for name in distiller.raw_terms).backward()
    head = distiller.student.bbox_head
    for convs in (head.cls_convs, head.reg_convs):
        assert convs[0].conv.weight.grad.abs().sum() > 0
        assert convs[1].conv.weight.grad is None
    assert head.gfl_cls.weight.grad is None
    assert head.gfl_reg.weight.grad is None
