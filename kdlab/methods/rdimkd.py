"""RdimKD: copy the teacher's neck maps in a random subspace of their channels, and leave the rest free."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair


def projected_loss(feat_student: Tensor, feat_teacher: Tensor, projection: Tensor) -> Tensor:
    """Mean squared difference of two maps of one level after a projection of their channels.

    Args:
        feat_student: (B, C, H, W) as the connector made them.
        feat_teacher: (B, C, H, W); no gradient flows here.
        projection: (C, D) with orthonormal columns, D <= C; fixed.

    Returns:
        Scalar >= 0, mean over images, cells and the D dimensions; 0 where the maps differ only in what the
        projection drops. For a random projection it is on average the mean over the C channels.

    Source: Guo et al., 2023, arXiv:2312.08700.  Differs: none known.
    """
    # one projection of the difference costs half of two
    difference = feat_student - feat_teacher.detach()
    return torch.einsum("cd,bchw->bdhw", projection, difference).square().mean()


class DimensionalityReduction(Method):
    """RdimKD by a random projection, which is drawn once and is the same on all levels.

    It is kept in checkpoints and trains nothing. One for all levels, because they share a head and so mean
    the same by a channel. Weight 1, at which the loss is as large as `fitnet`'s, is ours (unverified).

    Args:
        pair: the two models.
        share: of the teacher's channels, the dimensions of the subspace (0.5: unverified), at least one.

    Source: Guo et al., 2023, arXiv:2312.08700, the variant with a random matrix.
    Differs: number of dimensions, weight and use on all levels are not verified. The variants by principal
        components and by an auto-encoder need a pass over the teacher's maps beforehand and are left out.
    """

    default_weight = 1.0
    limits = {"share": (0.001, 1.0)}
    needs = ("feats",)
    connector = Connector(kernel=1)

    def __init__(self, pair: Pair, *, share: float = 0.5) -> None:
        super().__init__(pair)
        channels = pair.teacher.channels
        projection = torch.empty(channels, max(1, round(share * channels)))
        self.register_buffer("projection", nn.init.orthogonal_(projection))

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Sum over the levels of each level's loss."""
        pairs = zip(student.feats, teacher.feats, strict=True)
        return torch.stack([projected_loss(mine, theirs, self.projection) for mine, theirs in pairs]).sum()
