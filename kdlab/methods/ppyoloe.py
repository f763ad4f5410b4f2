"""PP-YOLOE's logits: copy scores everywhere, and boxes and their distributions at the student's positives."""

from __future__ import annotations

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._logits import disagreement_loss
from kdlab.methods.base import Method, Pair, averaged


def distribution_cross_entropy(logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
    """Cross-entropy of edge distributions with the teacher's.

    Args:
        logits_student: (P, 4, R + 1).
        logits_teacher: (P, 4, R + 1) at the same priors; no gradient flows here.

    Returns:
        (P,) > 0 in nats, mean over the four edges; the teacher's entropy at equal logits.

    Source: PaddleDetection, `DistillPPYOLOELoss`, code.  Differs: none known.
    """
    target = logits_teacher.detach().softmax(-1)
    return -(target * logits_student.log_softmax(-1)).sum(-1).mean(-1)


class PPYOLOELogits(Method):
    """The distillation of PP-YOLOE's predictions: classes over all priors, boxes at positives.

    Args:
        pair: the two models; they need equal classes, priors and bins.
        cls: factor of the classes' part: quality focal loss with beta 2 towards the teacher's probability,
            over each image's positives, at least 1.
        box: factor of the boxes' part: 1 - GIoU of the two decoded boxes.
        dfl: factor of the distributions' part: their cross-entropy. Nothing for heads without.

    Source: PaddleDetection, `DistillPPYOLOELoss` with its factors and weight, code; no paper.
    Differs: the boxes' two parts weigh a positive there by the alignment that its assigner computes, here by
    the overlap of the student's box with its object, to which GFL and RTMDet train their scores; a sum of
    weights is at least 1. The part on feature maps is not here: that is any method on them.
    """

    default_weight = 4.0
    needs = ("cls_maps", "boxes", "assignment")
    requires_equal = ("classes", "priors", "bins")

    def __init__(self, pair: Pair, *, cls: float = 1.0, box: float = 2.5, dfl: float = 0.5) -> None:
        super().__init__(pair)
        self.cls, self.box, self.dfl = cls, box, dfl

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The parts, those of boxes over the sum of their weights."""
        classes = disagreement_loss(student.cls_logits, teacher.cls_logits, 2.0) * assignment.label_weights
        image, prior, group = assignment.positives(batch)
        boxes, theirs = student.gather_boxes(image, prior), teacher.gather_boxes(image, prior)
        with torch.no_grad():
            overlap = bbox_overlaps(boxes, batch.gt_boxes[group], is_aligned=True)
        total = averaged(overlap.sum())
        # without any, mmdet's overlaps would not be in the graph
        alike = bbox_overlaps(boxes, theirs, mode="giou", is_aligned=True) if len(boxes) else boxes.sum(1)
        parts = {
            "cls": self.cls * classes.sum() / assignment.avg_factor,
            "box": self.box * (overlap * (1 - alike)).sum() / total,
        }
        if self.pair.student.bins:
            edges = student.gather_distributions(image, prior), teacher.gather_distributions(image, prior)
            parts["dfl"] = self.dfl * (overlap * distribution_cross_entropy(*edges)).sum() / total
        return parts
