"""What methods see is enough: six published methods, written in a few lines on the interface alone.

They are sketches of docs/methods.md, there to need what their originals need, not to be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from kdlab import catalog
from kdlab.training import detectors
from kdlab.training.distiller import Distiller
from kdlab.training.methods.base import Connector, Method, Pair
from kdlab.training.mmdet_config import read_config
from kdlab.training.outputs import Assignment, Batch, DetectorOutputs, Priors, Tail


def centres(priors: Priors) -> Tensor:
    """(N, 2) the middle of each prior."""
    boxes = priors.boxes
    return boxes if boxes.shape[1] == 2 else (boxes[:, :2] + boxes[:, 2:]) / 2


class CrossKD(Method):
    """The student's tower through the teacher's head, compared with the teacher's own predictions."""

    requires_equal = ("head",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.conv = pair.student.tower_depth - 2
        self.towers = (("cls", self.conv), ("reg", self.conv))

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        tails = {branch: self.tail(branch, student, teacher) for branch, _ in self.towers}
        crossed = replace(teacher, cls_maps=tails["cls"].maps, box_maps=tails["reg"].maps)
        used = assignment.label_weights > 0
        logits, target = crossed.cls_logits[used], teacher.cls_logits[used].sigmoid()
        factor = (logits.sigmoid() - target).abs()
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        certain = target.amax(1)
        giou = bbox_overlaps(crossed.boxes[used], teacher.boxes[used], "giou", is_aligned=True)
        losses = {"cls": (factor * bce).sum(), "reg": (certain * (1 - giou)).sum()}
        if quality := tails["cls"].quality or tails["reg"].quality:
            pairs = zip(quality, teacher.quality_maps or [], strict=True)
            losses["quality"] = sum(F.binary_cross_entropy_with_logits(q, t.sigmoid()) for q, t in pairs)
        return {name: loss / assignment.num_positives for name, loss in losses.items()}

    def tail(self, branch: Any, student: DetectorOutputs, teacher: DetectorOutputs) -> Tail:
        pairs = zip(student.tower(branch, self.conv), teacher.tower(branch, self.conv), strict=True)
        return teacher.run_tail(branch, self.conv, [restandardised(*pair) for pair in pairs])


def restandardised(map_student: Tensor, map_teacher: Tensor) -> Tensor:
    def moments(level: Tensor) -> tuple[Tensor, Tensor]:
        return level.mean((0, 2, 3), keepdim=True), level.std((0, 2, 3), keepdim=True)

    (mean, std), (mean_teacher, std_teacher) = moments(map_student), moments(map_teacher)
    return (map_student - mean) / (std + 1e-6) * std_teacher + mean_teacher


class GID(Method):
    """Imitation at the boxes where the two models disagree most, matched by the student's own matcher."""

    needs = ("feats", "cls_maps", "box_maps", "boxes", "assignment")
    requires_equal = ("classes", "priors")
    connector = Connector(kernel=3, shared_over_levels=True)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        score_student, score_teacher = (
            one.cls_logits.detach().sigmoid().amax(-1) for one in (student, teacher)
        )
        boxes = torch.where((score_student > score_teacher)[..., None], student.boxes.detach(), teacher.boxes)
        image, prior, chosen = [], [], []
        for number, (candidates, gain) in enumerate(
            zip(boxes, (score_student - score_teacher).abs(), strict=True)
        ):
            chosen.append(candidates[nms(candidates, gain, 0.3)[:10]])
            matched = (student.match(chosen[-1], batch.pad_shapes[number]) >= 0).nonzero().squeeze(1)
            prior.append(matched)
            image.append(torch.full_like(matched, number))
        places = torch.cat(image), torch.cat(prior)
        count = max(1, len(places[0]))
        target = teacher.gather_logits(*places).sigmoid()
        response = F.binary_cross_entropy_with_logits(student.gather_logits(*places), target, reduction="sum")
        deltas = student.gather_raw_boxes(*places) - teacher.gather_raw_boxes(*places)
        feature, relation = self.on_regions(student, teacher, chosen)
        return {"response": (response + deltas.abs().sum()) / count, "feature": feature, "relation": relation}

    @staticmethod
    def on_regions(
        student: DetectorOutputs, teacher: DetectorOutputs, boxes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        stride = student.level_strides[0]
        regions = [roi_align(one.feats[0], boxes, 10, 1 / stride).flatten(1) for one in (student, teacher)]
        distances = [torch.cdist(rows, rows) for rows in regions]
        relation = F.smooth_l1_loss(*(rows / rows.mean().clamp(min=1e-6) for rows in distances))
        return F.mse_loss(*regions), relation


class PGD(Method):
    """Towers imitated under Gaussians that are fitted to where the teacher predicts each object best."""

    towers = (("cls", 1), ("reg", 1))
    requires_equal = ("classes", "priors", "head")

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        priors, places = teacher.priors, centres(teacher.priors)
        weight = student.cls_logits.new_zeros(len(batch.image_shapes), len(places))
        for box, label, image in zip(batch.gt_boxes, batch.gt_labels, batch.gt_image, strict=True):
            iou = bbox_overlaps(teacher.boxes[image], box[None]).squeeze(1)
            quality = teacher.cls_logits[image, :, label].sigmoid() ** 0.2 * iou**0.8
            best, top = quality.topk(min(30, len(quality)))
            share = best / best.sum().clamp(min=1e-6)
            mean = (share[:, None] * places[top]).sum(0)
            spread = places[top] - mean
            covariance = (share[:, None, None] * spread[:, :, None] * spread[:, None]).sum(
                0
            ) + 16 * torch.eye(2)
            offset = places - mean
            gaussian = (-0.5 * (offset @ covariance.inverse() * offset).sum(1)).exp()
            weight[image] = torch.maximum(weight[image], gaussian)
        losses = []
        for branch, conv in self.towers:
            maps = student.tower(branch, conv), teacher.tower(branch, conv)
            for level, (mine, theirs) in enumerate(zip(*maps, strict=True)):
                first, last = priors.first[level : level + 2]
                mask = weight[:, first:last].unflatten(1, (*priors.sizes[level], -1)).amax(-1)
                losses.append((mask * (mine - theirs).square().mean(1)).sum() / mask.sum().clamp(min=1))
        return torch.stack(losses).mean()


class ValuableRegion(Method):
    """LD where an anchor is near an object but not near enough to be a positive."""

    needs = ("box_distributions",)
    requires_equal = ("priors",)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        priors = student.priors
        distance = torch.cdist(centres(priors), (batch.gt_boxes[:, :2] + batch.gt_boxes[:, 2:]) / 2)
        overlap = bbox_overlaps(priors.boxes, batch.gt_boxes)
        weight = overlap.new_zeros(assignment.gt_index.shape)
        for number, image in enumerate(batch.gt_image):
            near = []
            for first, last in zip(priors.first, priors.first[1:], strict=False):
                near.append(
                    first + distance[first:last, number].topk(min(9, last - first), largest=False).indices
                )
            candidates = overlap[torch.cat(near), number]
            threshold = candidates.mean() + candidates.std()
            inside = (overlap[:, number] >= 0.25 * threshold) & (overlap[:, number] < threshold)
            weight[image] = torch.maximum(weight[image], overlap[:, number] * inside)
        weight = weight * (assignment.gt_index == -1)
        places = weight.nonzero(as_tuple=True)
        logits = [one.gather_distributions(*places) / 10 for one in (student, teacher)]
        log_student, log_teacher = (rows.log_softmax(-1) for rows in logits)
        divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").mean(-1).sum(-1)
        return (weight[places] * divergence).sum() / weight.sum().clamp(min=1)


class FGD(Method):
    """Attention within and outside objects, and a trained block for the relation of all cells."""

    connector = Connector()

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        channels = pair.teacher.channels
        self.key = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(2))
        self.value = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(2))

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        focal, context = [], []
        for mine, theirs, stride in zip(student.feats, teacher.feats, student.level_strides, strict=True):
            inside = self.foreground(batch, theirs, stride)
            where = theirs.abs().mean(1).div(0.5).flatten(1).softmax(1).view_as(inside) * inside[0].numel()
            focal.append(((inside + 0.1) * where * (mine - theirs).square().sum(1)).sum() / len(mine))
            blocks = [self.related(feat, place) for place, feat in enumerate((mine, theirs))]
            context.append((blocks[0] - blocks[1]).square().sum() / len(mine))
        return {"focal": sum(focal), "global": sum(context)}

    def related(self, feat: Tensor, place: int) -> Tensor:
        attention = self.key[place](feat).flatten(2).softmax(-1)
        gathered = (feat.flatten(2) * attention).sum(-1)[..., None, None]
        return feat + self.value[place](gathered)

    @staticmethod
    def foreground(batch: Batch, feat: Tensor, stride: int) -> Tensor:
        mask = feat.new_zeros(len(feat), *feat.shape[-2:])
        for box, image in zip(batch.gt_boxes, batch.gt_image, strict=True):
            left, top = (box[:2] / stride).floor().int().tolist()
            right, bottom = (box[2:] / stride).ceil().int().tolist()
            area = (right - left + 1) * (bottom - top + 1)
            mask[image, top : bottom + 1, left : right + 1].clamp_(min=1 / area)
        return mask


class MasKD(Method):
    """Imitation under the masks of tokens, weighted by a trained share; later narrowed by the student's."""

    connector = Connector(always=True)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.register_buffer("tokens", torch.randn(6, pair.teacher.channels))
        self.share = nn.Linear(pair.teacher.channels, 6)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        losses = []
        for mine, theirs in zip(student.feats, teacher.feats, strict=True):
            masks = [torch.einsum("tc,bchw->bthw", self.tokens, feat).sigmoid() for feat in (mine, theirs)]
            mask = masks[1] * masks[0].detach() if batch.iteration >= 0.5 * batch.max_iterations else masks[1]
            # a token in a hundred is left out, by the method's own random numbers
            kept = torch.rand(mask.shape[:2], generator=batch.generator) > 0.01
            difference = torch.einsum("bthw,bchw->bt", mask.square(), (mine - theirs).square())
            share = self.share(theirs.mean((2, 3))).softmax(1)
            losses.append((share * kept * difference / mask.sum((2, 3))).sum(1).mean())
        return torch.stack(losses).sum() / self.pair.teacher.channels


FITTING = [
    *((CrossKD, detector) for detector in ("retinanet", "fcos", "gfl")),
    (GID, "retinanet"),
    (GID, "fcos"),
    (PGD, "gfl"),
    (PGD, "fcos"),
    (ValuableRegion, "gfl"),
    *((FGD, detector) for detector in ("retinanet", "fcos", "gfl")),
    (MasKD, "fcos"),
]
fitting = pytest.mark.parametrize(
    ("method", "detector"), FITTING, ids=[f"{method.__name__}-{detector}" for method, detector in FITTING]
)


@pytest.fixture
def distiller(
    method: type[Method], detector: str, distil: Callable[..., Distiller], term: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Distiller:  # fmt: skip
    monkeypatch.setattr("kdlab.training.distiller.method_class", lambda key: method)
    return distil(detector, {"it": term("it")}).train()


def losses_of(distiller: Distiller, data: dict[str, Any]) -> list[Tensor]:
    losses = distiller(**distiller.data_preprocessor(data, True), mode="loss")
    return [losses[f"loss_{name}"] for name in distiller.raw_terms]


@fitting
def test_method_can_be_written_and_trains_the_student(
    distiller: Distiller, raw_batch: Callable[..., Any]
) -> None:
    losses = losses_of(distiller, raw_batch())
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses)
    sum(losses).backward()
    (teacher,) = distiller._teacher
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for module in (distiller.student.backbone, distiller.student.neck):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    for name, parameter in distiller.terms.named_parameters():
        assert parameter.grad is not None, name


@fitting
def test_method_survives_a_batch_without_objects(distiller: Distiller, raw_batch: Callable[..., Any]) -> None:
    losses = losses_of(distiller, raw_batch([1, 1]))
    assert all(torch.isfinite(loss) and loss.requires_grad for loss in losses)


@pytest.mark.parametrize(
    ("method", "detector"), [(CrossKD, "gfl"), (CrossKD, "fcos"), (CrossKD, "retinanet")]
)
def test_a_tower_that_equals_the_teachers_crosses_to_its_predictions(
    distil: Callable[..., Distiller], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, method: type[Method], detector: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("kdlab.training.distiller.method_class", lambda key: method)
    teacher = build(detector, 0)
    if detector == "fcos":
        # boxes without area have no overlap with themselves
        teacher.bbox_head.conv_reg.bias.data.fill_(2.0)
    distiller = distil(detector, {"it": term("it")}, teacher=teacher).eval()
    distiller.student.load_state_dict(teacher.state_dict())
    distiller.student.bbox_head.train()
    cls, reg, *_ = losses_of(distiller, raw_batch())
    assert cls.item() == pytest.approx(0, abs=1e-5)
    assert reg.item() == pytest.approx(0, abs=1e-3)


# --- teachers of another kind ---


@pytest.fixture
def foreign(request: pytest.FixtureRequest, build: Callable[..., Any]) -> Any:
    """A teacher that shares nothing with a RetinaNet but levels: a family's, or one of an mmdet config."""
    if request.param == "mask_rcnn":
        return build("mask_rcnn", 7, strides=(4, 8, 16, 32), neck_channels=24)
    path = catalog.config_file(request.param)
    assert path is not None
    return detectors.build({"overrides": {}, **read_config(path, "none")}, 3)


@pytest.mark.parametrize("foreign", ["mask_rcnn", "rtmdet/rtmdet_tiny_8xb32-300e_coco"], indirect=True)
@pytest.mark.parametrize("method", [FGD, MasKD])
def test_a_neck_method_takes_any_teacher_and_leaves_its_head_alone(
    foreign: Any, method: type[Method], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("kdlab.training.distiller.method_class", lambda key: method)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher's head was run")

    for head in ("bbox_head", "rpn_head", "roi_head"):
        if hasattr(foreign, head):
            monkeypatch.setattr(getattr(foreign, head), "forward", refuse)
    distiller = Distiller(build("retinanet", strides=(8, 16, 32, 64)), {"it": term("it")}, foreign).train()
    assert [level for level, _ in distiller.terms["it"].levels] == [0, 1, 2]
    losses = losses_of(distiller, raw_batch())
    sum(losses).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.student.backbone.parameters())
    assert all(parameter.grad is None for parameter in foreign.parameters())
