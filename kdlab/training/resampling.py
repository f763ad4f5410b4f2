"""AP of a model on resampled validation images, from what its detections met: no model runs again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdlab.jobs.resampled import RESAMPLES, Resampled
from kdlab.training.matching import IOU_THRESHOLDS, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
_CELLS = 500_000
"""How many numbers a block of resamples holds at once: about what a cache does."""
_DRAWN_AT_ONCE = 250
"""Resamples drawn in one go: of 100,000 images 250 take 300 MB."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Weights = NDArray[np.int32]


def resample(matches: Matches) -> Resampled:
    """AP on `RESAMPLES` resamples of the images, which are the same ones for equally many images."""
    rng, images = np.random.default_rng(0), len(matches.images)
    parts = [
        average_precision(matches, draw(images, _DRAWN_AT_ONCE, rng))
        for _ in range(RESAMPLES // _DRAWN_AT_ONCE)
    ]
    truth = hashlib.sha256(matches.images.tobytes() + matches.objects.astype(np.int64).tobytes())
    return Resampled(np.concatenate(parts), images, truth.hexdigest()[:16])


def draw(images: int, resamples: int, rng: np.random.Generator) -> Weights:
    """How often each image is in each resample, (resamples, images).

    A resample is as many images as there are, drawn with replacement.
    """
    return rng.multinomial(images, np.full(images, 1 / images), resamples).astype(np.int32)


def average_precision(matches: Matches, weights: Weights) -> Floats:
    """COCO's AP over images that count as often as their weights say.

    An image of weight 2 counts as two images with the same content. The detections are sorted already, and
    precision matters where one is right only, so a resample costs cumulative sums of weights. Equal
    scores of one class in one image stay together, where copies of the image would take turns.

    Args:
        matches: of one model.
        weights: (R, I) integers >= 0, a row a resample.

    Returns:
        (R,) AP in points 0 to 100; NaN where no image of a resample holds an object.
    """
    thresholds = [_Threshold.of(matches, bit) for bit in range(IOU_THRESHOLDS)]
    classes = matches.objects.shape[1]
    rows = max(1, _CELLS // max(1, len(matches.image), RECALLS.size * classes))
    blocks = [weights[start : start + rows] for start in range(0, len(weights), rows)]
    return np.concatenate([np.empty(0), *(_of_block(matches, thresholds, block) for block in blocks)])


def of_each_image(matches: Matches) -> Floats:
    """(I,) AP of each image alone, in points 0 to 100: as if there were no other; NaN without objects.

    It is the mean, over the classes that have objects in the image, of COCO's AP at IoU 0.50 to 0.95.
    """
    order = np.argsort(matches.image, kind="stable")
    images = range(len(matches.images))
    ends = np.searchsorted(matches.image[order], images, side="right")
    found = np.full(len(images), np.nan)
    for place, own in zip(images, np.split(order, ends[:-1]), strict=True):
        alone = replace(
            matches,
            images=matches.images[place : place + 1],
            image=np.zeros(len(own), np.int32),
            **{name: getattr(matches, name)[own] for name in ("label", "score", "right", "ignored")},
            objects=matches.objects[place : place + 1],
        )
        found[place] = average_precision(alone, np.ones((1, 1), np.int32))[0]
    return found


def _of_block(matches: Matches, thresholds: list[_Threshold], weights: Weights) -> Floats:
    # as floats, which count exactly up to 2**53 and multiply fast
    objects = (weights.astype(float) @ matches.objects.astype(float)).astype(np.int64)
    needed = _hits_needed(objects)
    drawn = weights.take(matches.image, axis=1)
    seen = _counted(drawn)
    precision = sum(threshold.precision(drawn, seen, needed) for threshold in thresholds)
    shown = objects > 0
    with np.errstate(invalid="ignore"):
        mean = np.where(shown, precision, 0).sum(1) / shown.sum(1)
    points: Floats = 100 * mean / (len(thresholds) * RECALLS.size)
    return points


def _counted(drawn: Weights) -> Weights:
    """(R, D + 1) how many detections of any class come before each, and in all."""
    counted = np.zeros((drawn.shape[0], drawn.shape[1] + 1), np.int32)
    np.cumsum(drawn, axis=1, out=counted[:, 1:])
    return counted


def _hits_needed(objects: Ints) -> Ints:
    """(R, K, 101) the fewest hits among `objects` (R, K) that reach each recall, as floats compare."""
    whole = np.maximum(objects, 1)[..., None]
    hits = np.floor(RECALLS * whole)
    hits -= (hits - 1) / whole >= RECALLS
    hits += hits / whole < RECALLS
    return hits.astype(np.int64)


@dataclass(frozen=True)
class _Threshold:
    """The detections that are right at one IoU threshold, n of all D, class by class.

    Args:
        right: (n,) their places among all.
        label: (n,) their classes.
        first: (K + 1,) where each class begins among them.
        first_of_all: (K + 1,) where each class begins among all.
        ignored: (m,) places of those that do not count.
        ignored_before: (n,) how many of these come before each of `right`.
        first_ignored: (K + 1,) where each class begins among these.
    """

    right: Ints
    label: Ints
    first: Ints
    first_of_all: Ints
    ignored: Ints
    ignored_before: Ints
    first_ignored: Ints

    @classmethod
    def of(cls, matches: Matches, bit: int) -> Self:
        """Threshold number `bit`."""
        classes = np.arange(matches.objects.shape[1] + 1)
        right = np.flatnonzero(matches.right >> bit & 1)
        ignored = np.flatnonzero(matches.ignored >> bit & 1)
        label = matches.label.astype(np.int64)
        return cls(
            right=right,
            label=label[right],
            first=np.searchsorted(label[right], classes),
            first_of_all=np.searchsorted(label, classes),
            ignored=ignored,
            ignored_before=np.searchsorted(ignored, right),
            first_ignored=np.searchsorted(label[ignored], classes),
        )

    def precision(self, drawn: Weights, seen: Weights, needed: Ints) -> Floats:
        """(R, K) sum over recalls of the best precision at that recall or beyond.

        Args:
            drawn: (R, D) how often each detection is there.
            seen: `_counted` of it.
            needed: (R, K, 101) hits that reach each recall.
        """
        rows, classes, _ = needed.shape
        if not len(self.right):
            return np.zeros((rows, classes))
        hits = _counted(drawn.take(self.right, axis=1))
        hits = hits[:, 1:] - hits.take(self.first[self.label], axis=1)
        ranked = seen.take(self.right + 1, axis=1)
        ranked -= seen.take(self.first_of_all[self.label], axis=1)
        if len(self.ignored):
            passed = _counted(drawn.take(self.ignored, axis=1))
            ranked -= passed.take(self.ignored_before, axis=1)
            ranked += passed.take(self.first_ignored[self.label], axis=1)
        # what lies beyond must not leak into the class before it: lift that one above all precisions
        lift = 2.0 * (classes - self.label)
        lifted = hits / np.maximum(ranked, 1) + lift
        best = np.maximum.accumulate(lifted[:, ::-1], axis=1)[:, ::-1] - lift
        places, reached = self._first_that_reach(hits, needed)
        summed: Floats = np.where(reached, best.ravel()[places], 0.0).sum(2)
        return summed

    def _first_that_reach(self, hits: Weights, needed: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """(R, K, 101) the first place in the flat (R, n) with the hits needed, and whether there is one."""
        rows, classes, _ = needed.shape
        # one search for all: rows, then classes, then hits, as one rising number
        step = int(max(hits.max(), needed.max())) + 2
        row = np.arange(rows)[:, None]
        keys = (row * classes + self.label) * step + hits
        wanted = (row * classes + np.arange(classes))[..., None] * step + needed
        places = np.searchsorted(keys.ravel(), wanted.ravel()).reshape(needed.shape)
        end = (row * len(self.right) + self.first[1:])[..., None]
        return np.minimum(places, keys.size - 1), places < end
