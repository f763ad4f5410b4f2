"""CrossKD: send the student's head maps through the teacher's head, and copy what the teacher says itself."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, Branch, DetectorOutputs
from kdlab.methods._logits import disagreement_loss
from kdlab.methods.base import Method, Pair, averaged

VERSION = 2

_EPSILON = 1e-6


def restandardised(map_student: Tensor, map_teacher: Tensor) -> Tensor:
    """A student's map with the mean and deviation that the teacher's has in each channel.

    Args:
        map_student: (B, C, H, W) before the activation; gradient flows through its statistics too.
        map_teacher: (B, C, H, W) at the same convolution; no gradient flows here.

    Returns:
        (B, C, H, W), statistics over batch and cells; a constant channel becomes the teacher's mean.

    Source: Wang et al., CVPR 2024, arXiv:2306.11369, code.
    Differs: deviations have the count in their denominator, which cancels out, so that a single cell works.
    """
    map_teacher = map_teacher.detach()

    def centre_and_spread(level: Tensor) -> tuple[Tensor, Tensor]:
        places = (0, 2, 3)
        return level.mean(places, keepdim=True), level.std(places, correction=0, keepdim=True)

    (mean, spread), (mean_teacher, spread_teacher) = map(centre_and_spread, (map_student, map_teacher))
    return (map_student - mean) / (spread + _EPSILON) * spread_teacher + mean_teacher


def distribution_loss(logits_crossed: Tensor, logits_teacher: Tensor) -> Tensor:
    """KL of edge distributions at temperature 1.

    Args:
        logits_crossed: (P, 4, R + 1).
        logits_teacher: (P, 4, R + 1) at the same priors; no gradient flows here.

    Returns:
        (P,) >= 0 in nats, mean over the four edges; 0 at equal logits.

    Source: Wang et al., CVPR 2024, arXiv:2306.11369.  Differs: none known.
    """
    log_crossed, log_teacher = logits_crossed.log_softmax(-1), logits_teacher.detach().log_softmax(-1)
    return F.kl_div(log_crossed, log_teacher, log_target=True, reduction="none").sum(-1).mean(-1)


class CrossHead(Method):
    """CrossKD: cross-head predictions instead of the student's own, so that no head serves two masters.

    The maps of each branch after the last but one convolution (the third of four) go through the rest of the
    teacher's frozen head, from where gradients reach the student's tower, neck and backbone. Looks at all
    priors of the batch: memory as for `bckd`, and the rest of the teacher's head once more with gradient.

    Args:
        pair: the two models; they need equal classes, priors and heads.
        cls: factor of the classes' part, over all priors whose label the student's loss counts.
        reg: factor of the boxes' part, weighted by the teacher's best class probability: KL of the edge
            distributions over the sum of weights for GFL (factor 4), else GIoU loss over the count of
            positives.
        quality: factor of the centerness' part (FCOS, ATSS): cross-entropy with the teacher's at the
            student's positives, the teacher's entropy at equality. Nothing for heads without.
        form: which maps cross: "paper" those before the activation, as written; "published" those after it,
            as in the code, whose `ConvModule` activates in place the map that was kept. Reported numbers are
            of that form.

    Source: Wang et al., CVPR 2024, arXiv:2306.11369.
    Differs: the code's FCOS has no centerness part, the IoU loss in place of GIoU, and divides by the sum of
    centerness targets; here FCOS is as ATSS. Other published configs have other factors: GFL with 3 and a
    GIoU loss, FCOS with 0.4 and 0.75. A sum of weights is at least 1 here. Sums over priors are divided by
    each image's positives, at least 1, as in the code; of FCOS too, whose own loss floors the batch's alone.
    """

    default_weight = 1.0
    defaults_for = {"gfl": {"reg": 4.0}}
    needs = ("cls_maps", "box_maps", "boxes", "assignment", "towers")
    requires_equal = ("classes", "priors", "head")

    def __init__(
        self,
        pair: Pair,
        *,
        cls: float = 1.0,
        reg: float = 1.0,
        quality: float = 1.0,
        form: Literal["paper", "published"] = "paper",
    ) -> None:
        super().__init__(pair)
        self.published = form == "published"
        self.cls, self.reg, self.quality = cls, reg, quality
        self.conv = max(0, pair.student.tower_depth - 2)
        self.towers = (("cls", self.conv), ("reg", self.conv))
        self.distributions = "box_distributions" in pair.student.provides

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The parts of the cross-head predictions."""
        maps = [self.maps(branch, student, teacher) for branch, _ in self.towers]
        crossed = teacher.run_tail(self.conv, *maps)
        classes = disagreement_loss(crossed.cls_logits, teacher.cls_logits) * assignment.label_weights
        parts = {
            "cls": self.cls * classes.sum() / assignment.avg_factor,
            "reg": self.reg * self.box_loss(crossed, teacher, assignment),
        }
        if crossed.quality_maps:
            parts["quality"] = self.quality * quality_loss(crossed, teacher, batch, assignment)
        return parts

    def maps(self, branch: Branch, student: DetectorOutputs, teacher: DetectorOutputs) -> list[Tensor]:
        """The student's maps as the teacher's head gets them."""
        pairs = list(zip(student.tower(branch, self.conv), teacher.tower(branch, self.conv), strict=True))
        if self.published:
            pairs = [(mine.relu(), theirs.relu()) for mine, theirs in pairs]
        return [restandardised(*pair) for pair in pairs]

    def box_loss(self, crossed: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment) -> Tensor:
        """Scalar: the boxes' part without its factor."""
        used = assignment.label_weights > 0
        certain = teacher.cls_logits.amax(-1).sigmoid() * used
        if not self.distributions:
            overlap = bbox_overlaps(crossed.boxes, teacher.boxes, mode="giou", is_aligned=True)
            return (certain * (1 - overlap)).sum() / assignment.avg_factor
        places = used.nonzero(as_tuple=True)
        losses = distribution_loss(
            crossed.gather_distributions(*places), teacher.gather_distributions(*places)
        )
        return (certain[places] * losses).sum() / averaged(certain.sum())


def quality_loss(
    crossed: DetectorOutputs, teacher: DetectorOutputs, batch: Batch, assignment: Assignment
) -> Tensor:
    """Scalar: cross-entropy of centerness with the teacher's at the positives, over their number."""
    image, prior, _ = assignment.positives(batch)
    target = teacher.gather_quality(image, prior).sigmoid()
    loss = F.binary_cross_entropy_with_logits(crossed.gather_quality(image, prior), target, reduction="sum")
    return loss / assignment.avg_factor
