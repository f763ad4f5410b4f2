"""Prediction-Guided Distillation: imitate a head's towers where the teacher predicts each object best."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._attention import channel_attention, spatial_attention
from kdlab.methods._regions import by_level, largest_of_image
from kdlab.methods.base import Method, Pair, averaged

_LEVEL_STEP = 0.25  # the class tower counts by so much more from level to level, 1 on the first
_VARIANCE_PX2 = 0.1**2 / 12  # of the noise, uniform over 0.1 px, that the authors add to places


def prediction_quality(probability: Tensor, overlap: Tensor, share: float) -> Tensor:
    """(...) in [0, 1], p^(1 - share) IoU^share of equally shaped probabilities and IoU; the paper's q."""
    return probability ** (1 - share) * overlap**share


def gaussian_weights(places: Tensor) -> Tensor:
    """Density of each place under the Gaussian fitted to all of an object's, over its peak.

    Args:
        places: (G, k, 2) in pixels.

    Returns:
        (G, k) in (0, 1]; 1 where all places are one.

    Source: Yang et al., ECCV 2022, arXiv:2203.05469, and the authors' code.
    Differs: they add noise to the places, so that places on a line have a Gaussian; here its variance is
        added to the fitted one, so nothing is random.
    """
    # of a narrow Gaussian, single precision loses the determinant
    offset = (places - places.mean(1, keepdim=True)).double()
    covariance = offset.mT @ offset / places.shape[1]
    covariance = covariance + _VARIANCE_PX2 * torch.eye(2, dtype=offset.dtype, device=offset.device)
    distance = (torch.linalg.solve(covariance, offset.mT).mT * offset).sum(2)
    return (-0.5 * distance).exp().to(places)


def foreground_weights(quality: Tensor, places: Tensor, inside: Tensor, batch: Batch, topk: int) -> Tensor:
    """The teacher's best cells of each object, weighed by a Gaussian.

    Args:
        quality: (G, P) >= 0 of each object at all cells of its image.
        places: (P, 2) their middles in pixels.
        inside: (G, P) bool, which of them lie in the object's box; the others weigh nothing.
        batch: whose objects these are.
        topk: so many cells of each object, or all where there are fewer.

    Returns:
        (B, P) in [0, 1], at each cell the largest of an image's objects.

    Source: Yang et al., ECCV 2022, arXiv:2203.05469, and the authors' code.
    Differs: none known.
    """
    best = quality.topk(min(topk, quality.shape[1]), dim=1).indices
    weights = quality.new_zeros(quality.shape).scatter(1, best, gaussian_weights(places[best]))
    return largest_of_image(weights * inside, batch)


def class_tower_losses(
    map_student: Tensor, map_teacher: Tensor, foreground: Tensor, background: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Difference of class towers on the foreground and the background, and of their attentions.

    Args:
        map_student: (B, C, H, W) of one level.
        map_teacher: the same; no gradient flows here.
        foreground: (B, H, W) >= 0; each image's is divided by its count of cells that are not 0.
        background: the same.
        temperature: of the attentions, to places and, at each place, to channels.

    Returns:
        Scalars >= 0 by name, means over the images: squared differences summed over channels and cells,
        weighed by the teacher's attentions; absolute differences of the attentions, to places summed and to
        channels summed and averaged over places.

    Source: Yang et al., ECCV 2022, arXiv:2203.05469, and the authors' code.  Differs: none known.
    """
    map_teacher, images = map_teacher.detach(), len(map_student)
    places = [spatial_attention(level, temperature) for level in (map_student, map_teacher)]
    channels = [channel_attention(level.abs(), temperature) for level in (map_student, map_teacher)]
    difference = places[1] * (channels[1] * (map_student - map_teacher).square()).sum(1)
    losses = {}
    for name, mask in (("foreground", foreground), ("background", background)):
        share = mask / (mask != 0).sum((1, 2), keepdim=True).clamp(min=1)
        losses[name] = (share * difference).sum() / images
    to_channels, to_places = (channels[0] - channels[1]).abs(), (places[0] - places[1]).abs()
    losses["attention"] = to_places.sum() / images + to_channels.sum(1).mean()
    return losses


def box_tower_losses(
    map_student: Tensor, map_teacher: Tensor, foreground: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Difference of box towers on the foreground, and of their attentions to channels there.

    Args:
        map_student: (B, C, H, W) of one level.
        map_teacher: the same; no gradient flows here.
        foreground: (B, H, W) >= 0.
        temperature: of the attention, at each place.

    Returns:
        Scalars >= 0 by name, means over the cells of the batch whose foreground is not 0, their count
        averaged over ranks and at least 1; 0 and in the graph without any.

    Source: Yang et al., ECCV 2022, arXiv:2203.05469, and the authors' code.  Differs: none known.
    """
    image, row, column = foreground.nonzero(as_tuple=True)
    mine, theirs = (level[image, :, row, column] for level in (map_student, map_teacher.detach()))
    attention, attention_teacher = (channel_attention(cells.abs(), temperature) for cells in (mine, theirs))
    difference = (attention_teacher * (mine - theirs).square()).mean(1) * foreground[image, row, column]
    count = averaged(foreground.new_full((), len(image)))
    return {
        "regression": difference.sum() / count,
        "attention": (attention - attention_teacher).abs().sum() / count,
    }


class PredictionGuidedDistillation(Method):
    """PGD on the first convolution of each tower, after its ReLU, as the authors' configs tap it.

    The factors are those of the authors' configs for GFL and FCOS (the defaults) and ATSS; they have none for
    RetinaNet. On level l (from 0) foreground and background of the class tower count 1 + l / 4 times.

    Args:
        pair: the two models; they need equal heads and priors.
        foreground: alpha, of the class tower at the teacher's best cells.
        background: beta, of the class tower outside all boxes.
        regression: gamma, of the box tower at the teacher's best cells.
        attention: delta, of the attentions of both towers.
        temperature: of the attentions.
        topk: cells of each object.

    Source: Yang et al., ECCV 2022, arXiv:2203.05469, and the authors' code.
    Differs: their FCOS swaps x and y where it asks which cells lie in a box, and their GFL decodes all boxes
        of an image with one stride; neither here. Their class tower multiplies every image's mask with every
        image's features: as much as here for one image, 2.4 times for two and 4 times for four, so their
        factors act that much more strongly there. A cell with several priors, which theirs have not, counts
        as the best of them.
    """

    default_weight = 1.0
    defaults_for = {"atss": {"foreground": 0.08, "background": 0.04, "regression": 0.128}}
    limits = {"temperature": (0.01, 100.0), "topk": (1, 10000)}
    needs = ("cls_maps", "boxes", "towers")
    requires_equal = ("classes", "priors", "head")
    towers = (("cls", 0), ("reg", 0))
    shares = {"cls": 0.8, "reg": 0.6}
    """Of IoU in the quality of a prediction, by tower."""

    def __init__(
        self,
        pair: Pair,
        *,
        foreground: float = 0.04,
        background: float = 0.02,
        regression: float = 0.064,
        attention: float = 8e-4,
        temperature: float = 0.8,
        topk: int = 30,
    ) -> None:
        super().__init__(pair)
        self.factors = {
            "foreground": foreground,
            "background": background,
            "regression": regression,
            "attention": attention,
        }
        self.temperature, self.topk = temperature, topk

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The parts with their factors, each summed over levels."""
        totals: dict[str, list[Tensor]] = {name: [] for name in self.factors}
        for losses in self.levels(student, teacher, self.regions(batch, teacher)):
            for name, loss in losses.items():
                totals[name].append(loss)
        return {name: factor * torch.stack(totals[name]).sum() for name, factor in self.factors.items()}

    def regions(self, batch: Batch, teacher: DetectorOutputs) -> dict[str, list[Tensor]]:
        """Over levels, (B, H, W): the foreground of each tower, and the cells outside all boxes."""
        places = middles(teacher)
        first, last = batch.gt_boxes[:, None].chunk(2, dim=2)
        inside = ((places > first) & (places < last)).all(2)
        probability, overlap = predictions_of_objects(batch, teacher)
        flat = {"background": 1 - largest_of_image(inside.to(places), batch)}
        for branch, share in self.shares.items():
            # of several priors of a cell, the best
            quality = prediction_quality(probability, overlap, share).unflatten(1, (len(places), -1)).amax(2)
            flat[branch] = foreground_weights(quality, places, inside, batch, self.topk)
        return {name: by_level(region, teacher.priors) for name, region in flat.items()}

    def levels(
        self, student: DetectorOutputs, teacher: DetectorOutputs, regions: dict[str, list[Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """The losses by name of each tower and level, without factors."""
        for level in range(len(regions["cls"])):
            cls, reg = (
                [F.relu(outputs.tower(*tower)[level]) for outputs in (student, teacher)]
                for tower in self.towers
            )
            masks = regions["cls"][level], regions["background"][level]
            losses = class_tower_losses(*cls, *masks, self.temperature)
            growth = 1 + _LEVEL_STEP * level
            yield losses | {name: growth * losses[name] for name in ("foreground", "background")}
            yield box_tower_losses(*reg, regions["reg"][level], self.temperature)


def middles(outputs: DetectorOutputs) -> Tensor:
    """(P, 2) the middle of the first prior of each cell, which is that of all."""
    boxes = outputs.priors.boxes[:: outputs.adapter.facts.anchors]
    return boxes if boxes.shape[1] == 2 else (boxes[:, :2] + boxes[:, 2:]) / 2


def predictions_of_objects(batch: Batch, outputs: DetectorOutputs) -> tuple[Tensor, Tensor]:
    """(G, N) of each object at all priors of its image: probability of its class, IoU of the decoded box."""
    assert outputs.cls_maps is not None
    logits = [
        level.unflatten(1, (outputs.adapter.facts.anchors, -1))[batch.gt_image, :, batch.gt_labels]
        for level in outputs.cls_maps
    ]
    flat = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in logits], dim=1)
    overlap = bbox_overlaps(outputs.boxes[batch.gt_image], batch.gt_boxes[:, None]).squeeze(2)
    return flat.detach().sigmoid(), overlap.detach()
