"""General Instance Distillation: imitate regions, relations and predictions where the models disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair, averaged

VERSION = 2

CANDIDATES = 3000  # of an image that enter the NMS
NMS_IOU = 0.3
CELLS = 10  # a region is pooled to so many cells a side
CANONICAL_CELLS = 14  # FPN: a box of 224 px is pooled from stride 16
FEWEST_RELATED = 3  # two regions have one distance, which is always their mean


class Instances(NamedTuple):
    """The general instances of a batch: image (K,) ascending, place (K,) in its image, xyxy boxes (K, 4)."""

    image: Tensor
    place: Tensor
    boxes: Tensor


def best_scores(outputs: DetectorOutputs) -> Tensor:
    """(B, N) in (0, 1): the best class probability of every prior, without a copy of all logits."""
    anchors = outputs.adapter.facts.anchors
    best = [level.unflatten(1, (anchors, -1)).amax(2) for level in outputs.cls_maps]
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in best], dim=1).sigmoid()


@torch.no_grad()
def general_instances(
    student: DetectorOutputs, teacher: DetectorOutputs, image_shapes: Tensor, most: int, min_side_px: float
) -> Instances:
    """Boxes at which the two models' best scores differ most, of the model that is surer.

    Args:
        student: of a batch.
        teacher: of the same batch, with equal priors.
        image_shapes: (B, 2) height and width, to which boxes are clipped.
        most: instances an image.
        min_side_px: boxes not larger than that, both ways, are left out; in input pixels.

    Returns:
        Each image's instances, those of the largest difference first; no gradient. All images go through
        one NMS.
    """
    difference = best_scores(teacher) - best_scores(student)
    gain, priors = difference.abs().topk(min(CANDIDATES, difference.shape[1]), dim=1)
    image = torch.arange(len(gain), device=gain.device).repeat_interleave(gain.shape[1])
    prior, gain = priors.flatten(), gain.flatten()
    surer = difference[image, prior, None] > 0
    boxes = torch.where(surer, teacher.gather_boxes(image, prior), student.gather_boxes(image, prior))
    boxes = torch.minimum(boxes.clamp(min=0), image_shapes[image].flip(1).repeat(1, 2))
    # places rather than masks: a GPU is asked once how many there are
    large = (boxes[:, 2:] - boxes[:, :2] > min_side_px).all(1).nonzero().squeeze(1)
    image, gain, boxes = image[large], gain[large], boxes[large]
    kept = batched_nms(boxes, gain, image, NMS_IOU)
    kept = kept[image[kept].argsort(stable=True)]
    image, boxes = image[kept], boxes[kept]
    place = torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)
    first = (place < most).nonzero().squeeze(1)
    return Instances(image[first], place[first], boxes[first])


def counted(numbers: Tensor, kinds: int) -> list[int]:
    """How often each of 0 to `kinds` - 1 is among `numbers` (K,); `bincount` would ask a GPU for more."""
    return (numbers[:, None] == torch.arange(kinds, device=numbers.device)).sum(0).tolist()


def pooled_level(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """(K,) the level that FPN's rule gives to boxes (K, 4), of any ascending `strides`."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() / CANONICAL_CELLS
    return torch.stack([sides >= stride for stride in strides]).sum(0).sub(1).clamp(min=0)


def regions(feats: Sequence[Tensor], strides: Sequence[int], instances: Instances) -> Tensor:
    """Features of the instances, each from the level of its size.

    Args:
        feats: over levels, (B, C, H_l, W_l).
        strides: of the levels, ascending.
        instances: K of them.

    Returns:
        (K, C, 10, 10), in the graph of `feats` also for K = 0.
    """
    level = pooled_level(instances.boxes, strides)
    rois = torch.cat([instances.image[:, None].to(instances.boxes), instances.boxes], dim=1)
    order = level.argsort(stable=True)
    counts = counted(level, len(strides))
    pooled = [
        roi_align(feat, part, CELLS, 1 / stride, sampling_ratio=2, aligned=True)
        for feat, stride, part in zip(feats, strides, rois[order].split(counts), strict=True)
    ]
    return torch.cat(pooled)[order.argsort()]


def gid_feature_loss(regions_student: Tensor, regions_teacher: Tensor) -> Tensor:
    """Squared difference of the instances' features.

    Args:
        regions_student: (K, C, H, W) pooled features.
        regions_teacher: (K, C, H, W) of the same boxes; no gradient flows here.

    Returns:
        Scalar >= 0: summed over channels, mean over cells and instances (their count averaged over ranks); 0
        and still in the graph without instances.

    Source: Dai et al., CVPR 2021, section "Feature-based Distillation", and the authors' code.
    Differs: their count is the GPU's own.
    """
    squares = (regions_student - regions_teacher.detach()).square().sum(1)
    return squares.mean((1, 2)).sum() / averaged(squares.new_full((), len(squares)))


def relative_distances(vectors: Tensor, pairs: Tensor) -> Tensor:
    """(I, M, M) Euclidean distances of (I, M, D) vectors over their mean at `pairs` (I, M, M) of each I."""
    # by way of products, small distances of long vectors drown in rounding
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist") * pairs
    mean = distances.sum((1, 2), keepdim=True) / pairs.sum((1, 2), keepdim=True).clamp(min=1)
    return distances / mean.clamp(min=1e-6)


def gid_relation_loss(vectors_student: Tensor, vectors_teacher: Tensor, valid: Tensor) -> Tensor:
    """Difference of the distances between regions, relative to their mean within each group.

    Args:
        vectors_student: (I, M, D) flattened regions in I groups of at most M.
        vectors_teacher: (I, M, D) the same regions; no gradient flows here.
        valid: (I, M) bool; the rest is padding.

    Returns:
        Scalar >= 0: smooth L1, mean over the ordered pairs of different regions of all groups (their count
        averaged over ranks). Groups of fewer than 3 regions have no part; without others 0, in the graph.

    Source: Dai et al., CVPR 2021, section "Relation-based Distillation", and the authors' code.
    Differs: distances of exactly 0 count in the mean.
    """
    valid = valid & (valid.sum(1, keepdim=True) >= FEWEST_RELATED)
    different = ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    pairs = valid[:, :, None] & valid[:, None, :] & different
    distances = [relative_distances(one, pairs) for one in (vectors_student, vectors_teacher.detach())]
    return F.smooth_l1_loss(*distances, reduction="sum") / averaged(pairs.sum())


def gid_response_losses(
    logits_student: Tensor, logits_teacher: Tensor, boxes_student: Tensor, boxes_teacher: Tensor
) -> tuple[Tensor, Tensor]:
    """Classes and boxes of the priors that the student's matcher gives to the instances.

    Args:
        logits_student: (P, K) class logits.
        logits_teacher: (P, K) at the same priors; no gradient flows here.
        boxes_student: (P, 4) box values as the head makes them.
        boxes_teacher: (P, 4) in the same terms; no gradient flows here.

    Returns:
        Two scalars >= 0, each a sum over P (averaged over ranks): binary cross-entropy with the teacher's
        probabilities, summed over classes, which at equal logits is their entropy, and the L1 distance.
        Both 0 and in the graph without priors.

    Source: Dai et al., CVPR 2021, section "Response-based Distillation", and the authors' code.
    Differs: their count is the GPU's own.
    """
    count = averaged(logits_student.new_full((), len(logits_student)))
    target = logits_teacher.detach().sigmoid()
    cls = F.binary_cross_entropy_with_logits(logits_student, target, reduction="sum")
    return cls / count, F.l1_loss(boxes_student, boxes_teacher.detach(), reduction="sum") / count


def box_values(outputs: DetectorOutputs, image: Tensor, prior: Tensor) -> Tensor:
    """(P, 4) raw boxes at P priors; of distributions their means, which are distances in strides."""
    raw = outputs.gather_raw_boxes(image, prior)
    if raw.shape[1] == 4:
        return raw
    shares = raw.unflatten(1, (4, -1)).softmax(-1)
    return shares @ torch.arange(shares.shape[-1], device=raw.device, dtype=raw.dtype)


class GeneralInstanceDistillation(Method):
    """GID: general instances, chosen by disagreement whatever the ground truth, distilled in three ways.

    Args:
        pair: the two models; they need equal classes and equal priors.
        feature: factor of the instances' features, 0.0005 in all run configs of the authors, which are for
            RetinaNet (for others unverified, as are the other factors).
        relation: factor of the distances between instances, 40.
        cls: factor of the class response, 0.1.
        box: factor of the box response, 1.
        instances: the most of an image.
        min_side_px: instances not larger than that, both ways, are left out; 10 for images of 1333 x 800.
        parity: relate all instances of the GPU's batch, as the authors do, rather than those of each image.

    Source: Dai et al., CVPR 2021, arXiv:2103.02340, and the authors' code, which is for RetinaNet.
    Differs: the connector runs, which the authors' code makes and never calls. The teacher's boxes are
    compared as the student's head would state them, and edge distributions by their means. Relations are
    within an image unless `parity`. Three of their six configs smooth the box response's L1 with beta 0.1,
    and their instances serve priors at IoU 0.5, with background below 0.4; here the student's own matcher
    decides. The fallbacks of their config file, 0.005 and 0.1, are run by none.
    """

    default_weight = 1.0
    limits = {"instances": (1, 1000)}
    needs = ("feats", "cls_maps", "box_maps", "boxes", "assignment")
    requires_equal = ("classes", "priors")
    connector = Connector(kernel=3, shared_over_levels=True, always=True)

    def __init__(
        self,
        pair: Pair,
        *,
        feature: float = 0.0005,
        relation: float = 40.0,
        cls: float = 0.1,
        box: float = 1.0,
        instances: int = 10,
        min_side_px: float = 10.0,
        parity: bool = False,
    ) -> None:
        super().__init__(pair)
        self.feature, self.relation, self.cls, self.box = feature, relation, cls, box
        self.instances, self.min_side_px, self.parity = instances, min_side_px, parity

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The four parts over all instances of the batch."""
        found = general_instances(student, teacher, batch.image_shapes, self.instances, self.min_side_px)
        pooled = [regions(one.feats, one.level_strides, found) for one in (student, teacher)]
        places = self.matched(batch, student, found)
        cls, box = gid_response_losses(
            student.gather_logits(*places),
            teacher.gather_logits(*places),
            box_values(student, *places),
            student.encode(places[1], teacher.gather_boxes(*places)),
        )
        rows = [*(one.flatten(1) for one in pooled), torch.ones_like(found.image, dtype=torch.bool)]
        grouped = [self.grouped(one, found, len(batch.image_shapes)) for one in rows]
        return {
            "feature": self.feature * gid_feature_loss(*pooled),
            "relation": self.relation * gid_relation_loss(*grouped),
            "cls": self.cls * cls,
            "box": self.box * box,
        }

    def grouped(self, rows: Tensor, found: Instances, images: int) -> Tensor:
        """(I, M, ...) the rows (K, ...) of instances by image, zeros after them; with `parity` one group."""
        if self.parity:
            return rows[None]
        padded = rows.new_zeros(images, self.instances, *rows.shape[1:])
        return padded.index_put((found.image, found.place), rows)

    @staticmethod
    def matched(batch: Batch, student: DetectorOutputs, found: Instances) -> tuple[Tensor, Tensor]:
        """Image (P,) and prior (P,) of what the student's own matcher gives to the instances."""
        counts = counted(found.image, len(batch.pad_shapes))
        per_image = [
            student.match(boxes, tuple(shape))
            for boxes, shape in zip(found.boxes.split(counts), batch.pad_shapes.tolist(), strict=True)
        ]
        image, prior = (torch.stack(per_image) >= 0).nonzero(as_tuple=True)
        return image, prior
