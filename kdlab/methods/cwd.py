"""Channel-wise Distillation (CWD): copy where on the map each channel is active, and not how much."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair

_EPSILON = 1e-5  # BatchNorm's


def normalised(feat: Tensor) -> Tensor:
    """(B, C, H, W) with mean 0 and variance 1 of each channel over images and cells; 0 where all is equal."""
    return (feat - feat.mean((0, 2, 3), keepdim=True)) * (
        feat.var((0, 2, 3), correction=0, keepdim=True) + _EPSILON
    ).rsqrt()


def channel_wise_loss(map_student: Tensor, map_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between teacher and student distributions of each channel over the cells of one level.

    Args:
        map_student: (B, C, H, W) neck maps as the connector made them, or class logits.
        map_teacher: (B, C, H, W) of the same kind; no gradient flows here.
        temperature: divides both maps; the paper's tau.

    Returns:
        Scalar >= 0 in nats: tau^2 times the mean over images and channels of the KL over cells. A constant
        added to a channel changes nothing, and a map of one cell costs 0.

    Source: Shu et al., ICCV 2021, arXiv:2011.13256.  Differs: none known.
    """
    log_student = (map_student / temperature).flatten(2).log_softmax(2)
    log_teacher = (map_teacher.detach() / temperature).flatten(2).log_softmax(2)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(2)
    return temperature**2 * divergence.mean()


class ChannelWiseDistillation(Method):
    """CWD of neck maps or of class logits; an arm may have one of each: `cwd@neck` and `cwd@cls`.

    Args:
        pair: the two models; class logits need equal classes, strides and anchors.
        on: `neck` maps (weight 10), or `cls`, each class logit of each anchor as a channel (weight 5).
        temperature: the paper's tau.
        normalise: standardise each channel of a neck map over the batch first, of the student behind a 1x1
            convolution that is trained also where channels agree; weight 1. MMYOLO distils RTMDet so.

    Source: Shu et al., ICCV 2021, arXiv:2011.13256; weights of mmrazor's detection recipes; `normalise` of
    MMYOLO's RTMDet recipes.
    Differs: where the neck's channels differ a 1x1 convolution is trained, mmrazor's loss has none.
    """

    default_weight = 10.0
    default_weight_when = {("on", "cls"): 5.0, ("normalise", True): 1.0}
    unused_when = {("on", "cls"): ("normalise",)}
    limits = {"temperature": (0.01, 100.0)}
    needs_when = {("on", "neck"): ("feats",), ("on", "cls"): ("cls_maps",)}
    requires_equal_when = {("on", "cls"): ("classes", "strides", "anchors")}

    def __init__(
        self,
        pair: Pair,
        *,
        on: Literal["neck", "cls"] = "neck",
        temperature: float = 1.0,
        normalise: bool = False,
    ) -> None:
        super().__init__(pair)
        self.on, self.temperature, self.normalise = on, temperature, normalise
        self.connector = Connector(kernel=1, always=normalise) if on == "neck" else None

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Sum over the levels of each level's loss."""
        pairs = zip(self.maps(student), self.maps(teacher), strict=True)
        losses = [channel_wise_loss(mine, theirs, self.temperature) for mine, theirs in pairs]
        return torch.stack(losses).sum()

    def maps(self, outputs: DetectorOutputs) -> list[Tensor]:
        """The maps that are compared, by level."""
        if self.on == "cls":
            return outputs.cls_maps
        return [normalised(feat) for feat in outputs.feats] if self.normalise else outputs.feats
