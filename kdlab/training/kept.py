"""The detection that finds each object, and the prior that made it."""

from __future__ import annotations

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from kdlab.detectors.outputs import DetectorOutputs

FOUND_IOU = 0.5
_SAME_PX = 0.02
"""How far a box of the head may be from the one that NMS kept: rounding, never another prior's."""


def kept(boxes: Tensor, scores: Tensor, labels: Tensor, objects: Tensor, classes: Tensor) -> Tensor:
    """Which detection of an image finds each object: the highest scored of its class at IoU 0.5 or more.

    Args:
        boxes: (D, 4) xyxy, what NMS left.
        scores: (D,).
        labels: (D,) int64.
        objects: (G, 4) xyxy.
        classes: (G,) int64.

    Returns:
        (G,) int64 places in the detections, -1 where none finds the object.
    """
    if not (len(boxes) and len(objects)):
        return torch.full((len(objects),), -1, device=objects.device)
    finds = (bbox_overlaps(objects, boxes) >= FOUND_IOU) & (classes[:, None] == labels)
    best = scores.masked_fill(~finds, -1.0).argmax(1)
    return torch.where(finds.any(1), best, -1)


def priors_behind(
    boxes: Tensor, scores: Tensor, labels: Tensor, outputs: DetectorOutputs, image: int, size: tuple[int, int]
) -> Tensor:
    """Which prior of a dense head made each detection of an image.

    mmdet does not tell. But what NMS keeps are the head's boxes as they were, most heads' clipped to the
    image, so a prior is known by its box and, among equal boxes, by its score for the class.

    Args:
        boxes: (D, 4) xyxy in input pixels.
        scores: (D,) as the detector gives them, quality included.
        labels: (D,) int64.
        outputs: of the batch; they have `cls_maps` and `boxes`.
        image: its place in the batch.
        size: height and width of the image in the input, without padding.

    Returns:
        (D,) int64, -1 where no prior makes such a box.
    """
    made = outputs.boxes[image]
    if outputs.adapter.clips:
        height, width = size
        made = torch.minimum(made.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    known = outputs.cls_logits[image].sigmoid()
    if outputs.quality_maps is not None:
        priors = torch.arange(len(made), device=made.device)
        known = known * outputs.gather_quality(torch.full_like(priors, image), priors).sigmoid()[:, None]
    found = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        same = (made - box).abs().amax(1) <= _SAME_PX
        nearest = (known[:, label] - score).abs().masked_fill(~same, torch.inf).argmin()
        found.append(torch.where(same.any(), nearest, -1))
    return torch.stack(found) if found else labels.new_zeros(0)
