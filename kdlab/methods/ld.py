"""Localization Distillation: copy the distributions of box edges, at positives and in the region around."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import reduce_mean
from torch import Tensor
from torchvision.ops import box_iou, distance_box_iou

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.errors import ShapeError
from kdlab.methods.base import Method, Pair, averaged

IGNORED = -2  # by the loss, in `Assignment.gt_index`
NEAREST = 9  # anchors a level that ATSS looks at
VALUABLE_FROM = 0.25  # of ATSS's threshold
VALUABLE_PARITY = 4.0  # the code divides this region's sum by 16 and not by 4 edges


def distribution_divergence(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """KL of softened edge distributions.

    Args:
        logits_student: (P, 4, R + 1).
        logits_teacher: (P, 4, R + 1) at the same priors; no gradient flows here.
        temperature: T; the loss is scaled by its square.

    Returns:
        (P,) >= 0: T^2 times the mean over edges and bins of the KL's terms; 0 at equal logits.

    Raises:
        ShapeError: the heads have different bins.

    Source: Zheng et al., CVPR 2022, arXiv:2102.12252.  Differs: none known.
    """
    if logits_student.shape != logits_teacher.shape:
        raise ShapeError(
            "ld got distributions over different bins",
            got=f"student {tuple(logits_student.shape)}, teacher {tuple(logits_teacher.shape)}",
            fix="give both heads the same reg_max",
        )
    log_student = (logits_student / temperature).log_softmax(-1)
    log_teacher = (logits_teacher.detach() / temperature).log_softmax(-1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none")
    return temperature**2 * divergence.mean((1, 2))


def atss_thresholds(overlaps: Tensor, distances: Tensor, first: Sequence[int]) -> Tensor:
    """ATSS's own threshold of each object: mean plus deviation of the IoUs of its nearest anchors.

    Args:
        overlaps: (G, N) IoU of each object with each anchor.
        distances: (G, N) between centres; inf at anchors that are not to be looked at.
        first: the place of each level's first anchor, and N at the end.

    Returns:
        (G,) from the 9 nearest of each level; 0 where an object may look at no anchor.
    """
    nearest = [
        distances[:, start:end].topk(min(NEAREST, end - start), dim=1, largest=False)
        for start, end in pairwise(first)
    ]
    usable = torch.cat([found.values for found in nearest], dim=1).isfinite()
    places = torch.cat([found.indices + start for found, start in zip(nearest, first[:-1], strict=True)], 1)
    candidates = overlaps.gather(1, places)
    count = usable.sum(1, keepdim=True)
    mean = (candidates * usable).sum(1, keepdim=True) / count.clamp(min=1)
    variance = ((candidates - mean).square() * usable).sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return (mean + variance.sqrt()).squeeze(1)


def valuable_weights(
    anchors: Tensor, first: Sequence[int], boxes: Tensor, image: Tensor, counted: Tensor
) -> Tensor:
    """Where an anchor is near an object and not near enough to be trained for it, and how near.

    Args:
        anchors: (N, 4) xyxy.
        first: the place of each level's first anchor, and N at the end.
        boxes: (G, 4) xyxy, the objects of all images.
        image: (G,) int64 in [0, B).
        counted: (B, N) bool, the anchors that the loss of each image counts.

    Returns:
        (B, N) in [0, 1], without gradient: the IoU with the object where DIoU is in [t/4, t), t being ATSS's
        threshold of that object; the largest where several claim the anchor, 0 elsewhere. A box without area
        claims none. Memory: about eight tensors (G, N).

    Source: Zheng et al., CVPR 2022, arXiv:2102.12252, code.  Differs: none known.
    """
    boxes, allowed = boxes.detach(), counted[image]
    overlaps = box_iou(boxes, anchors)
    distances = torch.cdist((boxes[:, :2] + boxes[:, 2:]) / 2, (anchors[:, :2] + anchors[:, 2:]) / 2)
    thresholds = atss_thresholds(overlaps, distances.masked_fill(~allowed, torch.inf), first)[:, None]
    nearness = distance_box_iou(boxes, anchors)
    inside = (nearness >= VALUABLE_FROM * thresholds) & (nearness < thresholds) & allowed
    index = image[:, None].expand_as(overlaps)
    return overlaps.new_zeros(counted.shape).scatter_reduce(0, index, overlaps * inside, "amax")


def balanced_mean(losses: Tensor, positive: Tensor) -> Tensor:
    """Mean over positives and mean over the rest, weighted by the roots of their counts.

    Args:
        losses: (P,) >= 0.
        positive: (P,) bool.

    Returns:
        Scalar; a part without members counts 0 and has no weight.

    Source: D-FINE's decoupled distillation focal loss, public code.
    Differs: counts are averaged over ranks.
    """
    total, weights = losses.sum() * 0, 0.0
    for members in (positive, ~positive):
        count = reduce_mean(members.sum().float())
        total = total + count.sqrt() * (losses * members).sum() / count.clamp(min=1)
        weights = weights + count.sqrt()
    return total / weights.clamp(min=1)


class LocalizationDistillation(Method):
    """LD on heads that predict distributions over box edges (GFL).

    Args:
        pair: the two models; they need equal priors, and may have different classes.
        region: `main` are the positives of the student's own assigner, weighted by the student's best class
            probability; `valuable` the anchors around, weighted by IoU; `both` the two parts.
        main: factor of the part at the positives, as published.
        valuable: factor of the part around them, as published.
        temperature: T.
        parity: sum over the batch as the code does, which divides by no count (LD#29), so that the loss grows
            with the images of one GPU; weight 1 then. By default each part is a mean under its weights, as
            the detector's own distribution loss, and the weight of 70 stands for the sum that it replaces:
            two images of COCO, the published batch of one GPU, have 170 positives (measured on 63 images),
            whose weights add up to 70 at a mean score of 0.4 (estimated). The sum of the valuable part's is
            558 there, in the region of the true DIoU, of which the code takes a quarter: `valuable: 0.5`
            would match it on that region.
        balanced: D-FINE's form instead, weight 1.5, published with a temperature of 5: all priors, positives
            weighted by the IoU of the student's box with its object, all others by the teacher's best class
            probability; a mean over each, together by the roots of their counts.

    Source: Zheng et al., CVPR 2022, arXiv:2102.12252.
    Differs: the code's DIoU has the anchor's area for the union of both (anchor [80, 60, 100, 80] and box
    [50, 40, 150, 120]: 0.9878, where it is 0.0378), so its valuable region is another one, also under
    `parity`; here DIoU is as written. Means instead of sums unless `parity`, of weights that add up to at
    least 1. Its main KD is `soft_label` with `form: softmax`.
    """

    default_weight = 70.0
    default_weight_when = {("parity", True): 1.0, ("balanced", True): 1.5}
    limits = {"temperature": (0.01, 100.0)}
    needs = ("cls_maps", "box_maps", "box_distributions", "assignment")
    needs_when = {
        ("balanced", True): ("boxes",),
        ("region", "valuable"): ("anchor_boxes",),
        ("region", "both"): ("anchor_boxes",),
    }
    requires_equal = ("priors", "bins")
    unused_when = {
        ("region", "main"): ("valuable",),
        ("region", "valuable"): ("main",),
        ("balanced", True): ("region", "main", "valuable", "parity"),
    }

    def __init__(
        self,
        pair: Pair,
        *,
        region: Literal["main", "valuable", "both"] = "both",
        main: float = 0.25,
        valuable: float = 0.25,
        temperature: float = 10.0,
        parity: bool = False,
        balanced: bool = False,
    ) -> None:
        super().__init__(pair)
        self.region, self.temperature, self.parity = region, temperature, parity
        self.main, self.valuable, self.balanced = main, valuable, balanced

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The parts of the chosen regions."""
        if self.balanced:
            return {"balanced": self.everywhere(batch, student, teacher, assignment)}
        parts = {}
        if self.region != "valuable":
            image, prior, _ = assignment.positives(batch)
            weight = student.gather_logits(image, prior).detach().sigmoid().amax(1)
            parts["main"] = self.main * self.weighted(student, teacher, (image, prior), weight)
        if self.region != "main":
            priors, counted = student.priors, assignment.label_weights > 0
            weights = valuable_weights(priors.boxes, priors.first, batch.gt_boxes, batch.gt_image, counted)
            image, prior = weights.nonzero(as_tuple=True)
            factor = self.valuable / VALUABLE_PARITY if self.parity else self.valuable
            parts["valuable"] = factor * self.weighted(
                student, teacher, (image, prior), weights[image, prior]
            )
        return parts

    def everywhere(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Scalar: positives by IoU, all others by the teacher's score, each a mean of its own."""
        weight = teacher.cls_logits.detach().sigmoid().amax(2)
        image, prior, group = assignment.positives(batch)
        with torch.no_grad():
            boxes = student.gather_boxes(image, prior)
            weight[image, prior] = bbox_overlaps(boxes, batch.gt_boxes[group], is_aligned=True)
        places = (assignment.gt_index > IGNORED).nonzero(as_tuple=True)
        logits = student.gather_distributions(*places), teacher.gather_distributions(*places)
        # the published sum over bins, where `distribution_divergence` is a mean
        divergence = logits[0].shape[-1] * distribution_divergence(*logits, self.temperature)
        return balanced_mean(weight[places] * divergence, assignment.gt_index[places] >= 0)

    def weighted(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        places: tuple[Tensor, Tensor],
        weight: Tensor,
    ) -> Tensor:
        """Scalar: the divergence at (image, prior) places under weights (P,), as mean or as sum."""
        logits = student.gather_distributions(*places), teacher.gather_distributions(*places)
        total = (weight * distribution_divergence(*logits, self.temperature)).sum()
        return total if self.parity else total / averaged(weight.sum())
