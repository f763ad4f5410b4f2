"""Fine-grained Feature Imitation: imitate features where anchors nearly fit an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._regions import by_level, largest_of_image, level_of
from kdlab.methods.base import Connector, Method, Pair, averaged


def imitation_region(overlap: Tensor, batch: Batch, threshold: float) -> Tensor:
    """Where anchors overlap an object more than `threshold` times as well as its best anchor does.

    Args:
        overlap: (G, P) in [0, 1], the best IoU of the anchors of each place with each object of the batch.
        batch: whose objects these are.
        threshold: in [0, 1), the paper's psi.

    Returns:
        (B, P) 1 at the places of any object of the image, else 0; none of an object that no anchor overlaps.

    Source: Wang et al., CVPR 2019, arXiv:1906.03609, and the authors' code.  Differs: none known.
    """
    best = overlap.amax(1, keepdim=True)
    return largest_of_image((overlap > threshold * best).to(overlap), batch)


def region_imitation_loss(
    feats_student: Sequence[Tensor], feats_teacher: Sequence[Tensor], masks: Sequence[Tensor]
) -> Tensor:
    """Squared difference under a mask, over twice the cells of the mask on all levels together.

    Args:
        feats_student: over levels, (B, C, H_l, W_l).
        feats_teacher: the same; no gradient flows here.
        masks: over levels, (B, H_l, W_l) of 0 and 1.

    Returns:
        Scalar >= 0, summed over channels; 0 and in the graph where all masks are empty. The cells are counted
        over the batch and averaged over ranks, at least 1.

    Source: Wang et al., CVPR 2019, arXiv:1906.03609, and the authors' code.
    Differs: the paper has one level; here all levels share the sum and the count.
    """
    errors = [
        (mask * (student - teacher.detach()).square().sum(1)).sum()
        for student, teacher, mask in zip(feats_student, feats_teacher, masks, strict=True)
    ]
    count = torch.stack([mask.sum() for mask in masks]).sum()
    return torch.stack(errors).sum() / (2 * averaged(count))


class FineGrainedFeatureImitation(Method):
    """FGFI on the levels of a feature pyramid.

    The default weight is that of the authors' code, whose Faster R-CNN has one map. Ports average over
    channels where this sums: 1 to 2 over 256 channels there (DeFeat's port) are 0.004 to 0.008 here.

    Args:
        pair: the two models; the student has anchor boxes, the teacher anything with a neck.
        threshold: the paper's psi.
        per_level: seek an object's anchors on its own level alone, by its size, as DeFeat's port does; else
            those of all levels compete.

    Source: Wang et al., CVPR 2019, arXiv:1906.03609, and the authors' code.
    Differs: their adaptation ends in a ReLU, which no map of a plain neck has; none here.
    """

    default_weight = 0.01
    limits = {"threshold": (0.0, 0.99)}
    needs = ("feats", "anchor_boxes")
    connector = Connector(kernel=3, init="near_zero", always=True)

    def __init__(self, pair: Pair, *, threshold: float = 0.5, per_level: bool = False) -> None:
        super().__init__(pair)
        self.threshold, self.per_level = threshold, per_level

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """The loss over all levels together."""
        region = imitation_region(self.overlaps(batch, student), batch, self.threshold)
        return region_imitation_loss(student.feats, teacher.feats, list(masks_of(region, student)))

    def overlaps(self, batch: Batch, student: DetectorOutputs) -> Tensor:
        """(G, P) best IoU of each place's anchors with each object, 0 on levels where it is not sought."""
        facts, priors = student.adapter.facts, student.priors
        overlap = bbox_overlaps(batch.gt_boxes, priors.boxes).unflatten(1, (-1, facts.anchors)).amax(2)
        if self.per_level:
            own = level_of(batch.gt_boxes, facts.strides)
            overlap = overlap * (priors.level[:: facts.anchors] == own[:, None])
        return overlap


def masks_of(region: Tensor, student: DetectorOutputs) -> Iterator[Tensor]:
    """(B, H, W) of each matched level, from (B, P) over the places of all levels.

    Where features were resized, a cell is in the region if any is that it came from.
    """
    masks = by_level(region, student.priors)
    for level, feat in zip(student.levels, student.feats, strict=True):
        yield F.adaptive_max_pool2d(masks[level], feat.shape[-2:])
