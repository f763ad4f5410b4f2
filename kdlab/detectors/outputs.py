"""All that a method sees of a batch and of a detector, so that M methods and D detectors cost M + D files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.queries import Queries, Starts

if TYPE_CHECKING:
    from kdlab.detectors.base import Adapter

Branch = Literal["cls", "reg"]


@dataclass(frozen=True)
class Batch:
    """The ground truth of a batch, all images together, and where training stands.

    Args:
        gt_boxes: (G, 4) xyxy in input pixels.
        gt_labels: (G,) int64 in [0, K).
        gt_image: (G,) int64, the image of each object; ascending.
        image_shapes: (B, 2) height and width before padding.
        pad_shapes: (B, 2) after padding to the divisor, before stacking.
        input_shape: height and width of the stacked input.
        iteration: finished iterations.
        max_iterations: iterations of the whole schedule.
        generator: the method's own random numbers, drawn on the CPU whatever the device.
    """

    gt_boxes: Tensor
    gt_labels: Tensor
    gt_image: Tensor
    image_shapes: Tensor
    pad_shapes: Tensor
    input_shape: tuple[int, int]
    iteration: int = 0
    max_iterations: int = 1
    generator: torch.Generator | None = None

    @cached_property
    def first_object(self) -> Tensor:
        """(B,) the place in `gt_boxes` of each image's first object."""
        images = torch.arange(len(self.image_shapes), device=self.gt_image.device)
        return torch.searchsorted(self.gt_image, images)

    @cached_property
    def numbers(self) -> list[list[int]]:
        """Objects, height and width of each image, on the host: a GPU is waited for once."""
        images = torch.arange(len(self.image_shapes), device=self.gt_image.device)
        counts = (self.gt_image == images[:, None]).sum(1, keepdim=True)
        found: list[list[int]] = torch.cat([counts, self.image_shapes], dim=1).T.tolist()
        return found


@dataclass(frozen=True)
class Assignment:
    """Which prior serves which object, as the student's own loss decided in this step.

    Args:
        gt_index: (B, N) int64 into the image's objects; -1 background, -2 ignored by the loss.
        label_weights: (B, N) the weight of each prior in the classification loss.
        num_positives: () positives of the batch, averaged over ranks, at least 1.
        avg_factor: () positives of each image, at least 1, summed over the batch and averaged over ranks: the
            normaliser of sums over all priors, of which an image without objects has as many as another.
            Left out it is `num_positives`.
    """

    gt_index: Tensor
    label_weights: Tensor
    num_positives: Tensor
    avg_factor: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.avg_factor is None:
            object.__setattr__(self, "avg_factor", self.num_positives)

    def positives(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """All positives of the batch: image (P,), prior (P,), object (P,) counted over the batch."""
        image, prior = (self.gt_index >= 0).nonzero(as_tuple=True)
        return image, prior, batch.first_object[image] + self.gt_index[image, prior]


@dataclass(frozen=True)
class Priors:
    """The anchors or points of a head for one input size, in flat order: level, row, column, anchor.

    Args:
        boxes: (N, 4) xyxy anchors, or (N, 2) points, in input pixels.
        strides: (N,) the stride of each one's level.
        level: (N,) int64.
        first: the flat place of each level's first prior, and N at the end.
        sizes: (height, width) of each level's map.
    """

    boxes: Tensor
    strides: Tensor
    level: Tensor
    first: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def per_level(self) -> list[int]:
        """How many priors each level has."""
        return [last - first for first, last in pairwise(self.first)]


@dataclass(frozen=True)
class Rois:
    """The proposals on which a two-stage student was trained in this step.

    Args:
        boxes: (R, 5) the image of each and xyxy in input pixels.
        labels: (R,) int64, the class of its object; K for background.
        gt_index: (R,) int64 into the image's objects; -1 background.
    """

    boxes: Tensor
    labels: Tensor
    gt_index: Tensor


class RoiOutputs(NamedTuple):
    """What a second stage says of R proposals: (R, K+1) class logits, (R, 4K) or (R, 4) box deltas."""

    cls_logits: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class Facts:
    """What can be known of a detector without weights or data.

    Args:
        detector: its family, or mmdet's name in small letters where kdlab has none for its head.
        provides: fields of the interface that it has.
        num_classes: K.
        strides: of the levels, ascending.
        channels: C of the neck's maps.
        head: a description of the head's layers; equal heads can exchange towers.
        trains: whether kdlab's data sets hold what its loss needs.
        anchors: A, priors a cell; 0 for a head without priors.
        priors: a hash of the priors on a fixed input size; of a DETR what its queries begin as.
        tower_depth: convolutions of each of the head's branches.
        softmax: True where class scores come from a softmax over K + 1.
        bins: R + 1 distances of which a head predicts a distribution for each edge; 0 without.
    """

    detector: str
    provides: tuple[str, ...]
    num_classes: int
    strides: tuple[int, ...]
    channels: int
    head: str
    trains: bool = True
    anchors: int = 0
    priors: str = ""
    tower_depth: int = 0
    softmax: bool = False
    bins: int = 0


@dataclass(frozen=True)
class DetectorOutputs:
    """One model's view of a batch. What a detector cannot give is None, never guessed.

    Args:
        adapter: of the model.
        neck_maps: over all levels, (B, C, H_l, W_l) as the head reads them.
        feats: those of the matched levels; a student's have passed the method's connector.
        levels: which of all levels `feats` are.
        cls_maps: over all levels, (B, A*K, H_l, W_l) logits; of a head whose classes mean nothing without its
            objectness, of the product of both.
        box_maps: over all levels, raw and as in training mode, for teacher and student alike.
        quality_maps: over all levels, (B, A, H_l, W_l) logits of centerness or IoU.
        towers: pre-activation maps by (branch, conv), over all levels; only those that a method asked for.
        rois: the proposals of a two-stage student's own loss; a teacher has none.
        queries: what a DETR's decoder says, layer by layer.
        memory: a DETR's maps behind its encoder, over all levels, (B, C, H_l, W_l).
        starts: the queries with which a DETR's decoder began.
        decoding: what else it was given, of the images.
    """

    adapter: Adapter
    neck_maps: list[Tensor]
    feats: list[Tensor]
    levels: tuple[int, ...]
    cls_maps: list[Tensor] | None = None
    box_maps: list[Tensor] | None = None
    quality_maps: list[Tensor] | None = None
    towers: dict[tuple[Branch, int], list[Tensor]] = field(default_factory=dict)
    rois: Rois | None = None
    own_roi_outputs: RoiOutputs | None = None
    queries: Queries | None = None
    memory: list[Tensor] | None = None
    starts: Starts | None = None
    decoding: dict[str, Any] = field(default_factory=dict)

    @property
    def level_strides(self) -> tuple[int, ...]:
        """The strides of `feats`."""
        return tuple(self.adapter.facts.strides[level] for level in self.levels)

    @cached_property
    def priors(self) -> Priors:
        """The priors of this input size."""
        sizes = [tuple(cls_map.shape[-2:]) for cls_map in self.cls_maps]
        return self.adapter.priors(sizes, self.cls_maps[0].device)

    @cached_property
    def cls_logits(self) -> Tensor:
        """(B, N, K) logits of every prior: a copy; `gather_logits` is cheaper at few."""
        return self._flat(self.cls_maps)

    @cached_property
    def boxes(self) -> Tensor:
        """(B, N, 4) decoded xyxy in input pixels, not clipped."""
        raw = self._flat(self.box_maps)
        images = len(raw)
        boxes, strides = self.priors.boxes.repeat(images, 1), self.priors.strides.repeat(images)
        return self.adapter.decode(boxes, strides, raw.flatten(0, 1)).unflatten(0, (images, -1))

    def gather_logits(self, image: Tensor, prior: Tensor) -> Tensor:
        """(P, K) logits at P priors; `image` and `prior` are (P,) int64."""
        return self._gather(self.cls_maps, image, prior)

    def gather_boxes(self, image: Tensor, prior: Tensor) -> Tensor:
        """(P, 4) decoded boxes at P priors, xyxy in input pixels, not clipped."""
        raw = self.gather_raw_boxes(image, prior)
        return self.adapter.decode(self.priors.boxes[prior], self.priors.strides[prior], raw)

    def gather_quality(self, image: Tensor, prior: Tensor) -> Tensor:
        """(P,) quality logits at P priors; only where `quality_maps` are."""
        assert self.quality_maps is not None
        return self._gather(self.quality_maps, image, prior).squeeze(-1)

    def gather_raw_boxes(self, image: Tensor, prior: Tensor) -> Tensor:
        """(P, X) raw box values at P priors: deltas, distances, or logits of distributions."""
        return self._gather(self.box_maps, image, prior)

    def gather_distributions(self, image: Tensor, prior: Tensor) -> Tensor:
        """(P, 4, R+1) logits of the edge distributions at P priors; only for heads that have them."""
        return self.gather_raw_boxes(image, prior).unflatten(1, (4, -1))

    def tower(self, branch: Branch, conv: int) -> list[Tensor]:
        """Over all levels, (B, C, H_l, W_l) after conv `conv`'s norm and before its activation."""
        return self.towers[branch, conv]

    def run_tail(self, conv: int, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> DetectorOutputs:
        """What this model's head makes of maps of both branches as `tower` has them; gradients reach them."""
        return self.adapter.run_tail(conv, cls, reg)

    def match(self, boxes: Tensor, pad_shape: tuple[int, int]) -> Tensor:
        """(N,) which of `boxes` (M, 4) this model's own matcher gives to each prior; -1 none, -2 ignored.

        `pad_shape` are the height and width of the image of these boxes, after padding to the divisor.
        """
        return self.adapter.match(boxes, pad_shape, self.priors)

    def encode(self, prior: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) the raw box values that would decode to `boxes` (P, 4) at priors (P,)."""
        return self.adapter.encode(self.priors.boxes[prior], self.priors.strides[prior], boxes)

    def roi_outputs(self, rois: Rois) -> RoiOutputs:
        """What this model's second stage says of proposals, its own or another model's."""
        if rois is self.rois and self.own_roi_outputs is not None:
            return self.own_roi_outputs
        return self.adapter.roi_outputs(self.neck_maps, rois)

    def decode_queries(self, starts: Starts) -> Queries:
        """What this model's decoder says of other queries in the same images; gradients reach both."""
        return self.adapter.decode_queries(self.decoding, starts)

    def match_queries(self, queries: Queries, batch: Batch) -> Tensor:
        """(L, B, Q) which object of its image this model's own matcher gives to each query; -1 none."""
        return self.adapter.match_queries(queries, batch)

    def query_loss(self, queries: Queries, gt_index: Tensor, batch: Batch) -> Tensor:
        """This model's own loss of queries that serve the objects (L, B, Q) that another matching says."""
        return self.adapter.query_loss(queries, gt_index, batch)

    def through(self, levels: Sequence[int], feats: list[Tensor]) -> DetectorOutputs:
        """The same outputs with other `feats`, which stand at `levels` of the head."""
        return replace(self, levels=tuple(levels), feats=feats)

    def _flat(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps over levels (B, A*X, H, W) to (B, N, X)."""
        width = maps[0].shape[1] // self.adapter.facts.anchors
        return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, width) for level in maps], dim=1)

    def _gather(self, maps: Sequence[Tensor], image: Tensor, prior: Tensor) -> Tensor:
        """(P, X) of maps over levels (B, A*X, H, W) without flattening them."""
        anchors = self.adapter.facts.anchors
        level_of = self.priors.level[prior][:, None]
        found = None
        for level, level_map in enumerate(maps):
            # of all places in each level, so that no number of places is asked of the device; those of others
            # spread over it, for a GPU adds up gradients of one cell one by one
            first, last = self.priors.first[level : level + 2]
            local = (prior - first) % (last - first)
            cells = level_map.flatten(2).unflatten(1, (anchors, -1))
            rows = cells[image, local % anchors, :, local // anchors]
            found = rows if found is None else torch.where(level_of == level, rows, found)
        return found


def joint_logit(logits: Tensor, quality: Tensor) -> Tensor:
    """(...) the logit of the product of two probabilities that are given as logits (...)."""
    log_product = F.logsigmoid(logits) + F.logsigmoid(quality)
    return log_product - torch.log1p(-log_product.exp().clamp(max=1 - 1e-6))
