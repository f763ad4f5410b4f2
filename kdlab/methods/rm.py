"""Rank Mimicking: copy the teacher's ranking of the boxes that serve one object."""

from __future__ import annotations

from typing import Literal

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs, joint_logit
from kdlab.errors import ShapeError
from kdlab.methods.base import Method, Pair, averaged


def segment_log_softmax(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """Log-softmax of (P,) scores within each group; `group` (P,) int64 in [0, groups)."""
    top = scores.new_full((groups,), -torch.inf).scatter_reduce(0, group, scores.detach(), "amax")
    shifted = scores - top[group]
    total = scores.new_zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total.log()[group]


def rank_mimicking_loss(
    scores_student: Tensor, scores_teacher: Tensor, group: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL between teacher and student score distributions over the positives of each object.

    Args:
        scores_student: (P,) scores of all positives of the batch, each for its object's class.
        scores_teacher: (P,) the same priors in the same order; no gradient flows here.
        group: (P,) int64, which object of the batch each positive serves, in any order.
        temperature: divides both score lists; the paper's tau.

    Returns:
        Scalar >= 0 in nats, mean over the objects that have a positive (their count averaged over ranks);
        0 and still in the graph when there are none. An object with one positive contributes 0.

    Raises:
        ShapeError: the tensors disagree; names the shapes and the usual cause.

    Source: Li et al., AAAI 2022, arXiv:2112.04840, section "Rank Mimicking".
    Differs: none known; see docs/methods/rm-and-pfi.md.
    """
    if not scores_student.shape == scores_teacher.shape == group.shape:
        raise ShapeError(
            "rm got scores of different priors",
            got=f"student {tuple(scores_student.shape)}, teacher {tuple(scores_teacher.shape)}, "
            f"group {tuple(group.shape)}",
            fix="teacher and student need equal priors: the same strides and anchors",
        )
    objects, group = group.unique(return_inverse=True)
    groups = len(objects)
    log_teacher = segment_log_softmax(scores_teacher.detach() / temperature, group, groups)
    log_student = segment_log_softmax(scores_student / temperature, group, groups)
    total = (log_teacher.exp() * (log_teacher - log_student)).sum()
    return total / averaged(total.new_full((), groups))


class RankMimicking(Method):
    """Rank Mimicking over the positives of the student's own assigner.

    Args:
        pair: the two models; they need equal classes and equal priors.
        score: rank class probabilities or logits. The paper does not say which; its weight 4 is for
            probabilities here, for on logits the loss is about 20 times larger. For GFL and ATSS logits, as
            measured.
        rank: by class score, by IoU of the decoded box with its object, or the sum of both losses (our
            reading of the paper's Tab. 4).
        quality: rank classes by their probability times the sigmoid of the head's quality (FCOS: centerness),
            as the head does before NMS; with `score: logit` by the logit of that product. The paper does not
            say. It has no part in `rank: loc`. True for ATSS and FCOS, as measured.
        temperature: the paper's tau.

    Source: Li et al., AAAI 2022, arXiv:2112.04840.  Differs: none known.
    """

    default_weight = 4.0
    # overlaps rank alike whatever the class scores are
    default_weight_when = {("rank", "loc"): 4.0, ("score", "logit"): 1.0}
    defaults_for = {
        "gfl": {"score": "logit"},
        "atss": {"score": "logit", "quality": True},
        "fcos": {"quality": True},
    }
    measured_for = ("gfl", "atss", "fcos")
    limits = {"temperature": (0.01, 100.0)}
    needs = ("cls_maps", "assignment")
    needs_when = {
        ("rank", "loc"): ("boxes",),
        ("rank", "both"): ("boxes",),
        ("quality", True): ("quality_maps",),
    }
    requires_equal = ("classes", "priors")
    unused_when = {("rank", "loc"): ("score", "quality")}

    def __init__(
        self,
        pair: Pair,
        *,
        score: Literal["sigmoid", "logit"] = "sigmoid",
        rank: Literal["cls", "loc", "both"] = "cls",
        quality: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(pair)
        self.score, self.rank, self.quality, self.temperature = score, rank, quality, temperature

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """The loss over all positives of the batch at once."""
        image, prior, group = assignment.positives(batch)
        rankings = {"cls": [self.class_scores], "loc": [box_scores], "both": [self.class_scores, box_scores]}
        losses = [
            rank_mimicking_loss(
                scores(student, batch, image, prior, group),
                scores(teacher, batch, image, prior, group),
                group,
                self.temperature,
            )
            for scores in rankings[self.rank]
        ]
        return torch.stack(losses).sum()

    def class_scores(
        self, outputs: DetectorOutputs, batch: Batch, image: Tensor, prior: Tensor, group: Tensor
    ) -> Tensor:
        """(P,) the score of each positive for its object's class."""
        labels = batch.gt_labels[group]
        scores = outputs.gather_logits(image, prior).gather(1, labels[:, None]).squeeze(1)
        if self.quality:
            scores = joint_logit(scores, outputs.gather_quality(image, prior))
        return scores.sigmoid() if self.score == "sigmoid" else scores


def box_scores(outputs: DetectorOutputs, batch: Batch, image: Tensor, prior: Tensor, group: Tensor) -> Tensor:
    """(P,) IoU in [0, 1] of each positive's decoded box with its object."""
    boxes = outputs.gather_boxes(image, prior)
    # without any, mmdet's overlaps would not be in the graph
    return bbox_overlaps(boxes, batch.gt_boxes[group], is_aligned=True) if len(boxes) else boxes.sum(1)
