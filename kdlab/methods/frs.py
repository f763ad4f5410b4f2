"""Feature Richness Score: imitate features and classes where the teacher sees any object, labelled or not."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from mmdet.utils import reduce_mean
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair


def richness(cls_map_teacher: Tensor) -> Tensor:
    """(B, H, W) in (0, 1): the teacher's best class probability at each cell, over classes and anchors.

    Args:
        cls_map_teacher: (B, A*K, H, W) logits of one level; no gradient flows here.
    """
    return cls_map_teacher.detach().amax(1).sigmoid()


def rich_mean(values: Tensor, score: Tensor) -> Tensor:
    """Mean of one level's values over its cells, each weighted by the cell's richness.

    Args:
        values: (B, H, W) of one level.
        score: (B, H, W) in [0, 1], the same cells' richness.

    Returns:
        Scalar; the sum of richness is averaged over ranks. 0 and still in the graph where no cell is rich.
    """
    # no count, so no floor of 1: a level of few cells is as poor as that
    return (values * score).sum() / reduce_mean(score.sum()).clamp(min=1e-6)


def frs_feature_loss(feat_student: Tensor, feat_teacher: Tensor, score: Tensor) -> Tensor:
    """Squared difference of features where the teacher is rich.

    Args:
        feat_student: (B, C, H, W) of one level, through the connector.
        feat_teacher: (B, C, H, W) of the same level; no gradient flows here.
        score: (B, H, W) in [0, 1], the level's richness.

    Returns:
        Scalar >= 0: summed over channels, averaged over cells by their richness; 0 at equal features.

    Source: Du et al., NeurIPS 2021, section "Feature Richness Score".  Differs: none known.
    """
    return rich_mean((feat_student - feat_teacher.detach()).square().sum(1), score)


def frs_class_loss(cls_map_student: Tensor, cls_map_teacher: Tensor, score: Tensor) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities where the teacher is rich.

    Args:
        cls_map_student: (B, A*K, H, W) logits of one level.
        cls_map_teacher: (B, A*K, H, W) logits of the same level; no gradient flows here.
        score: (B, H, W) in [0, 1], the level's richness.

    Returns:
        Scalar >= 0: summed over classes and anchors, averaged over cells by their richness. At equal logits
        it is the teacher's weighted entropy, not 0, and without gradient.

    Source: Du et al., NeurIPS 2021, the authors' code for one-stage heads.  Differs: none known.
    """
    target = cls_map_teacher.detach().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(cls_map_student, target, reduction="none")
    return rich_mean(entropy.sum(1), score)


class FeatureRichnessScore(Method):
    """FRS over neck and class maps of the same levels; it needs no ground truth.

    Args:
        pair: the two models; they need equal classes and equal sizes of class maps.
        feature: factor of the feature part; the authors' configs have 0.005 for RetinaNet, 0.1 for GFL, 0.01
            for FCOS. ATSS has FCOS's (unverified: the authors have none).
        cls: factor of the class part: 0.02 for RetinaNet, 0.05 for GFL and FCOS, and for ATSS (unverified).
        projector: what brings the student's maps to the teacher's channels: `conv`, 3x3, or `mlp`, two 1x1
            convolutions with a ReLU between them (Ultralytics' score-guided features).

    Source: Du et al., NeurIPS 2021, "Distilling Object Detectors with Feature Richness", and their code.
    Differs: the ramp over the first 500 iterations is any recipe's `warmup_iters`, not the method's.
    """

    default_weight = 1.0
    defaults_for = {
        "gfl": {"feature": 0.1, "cls": 0.05},
        "fcos": {"feature": 0.01, "cls": 0.05},
        "atss": {"feature": 0.01, "cls": 0.05},
    }
    needs = ("feats", "cls_maps")
    requires_equal = ("classes", "strides", "anchors")

    def __init__(
        self,
        pair: Pair,
        *,
        feature: float = 0.005,
        cls: float = 0.02,
        projector: Literal["conv", "mlp"] = "conv",
    ) -> None:
        super().__init__(pair)
        self.feature, self.cls = feature, cls
        self.connector = Connector(kernel=3, always=True, mlp=projector == "mlp")

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """Both parts, each the sum over the levels."""
        feature, cls = [], []
        for feat_student, feat_teacher, level_student, level_teacher in zip(
            student.feats, teacher.feats, student.levels, teacher.levels, strict=True
        ):
            cls_maps = student.cls_maps[level_student], teacher.cls_maps[level_teacher]
            score = richness(cls_maps[1])
            feature.append(frs_feature_loss(feat_student, feat_teacher, score))
            cls.append(frs_class_loss(*cls_maps, score))
        return {
            "feature": self.feature * torch.stack(feature).sum(),
            "cls": self.cls * torch.stack(cls).sum(),
        }
