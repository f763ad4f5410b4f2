"""Masked Generative Distillation (MGD): generate the teacher's maps from a part of the student's cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair


def masked(feat: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """(B, C, H, W) with a random share of cells set to 0, for all channels alike and each image anew.

    Args:
        feat: (B, C, H, W); the gradient flows through the cells that are left.
        share: the probability in [0, 1] that a cell is set to 0; the paper's lambda.
        generator: on the CPU, so that a seed gives the same cells on every device.
    """
    kept = torch.rand(len(feat), 1, *feat.shape[-2:], generator=generator) >= share
    return feat * kept.to(feat)


def generation_loss(generated: Tensor, feat_teacher: Tensor) -> Tensor:
    """Squared difference of a generated map and the teacher's, of one level.

    Args:
        generated: (B, C, H, W) what the generator made of the student's masked map.
        feat_teacher: (B, C, H, W); no gradient flows here.

    Returns:
        Scalar >= 0, sum over channels and cells, mean over images. A student that equals its teacher costs
        what the generator lacks, not 0.

    Source: Yang et al., ECCV 2022, arXiv:2205.01529.  Differs: none known.
    """
    return F.mse_loss(generated, feat_teacher.detach(), reduction="sum") / len(generated)


class MaskedGenerativeDistillation(Method):
    """MGD: the student's cells are to say enough of each other to give the teacher's map.

    Args:
        pair: the two models.
        masked_share: of the cells, which are hidden from the generator; the paper's lambda. The default is
            that of one-stage detectors, Faster R-CNN's is 0.45.

    A generator is trained for each matched level.

    Source: Yang et al., ECCV 2022, arXiv:2205.01529; weights of its code (2e-5, and 5e-7 for two stages).
    Differs: neck outputs rather than `neck.fpn_convs`, equal for a plain FPN. The recipes there start the
        student's neck and head from the teacher's (`inherit: true` here) and clip gradients at 35.
    """

    default_weight = 2e-5
    defaults_for = {"faster_rcnn": {"weight": 5e-7, "masked_share": 0.45}}
    limits = {"masked_share": (0.0, 0.99)}
    needs = ("feats",)
    connector = Connector(kernel=1)

    def __init__(self, pair: Pair, *, masked_share: float = 0.65) -> None:
        super().__init__(pair)
        self.masked_share = masked_share
        channels = pair.teacher.channels
        self.generators = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in pair.levels
        )

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Sum over the levels of each level's loss."""
        losses = []
        for generator, mine, theirs in zip(self.generators, student.feats, teacher.feats, strict=True):
            generated = generator(masked(mine, self.masked_share, batch.generator))
            losses.append(generation_loss(generated, theirs))
        return torch.stack(losses).sum()
