"""What hotcoco's comparison says of each image, as the arrays that a job keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hotcoco import COCOeval as Comparison

from kdlab.jobs.matches import IOU_THRESHOLDS, Matches


def matches_of(comparison: Comparison, images: Sequence[int], categories: Sequence[int]) -> Matches:
    """The matching of an evaluated comparison to objects of all sizes.

    Args:
        comparison: after `evaluate()`.
        images: the numbers of its images, rising.
        categories: the categories' ids in the order of the model's labels; others are left out.
    """
    every = tuple(comparison.params.area_rng[0])
    image_of = {number: place for place, number in enumerate(images)}
    class_of = {int(category): place for place, category in enumerate(categories)}
    records = [
        record
        for record in comparison.eval_imgs
        if record is not None and tuple(record["aRng"]) == every and record["category_id"] in class_of
    ]
    objects = np.zeros((len(images), len(class_of)), np.uint16)
    for record in records:
        place = image_of[record["image_id"]], class_of[record["category_id"]]
        objects[place] = len(record["gtIgnore"]) - sum(record["gtIgnore"])
    counts = [len(record["dtScores"]) for record in records]
    image = np.repeat([image_of[record["image_id"]] for record in records], counts).astype(np.int32)
    label = np.repeat([class_of[record["category_id"]] for record in records], counts).astype(np.int16)
    score = np.array([score for record in records for score in record["dtScores"]], np.float32)
    matched = _bits([record["dtMatched"] for record in records])
    ignored = _bits([record["dtIgnore"] for record in records])
    order = np.lexsort((image, -score, label))
    return Matches(
        images=np.array(images, np.int64),
        image=image[order],
        label=label[order],
        score=score[order],
        right=(matched & ~ignored)[order],
        ignored=ignored[order],
        objects=objects,
    )


def _bits(flags: Sequence[Sequence[Sequence[bool]]]) -> np.ndarray:
    """(D,) uint16 whose bit t is the flag at IoU threshold t, from a (T, d) block an image and class."""
    blocks = [np.asarray(block, bool).reshape(IOU_THRESHOLDS, -1) for block in flags]
    wide = np.concatenate([np.empty((IOU_THRESHOLDS, 0), bool), *blocks], axis=1)
    return (wide.T @ (1 << np.arange(IOU_THRESHOLDS))).astype(np.uint16)
