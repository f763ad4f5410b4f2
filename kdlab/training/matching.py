"""COCO's matching of detections to objects, as arrays: AP of other images follows without the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import COCO
from hotcoco import COCOeval as Comparison

IOU_THRESHOLDS = 10
"""0.50 to 0.95 by 0.05; threshold t is bit t of `right` and `ignored`."""
_IMAGES_AT_ONCE = 200


@dataclass(frozen=True)
class Matches:
    """The matching of D detections to the objects of I images and K classes, objects of all sizes.

    Detections are sorted by class, then by falling score, equal scores by image: the order in which COCO
    walks down the ranking.

    Args:
        images: (I,) int64, numbers of the images in rising order.
        image: (D,) int32, which image each detection is in, 0 to I - 1.
        label: (D,) int16, its class, 0 to K - 1.
        score: (D,) float32.
        right: (D,) uint16, the thresholds at which it met an object that counts.
        ignored: (D,) uint16, those at which it counts neither for nor against the model.
        objects: (I, K) uint16, how many objects of each class an image has that count.
    """

    images: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


def matches_of(truth: COCO, found: COCO, images: Sequence[int], categories: Sequence[int]) -> Matches:
    """The matching of detections to objects of all sizes.

    Args:
        truth: the labels.
        found: detections in the same images.
        images: the numbers of the images, rising.
        categories: the categories' ids in the order of the model's labels; others are left out.
    """
    class_of = {int(category): place for place, category in enumerate(categories)}
    objects = np.zeros((len(images), len(class_of)), np.uint16)
    # image, class and score of detections, and the thresholds that each is matched and ignored at
    parts = [tuple(np.empty(0, kind) for kind in (np.int32, np.int16, np.float32, np.uint16, np.uint16))]
    place_of = {number: place for place, number in enumerate(images)}
    for record in _records(truth, found, images):
        label = class_of.get(record["category_id"])
        if label is None:
            continue
        place = place_of[record["image_id"]]
        objects[place, label] = len(record["gtIgnore"]) - sum(record["gtIgnore"])
        score = np.array(record["dtScores"], np.float32)
        whose = np.full(len(score), place, np.int32), np.full(len(score), label, np.int16)
        parts.append((*whose, score, _bits(record["dtMatched"]), _bits(record["dtIgnore"])))
    image, label, score, matched, ignored = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((image, -score, label))
    right = matched & ~ignored
    numbers = np.array(images, np.int64)
    return Matches(numbers, *(array[order] for array in (image, label, score, right, ignored)), objects)


@dataclass(frozen=True)
class Met:
    """How the evaluation met one object, over the ten IoU thresholds.

    Args:
        times: at how many of them a detection was matched with it.
        precision: at the rank of that detection in its class, the best at this recall or beyond; mean over
            the thresholds, 0 where there is none. Its mean over the objects of a class is the class's AP at
            all recalls, where COCO reads 101 of them.
    """

    times: int = 0
    precision: float = 0.0


def met_of(truth: COCO, found: COCO, images: Sequence[int]) -> dict[int, Met]:
    """How each object was met, by its id; what does not count is met by nothing. Arguments: `matches_of`."""
    times: dict[int, int] = {}
    # of each class scores, and by threshold the ids of what was matched, and whether that counts
    parts: dict[int, list[tuple[np.ndarray, ...]]] = {}
    for record in _records(truth, found, images):
        met = np.asarray(record["gtMatched"], bool).reshape(IOU_THRESHOLDS, -1).sum(0)
        times |= dict(zip(record["gtIds"], np.where(record["gtIgnore"], 0, met).tolist(), strict=True))
        flags = (record[name] for name in ("dtMatches", "dtIgnore"))
        matched, ignored = (np.asarray(flag, int).reshape(IOU_THRESHOLDS, -1) for flag in flags)
        one = np.array(record["dtScores"], float), matched, ignored.astype(bool)
        parts.setdefault(record["category_id"], []).append(one)
    precision = np.zeros(max(times, default=0) + 1)
    for own in parts.values():
        scores, matched, ignored = (np.concatenate(arrays, axis=-1) for arrays in zip(*own, strict=True))
        ranked = np.argsort(-scores, kind="stable")
        for ids, left_out in zip(matched[:, ranked], ignored[:, ranked], strict=True):
            counted = ids[~left_out]
            right = counted > 0
            best = np.cumsum(right) / np.arange(1, len(right) + 1)
            best = np.maximum.accumulate(best[::-1])[::-1]
            precision[counted[right]] += best[right] / IOU_THRESHOLDS
    return {number: Met(met, float(precision[number])) for number, met in times.items()}


def _records(truth: COCO, found: COCO, images: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What hotcoco tells of each image and class: in Python objects, which take gigabytes for a large set."""
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        comparison = Comparison(truth, found, "bbox")
        comparison.params.img_ids = list(images[start : start + _IMAGES_AT_ONCE])
        comparison.params.area_rng = comparison.params.area_rng[:1]
        comparison.evaluate()
        yield from filter(None, comparison.eval_imgs)


def _bits(flags: Sequence[Sequence[bool]]) -> np.ndarray:
    """(d,) uint16 whose bit t is the flag at IoU threshold t, from (T, d) flags."""
    block = np.asarray(flags, bool).reshape(IOU_THRESHOLDS, -1)
    return (block.T @ (1 << np.arange(IOU_THRESHOLDS))).astype(np.uint16)
