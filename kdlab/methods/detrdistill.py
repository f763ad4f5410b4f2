"""DETRDistill: match the teacher's queries, imitate features where they look, take them as a prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.detectors.queries import Queries
from kdlab.methods._queries import matched, pair_costs, query_losses, taken
from kdlab.methods.base import Connector, Method, Pair, averaged

_LOOKED_AT = 100
_LEAST = 1e-2


def usefulness(teacher: Queries, batch: Batch) -> Tensor:
    """How well each query of the teacher covers an object.

    Args:
        teacher: of L layers and Q queries.
        batch: its objects.

    Returns:
        (L, B, Q) the largest IoU of the query's box with an object of its image; 1 in images without any.
    """
    scale = batch.image_shapes.flip(1).repeat(1, 2)[batch.gt_image]
    objects = batch.gt_boxes / scale
    images = torch.arange(len(batch.image_shapes), device=objects.device)
    elsewhere = batch.gt_image != images[:, None]
    best = []
    for boxes in bbox_cxcywh_to_xyxy(teacher.boxes):
        # a layer at a time, for it is with the objects of all images
        overlaps = bbox_overlaps(boxes.flatten(0, 1), objects).unflatten(0, boxes.shape[:2])
        # one more, for there may be no object at all
        best.append(F.pad(overlaps.masked_fill(elsewhere[:, None], 0), (1, 0)).amax(2))
    return torch.stack(best).where(~elsewhere.all(1)[None, :, None], 1)


def attended(teacher: Queries, worth: Tensor, feats: Sequence[Tensor]) -> list[Tensor]:
    """Where in maps the teacher's best queries look, for each layer of its decoder.

    Args:
        teacher: of L layers; its states have the channels of the maps.
        worth: (L, B, Q) of its queries, as `usefulness` gives it.
        feats: (B, C, H_l, W_l) the teacher's maps, level by level.

    Returns:
        (L, B, H_l, W_l) of each level, in (0, 1]: the similarity of each place to the 100 best pairs of query
        and class, each by probability times worth, at least 0.01, over the largest of the image's level.

    Source: Chang et al., ICCV 2023, arXiv:2211.10156, code.  Differs: none known.
    """
    scores = teacher.logits.sigmoid()
    classes = scores.shape[3]
    best, place = scores.flatten(2).topk(min(_LOOKED_AT, scores[0, 0].numel()), dim=2)
    query = place // classes
    states = torch.take_along_dim(F.normalize(teacher.states, dim=3), query[..., None], dim=2)
    weights = best * torch.take_along_dim(worth, query, dim=2)
    together = torch.einsum("lbn,lbnc->lbc", weights, states)
    alike = (torch.einsum("lbc,bchw->lbhw", together, F.normalize(feat, dim=1)) for feat in feats)
    masks = [level.clamp(min=_LEAST) for level in alike]
    return [mask / mask.amax((2, 3), keepdim=True) for mask in masks]


def matching_loss(student: Queries, teacher: Queries) -> Tensor:
    """How far the student's queries are from those of the teacher that they are matched with.

    Args:
        student: of L layers.
        teacher: of as many; no gradient flows here.

    Returns:
        Scalar >= 0: the mean over pairs, summed over layers. The teacher's entropy is part of it.

    Source: Chang et al., ICCV 2023, arXiv:2211.10156, code.  Differs: none known.
    """
    mine, theirs = matched(pair_costs(student, teacher))
    losses = query_losses(taken(student, mine), taken(teacher, theirs))
    return losses.sum() / averaged(losses.new_full((), losses[0].numel()))


class DETRDistill(Method):
    """DETRDistill on the layers of two decoders; where one has more, queries meet in the last ones.

    Args:
        pair: the two models, DETRs of kdlab's families.
        logits: whether the student's queries imitate those of the teacher that they are matched with.
        features: whether its neck maps imitate the teacher's where the teacher's queries look, once for each
            layer that those have.
        prior: whether the teacher's queries go through the student's decoder too, and serve the objects that
            the teacher's do, under the detector's own loss; both need equal channels for it.

    Source: Chang et al., ICCV 2023, arXiv:2211.10156, and its code for Deformable DETR, all factors 1.
    Differs: their code trains on contrasted queries too, which the paper does not name; a teacher of other
    channels meets the features through a 1x1 convolution.
    """

    default_weight = 1.0
    needs_when = {
        ("logits", True): ("queries",),
        ("features", True): ("queries", "feats"),
        ("prior", True): ("queries",),
    }
    requires_equal = ("classes",)
    requires_equal_when = {("prior", True): ("channels", "priors")}

    def __init__(self, pair: Pair, *, logits: bool = True, features: bool = True, prior: bool = True) -> None:
        super().__init__(pair)
        self.logits, self.features, self.prior = logits, features, prior
        self.connector = Connector() if features else None

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The parts that are turned on."""
        assert student.queries is not None and teacher.queries is not None and teacher.starts is not None
        layers = min(student.queries.layers, teacher.queries.layers)
        theirs = teacher.queries.last(layers)
        losses = {}
        if self.logits:
            losses["logits"] = matching_loss(student.queries.last(layers), theirs)
        if self.features:
            masks = attended(teacher.queries, usefulness(teacher.queries, batch), teacher.feats)
            levels = [
                (mask.square().sum(0) * (mine - target).square().mean(1)).mean()
                for mask, mine, target in zip(masks, student.feats, teacher.feats, strict=True)
            ]
            losses["features"] = torch.stack(levels).sum()
        if self.prior:
            again = student.decode_queries(teacher.starts).last(layers)
            losses["prior"] = student.query_loss(again, teacher.match_queries(theirs, batch), batch)
        return losses
