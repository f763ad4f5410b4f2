"""Pearson Distillation (PKD): copy the pattern of each channel and leave its mean and scale free."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair

EPSILON = 1e-6


def standardised_channels(feat: Tensor, correction: int = 0) -> Tensor:
    """(B, C, H, W) with mean 0 and deviation 1 of each channel over all images and cells.

    Args:
        feat: (B, C, H, W); the gradient flows through its mean and deviation too.
        correction: 0 for the deviation of these values, 1 for the unbiased estimate from them.

    A channel that is constant, such as one of a single value, becomes 0 and stays in the graph. For more than
    one value its gradient is then up to 1 / EPSILON times that of the result.
    """
    over = (0, 2, 3)
    values = feat.numel() // feat.shape[1]
    # the unbiased deviation of one value is not a number
    deviation = feat.std(over, keepdim=True, correction=min(correction, values - 1))
    return (feat - feat.mean(over, keepdim=True)) / (deviation + EPSILON)


def pearson_loss(feat_student: Tensor, feat_teacher: Tensor, correction: int = 0) -> Tensor:
    """Half the mean squared difference of two standardised_channels maps of one level.

    Args:
        feat_student: (B, C, H, W) as the connector made them.
        feat_teacher: (B, C, H, W); no gradient flows here.
        correction: see `standardised_channels`.

    Returns:
        Scalar in [0, 2]: 1 - r, r the mean over channels of Pearson's correlation; with `correction` 1 that
        times (n - 1) / n for n values a channel. A channel that is constant in one map costs 1/2, in both 0.

    Source: Cao et al., NeurIPS 2022, arXiv:2207.02039.
    Differs: without `correction` the deviation is that of the values themselves, so that 1 - r is exact.
    """
    pairs = (
        standardised_channels(feat_student, correction),
        standardised_channels(feat_teacher.detach(), correction),
    )
    return F.mse_loss(*pairs) / 2


class PearsonDistillation(Method):
    """PKD: neck maps compared by correlation, so that teachers of other families can be copied.

    The statistics are over the images of one GPU, so the loss depends on the batch of one GPU. The weights
    are published for RetinaNet (10, here of all one-stage families but GFL: unverified for FCOS and ATSS),
    for Faster R-CNN (6) and by CrossKD for GFL (6).

    Args:
        pair: the two models.
        parity: the unbiased deviation, as the reference has it. Then the loss is (n - 1) / n of 1 - r, which
            depends on the number n of values, and so on the batch; of notice on the coarsest levels only.

    Source: Cao et al., NeurIPS 2022, arXiv:2207.02039; weights of mmrazor's recipes and of CrossKD's.
    Differs: where channels differ a 1x1 convolution is trained, the reference refuses; without `parity` the
        deviation is not the unbiased one; all matched levels, mmrazor's recipes use the first four.
    """

    default_weight = 10.0
    defaults_for = {"gfl": {"weight": 6.0}, "faster_rcnn": {"weight": 6.0}}
    needs = ("feats",)
    connector = Connector(kernel=1)

    def __init__(self, pair: Pair, *, parity: bool = False) -> None:
        super().__init__(pair)
        self.correction = int(parity)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Sum over the levels of each level's loss."""
        pairs = zip(student.feats, teacher.feats, strict=True)
        return torch.stack([pearson_loss(mine, theirs, self.correction) for mine, theirs in pairs]).sum()
