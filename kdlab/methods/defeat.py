"""Decoupled Features: imitate features within objects and outside, and proposals of both kinds, apart."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._regions import cells_inside, level_of, union
from kdlab.methods.base import Connector, Method, Pair, averaged


def decoupled_feature_loss(feat_student: Tensor, feat_teacher: Tensor, mask: Tensor) -> Tensor:
    """Half the mean squared difference of features under a mask.

    Args:
        feat_student: (B, C, H, W) of one level.
        feat_teacher: (B, C, H, W); no gradient flows here.
        mask: (B, H, W) of 0 and 1.

    Returns:
        Scalar >= 0, half the mean over channels and masked cells, whose count over the batch is averaged over
        ranks and at least 1; 0 and in the graph under an empty mask.

    Source: Guo et al., CVPR 2021, arXiv:2103.14475, with the normaliser of the authors' code.
    Differs: none known.
    """
    error = (feat_student - feat_teacher.detach()).square().mean(1)
    return (mask * error).sum() / (2 * averaged(mask.sum()))


def proposal_loss(logits_student: Tensor, logits_teacher: Tensor, chosen: Tensor) -> Tensor:
    """KL of class distributions over some of the proposals.

    Args:
        logits_student: (R, K+1) of the student's proposals.
        logits_teacher: (R, K+1) of the same proposals in the same order; no gradient flows here.
        chosen: (R,) bool.

    Returns:
        Scalar >= 0 in nats, mean over chosen proposals (their count averaged over ranks, at least 1); 0 and
        in the graph without any.

    Source: Guo et al., CVPR 2021, arXiv:2103.14475, at the temperature 1 of its configs.
    Differs: none known.
    """
    log_student, log_teacher = logits_student.log_softmax(1), logits_teacher.detach().log_softmax(1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1)
    return (divergence * chosen).sum() / averaged(chosen.sum())


class DecoupledFeatures(Method):
    """DeFeat: its neck part for any student, its head part for two-stage ones.

    The factors are those of the authors' Faster R-CNN on VOC; no others are published. An object lies on one
    level, by its size: `_regions.level_of`. With strides from 4 on this is the authors' rule; theirs keeps
    56 px for the first level whatever its stride, here 14 cells of it.

    Args:
        pair: the two models; parts of the head need equal classes.
        parts: of the neck, of the head, or both. Proposals are those that the student's loss sampled, and
            both heads see them.
        foreground: factor of features within objects.
        background: factor of features outside.
        head_foreground: factor of proposals that serve an object.
        head_background: factor of those that serve none.

    Source: Guo et al., CVPR 2021, arXiv:2103.14475, and the authors' code.
    Differs: a box narrower or lower than a cell covers one cell across its other side, there one in all.
    Their head compares at proposals that the teacher's loss sampled, here at the student's.
    """

    default_weight = 1.0
    needs = ("feats",)
    needs_when = {("parts", "head"): ("roi_outputs",), ("parts", "both"): ("roi_outputs",)}
    requires_equal_when = {("parts", "head"): ("classes",), ("parts", "both"): ("classes",)}
    unused_when = {
        ("parts", "neck"): ("head_foreground", "head_background"),
        ("parts", "head"): ("foreground", "background"),
    }

    def __init__(
        self,
        pair: Pair,
        *,
        parts: Literal["neck", "head", "both"] = "neck",
        foreground: float = 3.0,
        background: float = 12.0,
        head_foreground: float = 2.0,
        head_background: float = 2.0,
    ) -> None:
        super().__init__(pair)
        self.parts = parts
        self.neck_factors = {"foreground": foreground, "background": background}
        self.head_factors = {"head_foreground": head_foreground, "head_background": head_background}
        if parts != "head":
            self.connector = Connector(kernel=3, init="near_zero", always=True)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """Each part with its factor: of features the mean over levels, of proposals over those of a kind."""
        losses = {}
        if self.parts != "head":
            losses |= self.neck(batch, student, teacher)
        if self.parts != "neck":
            losses |= self.head(student, teacher)
        return losses

    def neck(self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs) -> dict[str, Tensor]:
        """Features within and outside the objects of each level."""
        losses: dict[str, list[Tensor]] = {name: [] for name in self.neck_factors}
        own = level_of(batch.gt_boxes, teacher.level_strides)
        for level, (mine, theirs) in enumerate(zip(student.feats, teacher.feats, strict=True)):
            ranges = cells_inside(batch.gt_boxes, teacher.level_strides[level])
            inside = union(ranges, theirs.shape[-2:], batch, own == level)
            for name, mask in (("foreground", inside), ("background", 1 - inside)):
                losses[name].append(decoupled_feature_loss(mine, theirs, mask))
        return {name: factor * torch.stack(losses[name]).mean() for name, factor in self.neck_factors.items()}

    def head(self, student: DetectorOutputs, teacher: DetectorOutputs) -> dict[str, Tensor]:
        """Classes of the student's proposals, of those that serve an object and of the others."""
        assert student.rois is not None
        logits_student = student.roi_outputs(student.rois).cls_logits
        with torch.no_grad():
            logits_teacher = teacher.roi_outputs(student.rois).cls_logits
        positive = student.rois.gt_index >= 0
        kinds = {"head_foreground": positive, "head_background": ~positive}
        return {
            name: factor * proposal_loss(logits_student, logits_teacher, kinds[name])
            for name, factor in self.head_factors.items()
        }
