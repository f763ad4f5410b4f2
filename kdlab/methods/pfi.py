"""Prediction-guided Feature Imitation: imitate features where the two models' predictions differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._regions import cells_by_centre, union
from kdlab.methods.base import Connector, Method, Pair, averaged

Region = Literal["prediction", "whole", "positives", "negatives", "gt_mask"]


def prediction_difference(scores_student: Tensor, scores_teacher: Tensor) -> Tensor:
    """(B, H, W) the paper's P: mean squared difference of (B, A*K, H, W) scores over classes and anchors."""
    return (scores_teacher.detach() - scores_student).square().mean(1)


def feature_difference(feat_student: Tensor, feat_teacher: Tensor) -> Tensor:
    """(B, H, W) the paper's F: mean over channels of the squared difference of (B, C, H, W) maps."""
    return (feat_student - feat_teacher.detach()).square().mean(1)


def pfi_loss(prediction: Tensor, feature: Tensor) -> Tensor:
    """Feature difference, weighted by prediction difference.

    Args:
        prediction: (B, H, W) >= 0, P of one level.
        feature: (B, H, W) >= 0, F of the same level.

    Returns:
        Scalar >= 0, mean over cells of P * F; 0 where at every cell one of the two is 0.

    Source: Li et al., AAAI 2022, arXiv:2112.04840, section "Prediction-guided Feature Imitation".
    Differs: none known; see docs/methods/rm-and-pfi.md.
    """
    return (prediction * feature).mean()


def masked_feature_loss(mask: Tensor, feature: Tensor) -> Tensor:
    """Scalar: mean of `feature` (B, H, W) over the cells where `mask` (B, H, W) is 1, 0 without any.

    The cells are counted over the batch and averaged over ranks.
    """
    return (mask * feature).sum() / averaged(mask.sum())


class PredictionGuidedFeatureImitation(Method):
    """PFI, and the regions that the paper compares it with.

    Args:
        pair: the two models; they need equal classes and equal sizes of class maps.
        y: predictions compared as probabilities or as logits. The paper does not say; its weight 1.5 is
            small for probabilities (their squared differences are 1e-2 and less). All dense families
            have larger ones here, as measured.
        detach_weight: keep the gradient from flowing through P; the paper does not say.
        region: `prediction` is the method; the others imitate under a 0/1 mask (the paper's Tab. 5):
            all cells, cells with a positive prior, cells without one that the loss does not ignore, and
            cells whose centre lies in an object's box.

    Source: Li et al., AAAI 2022, arXiv:2112.04840.  Differs: none known.
    """

    default_weight = 1.5
    # each term starts as large as `prediction`'s at 1.5: measured on digits, see docs/methods/rm-and-pfi.md
    default_weight_when = {
        ("region", "whole"): 0.022,
        ("region", "positives"): 0.012,
        ("region", "negatives"): 0.027,
        ("region", "gt_mask"): 0.012,
    }
    defaults_for = {
        "gfl": {"weight": 1e2},
        "atss": {"weight": 1e3},
        "fcos": {"weight": 1e3},
        "retinanet": {"weight": 3e4},
    }
    measured_for = ("gfl", "atss", "fcos", "retinanet")
    needs = ("feats", "cls_maps")
    needs_when = {("region", "positives"): ("assignment",), ("region", "negatives"): ("assignment",)}
    requires_equal = ("classes", "strides", "anchors")
    unused_when = {
        ("region", "whole"): ("y", "detach_weight"),
        ("region", "positives"): ("y", "detach_weight"),
        ("region", "negatives"): ("y", "detach_weight"),
        ("region", "gt_mask"): ("y", "detach_weight"),
    }
    connector = Connector(kernel=1)

    def __init__(
        self,
        pair: Pair,
        *,
        y: Literal["sigmoid", "logit"] = "sigmoid",
        detach_weight: bool = False,
        region: Literal["prediction", "whole", "positives", "negatives", "gt_mask"] = "prediction",
    ) -> None:
        super().__init__(pair)
        self.y, self.detach_weight, self.region = y, detach_weight, region

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Mean over the levels of each level's loss."""
        losses = []
        for feat_student, feat_teacher, level_student, level_teacher in zip(
            student.feats, teacher.feats, student.levels, teacher.levels, strict=True
        ):
            feature = feature_difference(feat_student, feat_teacher)
            if self.region == "prediction":
                scores = [
                    self.scores(student.cls_maps[level_student]),
                    self.scores(teacher.cls_maps[level_teacher]),
                ]
                prediction = prediction_difference(*scores)
                losses.append(pfi_loss(prediction.detach() if self.detach_weight else prediction, feature))
            else:
                mask = REGIONS[self.region](batch, student, assignment, level_student)
                losses.append(masked_feature_loss(mask.to(feature), feature))
        return torch.stack(losses).mean()

    def scores(self, cls_map: Tensor) -> Tensor:
        """A class map as it is compared."""
        return cls_map.sigmoid() if self.y == "sigmoid" else cls_map


def _assigned(student: DetectorOutputs, assignment: Assignment, level: int) -> Tensor:
    """(B, H, W, A) the objects of a level's priors."""
    first, last = student.priors.first[level : level + 2]
    height, width = student.priors.sizes[level]
    return assignment.gt_index[:, first:last].unflatten(1, (height, width, -1))


def whole(batch: Batch, student: DetectorOutputs, assignment: Assignment, level: int) -> Tensor:
    """(B, H, W) all cells."""
    return torch.ones_like(student.cls_maps[level][:, 0])


def positives(batch: Batch, student: DetectorOutputs, assignment: Assignment, level: int) -> Tensor:
    """(B, H, W) cells of which a prior serves an object."""
    return (_assigned(student, assignment, level) >= 0).any(-1)


def negatives(batch: Batch, student: DetectorOutputs, assignment: Assignment, level: int) -> Tensor:
    """(B, H, W) cells of which no prior serves an object and not all are ignored."""
    gt_index = _assigned(student, assignment, level)
    return (gt_index < 0).all(-1) & (gt_index != -2).any(-1)


def gt_mask(batch: Batch, student: DetectorOutputs, assignment: Assignment, level: int) -> Tensor:
    """(B, H, W) cells whose centre lies in a box, whatever the box's size."""
    ranges = cells_by_centre(batch.gt_boxes, student.adapter.facts.strides[level])
    return union(ranges, student.priors.sizes[level], batch)


REGIONS: dict[str, Callable[[Batch, DetectorOutputs, Assignment, int], Tensor]] = {
    "whole": whole,
    "positives": positives,
    "negatives": negatives,
    "gt_mask": gt_mask,
}
