"""Bridging Cross-task Knowledge Distillation: copy scores and boxes at all priors where scores differ."""

from __future__ import annotations

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._logits import disagreement_loss
from kdlab.methods.base import Method, Pair

VERSION = 2


def localisation_loss(boxes_student: Tensor, boxes_teacher: Tensor, weight: Tensor) -> Tensor:
    """GIoU loss between the boxes of two models at the same priors.

    Args:
        boxes_student: (..., N, 4) xyxy, in any unit.
        boxes_teacher: (..., N, 4) at the same priors; no gradient flows here.
        weight: (..., N) >= 0; no gradient flows here.

    Returns:
        (..., N) in [0, 2] times the weight: 1 - GIoU. Between boxes without area it is 1, also where they are
        equal.

    Source: Yang et al., ICCV 2023, arXiv:2308.14286.  Differs: none known.
    """
    overlap = bbox_overlaps(boxes_student, boxes_teacher.detach(), mode="giou", is_aligned=True)
    return weight.detach() * (1 - overlap)


class BridgingCrossTask(Method):
    """BCKD: distillation as the detector's own losses see its outputs, classes as independent sigmoids.

    It looks at all priors of the batch: about six tensors (B, N, K) besides the models' own, 14 MB each for
    two images of 1333 x 800 px and COCO's 80 classes with GFL, nine times as much with RetinaNet's anchors.

    Args:
        pair: the two models, with sigmoid heads; they need equal classes and equal priors.
        cls: factor of the classes' part: cross-entropy weighted by |sigmoid(z_T) - sigmoid(z_S)|, the
            paper's beta = 1; gradient flows through that weight, as in the code.
        loc: factor of the boxes' part: GIoU loss weighted by the largest such difference over classes.

    Source: Yang et al., ICCV 2023, arXiv:2308.14286; factors of its GFL config.
    Differs: the code leaves out the levels on which nothing is positive; here every prior counts whose label
    the student's loss counts. For other detectors than GFL the factors are unverified. Both parts are divided
    by each image's positives, at least 1, as there and as in mmdet's losses of RetinaNet, ATSS and GFL; of
    FCOS too, whose own loss floors the batch's count alone.
    """

    default_weight = 1.0
    needs = ("cls_maps", "boxes", "assignment")
    requires_equal = ("classes", "priors")

    def __init__(self, pair: Pair, *, cls: float = 1.0, loc: float = 4.0) -> None:
        super().__init__(pair)
        self.cls, self.loc = cls, loc

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """Both parts over all priors of the batch, over the count of positives."""
        logits = student.cls_logits, teacher.cls_logits
        with torch.no_grad():
            difference = (logits[1].sigmoid() - logits[0].sigmoid()).abs().amax(-1)
        classes = disagreement_loss(*logits) * assignment.label_weights
        boxes = localisation_loss(student.boxes, teacher.boxes, difference * assignment.label_weights)
        return {
            "cls": self.cls * classes.sum() / assignment.avg_factor,
            "loc": self.loc * boxes.sum() / assignment.avg_factor,
        }
