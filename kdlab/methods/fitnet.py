"""FitNet: copy the teacher's neck maps as they are, at every cell alike."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair


def whole_map_loss(feat_student: Tensor, feat_teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps of one level.

    Args:
        feat_student: (B, C, H, W) as the connector made them.
        feat_teacher: (B, C, H, W); no gradient flows here.

    Returns:
        Scalar >= 0, mean over images, channels and cells; 0 at equal maps.

    Source: Romero et al., ICLR 2015, arXiv:1412.6550, carried to neck maps as detection papers do; the form
    of HEAD's baseline (Wang et al., ECCV 2022).  Differs: none known.
    """
    return F.mse_loss(feat_student, feat_teacher.detach())


class FitNet(Method):
    """Whole neck maps, the plainest imitation and the one that others are to beat.

    Each level has a 1x1 convolution, also where the channels agree. The weight is HEAD's, with the sum over
    levels.

    Args:
        pair: the two models.
        projector: what brings the student's maps to the teacher's channels: `conv`, or `mlp`, two 1x1
            convolutions with a ReLU between them (second-hand: CWT).

    Source: Romero et al., ICLR 2015, arXiv:1412.6550; weight and connector of HEAD.
    Differs: HEAD also starts the student's head from the teacher's; here that is `inherit: true` of an arm.
    """

    default_weight = 1.0
    needs = ("feats",)

    def __init__(self, pair: Pair, *, projector: Literal["conv", "mlp"] = "conv") -> None:
        super().__init__(pair)
        self.connector = Connector(kernel=1, always=True, mlp=projector == "mlp")

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Sum over the levels of each level's loss."""
        pairs = zip(student.feats, teacher.feats, strict=True)
        return torch.stack([whole_map_loss(mine, theirs) for mine, theirs in pairs]).sum()
