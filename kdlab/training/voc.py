"""PASCAL VOC's mAP: one IoU threshold, difficult objects neither sought nor punished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mmdet.evaluation.functional.mean_ap import average_precision, tpfp_default

IOU = 0.5
MODES = {"VOC07": "11points", "VOC12": "area"}


@dataclass(frozen=True)
class ImageBoxes:
    """What is in one image and what was found there.

    Args:
        found: (N, 5) xyxy in pixels and the score.
        found_labels: (N,) the class of each.
        boxes: (G, 4) xyxy of the objects.
        labels: (G,) the class of each.
        ignored: (G,) bool: difficult objects and crowds.
    """

    found: np.ndarray
    found_labels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


def voc_metrics(images: Sequence[ImageBoxes], classes: int) -> dict[str, float]:
    """`VOC07` (mean of the precision at 11 recalls) and `VOC12` (area under it) in points 0 to 100.

    The mean is over the classes that have objects, as in mmdet's `eval_map`; a side of a box counts a pixel
    more than the difference of its corners, as in VOC's own kit.

    Returns:
        Empty where no class has an object that counts.
    """
    curves = [curve for label in range(classes) if (curve := _curve(images, label)) is not None]
    if not curves:
        return {}
    return {
        name: 100 * float(np.mean([average_precision(*curve, mode) for curve in curves]))
        for name, mode in MODES.items()
    }


def _curve(images: Sequence[ImageBoxes], label: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Recall and precision of a class after each detection, best first; None for a class without objects."""
    scores, hits, misses, objects = [], [], [], 0
    for image in images:
        found = image.found[image.found_labels == label].astype(np.float32)
        ours = image.labels == label
        sought, ignored = image.boxes[ours & ~image.ignored], image.boxes[ours & image.ignored]
        objects += len(sought)
        if len(found):
            hit, miss = tpfp_default(found, sought, ignored, IOU, use_legacy_coordinate=True)
            scores.append(found[:, 4]), hits.append(hit[0]), misses.append(miss[0])
    if not objects:
        return None
    if not scores:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit, miss = (np.cumsum(np.concatenate(part)[order]) for part in (hits, misses))
    # a detection of a difficult object is neither, so that before the first of others both are 0
    return hit / objects, hit / np.maximum(hit + miss, np.finfo(np.float32).eps)
