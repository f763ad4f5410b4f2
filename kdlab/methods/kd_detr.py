"""KD-DETR: both decoders answer the same queries, the teacher's own and random ones, and are to agree."""

from __future__ import annotations

import torch
from mmdet.utils import reduce_mean
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.detectors.queries import Queries, Starts
from kdlab.methods._queries import query_losses
from kdlab.methods.base import Method, Pair


def random_starts(like: Starts, points: int, generator: torch.Generator | None) -> Starts:
    """Queries that resemble a model's own: content and position normal by channel, boxes anywhere.

    Args:
        like: the model's own, (B, Q, C).
        points: how many for each image.
        generator: on the CPU.
    """

    def resembling(rows: Tensor) -> Tensor:
        drawn = torch.randn(len(rows), points, rows.shape[2], generator=generator).to(rows)
        return drawn * rows.std((0, 1), correction=0) + rows.mean((0, 1))

    boxes = None
    if like.boxes is not None:
        boxes = torch.rand(len(like.boxes), points, 4, generator=generator).to(like.boxes)
    position = None if like.position is None else resembling(like.position)
    return Starts(resembling(like.content), position, boxes)


def agreement_loss(student: Queries, teacher: Queries) -> Tensor:
    """How far two decoders are apart on the same queries, those counting more that the teacher is sure of.

    Args:
        student: of L layers.
        teacher: of as many; no gradient flows here.

    Returns:
        Scalar >= 0: the mean over queries and images, by the teacher's largest probability, of its Kullback-
        Leibler divergence + 5 L1 + 2 (1 - GIoU), summed over layers.
    """
    target = teacher.logits.detach().sigmoid()
    weights = target.amax(3)
    # cross-entropy without what the teacher itself leaves open
    entropy = -(torch.special.xlogy(target, target) + torch.special.xlogy(1 - target, 1 - target)).sum(3)
    losses = weights * (query_losses(student, teacher) - entropy)
    return (losses.sum((1, 2)) / reduce_mean(weights.sum((1, 2))).clamp(min=1e-6)).sum()


class KDDETR(Method):
    """KD-DETR on the layers of two decoders; where one has more, the last ones meet.

    Args:
        pair: the two models, DETRs of kdlab's families whose queries begin alike.
        points: random queries for each image, drawn in every step; 0 leaves the teacher's own alone.

    Source: Wang et al., CVPR 2024, arXiv:2211.08071, second-hand: its repository has no code.
    Differs: unknown are how random queries are drawn, whether the parts have other factors than DETR's 1, 5
    and 2, and by what the sum is normalised.
    """

    default_weight = 1.0
    needs = ("queries",)
    requires_equal = ("classes", "channels", "priors")

    def __init__(self, pair: Pair, *, points: int = 300) -> None:
        super().__init__(pair)
        self.points = points

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The part on the teacher's own queries and that on random ones."""
        assert student.queries is not None and teacher.queries is not None and teacher.starts is not None
        layers = min(student.queries.layers, teacher.queries.layers)
        mine = student.decode_queries(teacher.starts).last(layers)
        losses = {"own": agreement_loss(mine, teacher.queries.last(layers))}
        if self.points:
            starts = random_starts(teacher.starts, self.points, batch.generator)
            with torch.no_grad():
                theirs = teacher.decode_queries(starts).last(layers)
            losses["random"] = agreement_loss(student.decode_queries(starts).last(layers), theirs)
        return losses
