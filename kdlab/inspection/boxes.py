"""Checks of the boxes of a split: where they lie, how they repeat, whether some are missing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kdlab.inspection.findings import Found, Place
from kdlab.inspection.labels import Floats, Labels

NEAR_IOU = 0.8
# COCO rounds corners to two decimals, so that a box may end a hair behind its image.
_ROUNDING_PX = 0.02
_FEW, _USUAL = 2, 8
# With fewer boxes than this, none at the border may be chance.
_ENOUGH = 50


def outside(labels: Labels) -> Found:
    """Boxes that training drops for their size or area, and those wholly or in part outside their image."""
    low, side = labels.boxes[:, :2], labels.boxes[:, 2:]
    high, size = low + side, labels.sizes[labels.image]
    known = (size > 0).all(axis=1)
    dropped = np.array([fate == "without_area" for fate in labels.fates], bool)
    empty = (side < 1).any(axis=1)
    wholly = known & ((low >= size) | (high <= 0)).any(axis=1)
    cut = known & ~wholly & ((low < -_ROUNDING_PX) | (high > size + _ROUNDING_PX)).any(axis=1)
    kinds = {"zero-area": empty, "area-0": dropped & ~empty, "box-outside": wholly, "box-cut": cut}
    for kind, which in kinds.items():
        for index in np.flatnonzero(which).tolist():
            name = labels.classes[int(labels.label[index])]
            corners = " ".join(f"{value:g}" for value in labels.boxes[index])
            yield kind, labels.place(index, detail=f"{name} {corners}")


def marked(labels: Labels) -> Found:
    """Objects marked `ignore`, which training drops and measuring seeks."""
    for index, entry in enumerate(labels.objects):
        if entry.get("ignore"):
            yield "ignore-marked", labels.place(index)


def repeated(labels: Labels) -> Found:
    """Pairs of one class; a crowd may well hold single objects."""
    crowd = np.array([bool(entry.get("iscrowd")) for entry in labels.objects], bool)
    for start, stop in pairwise([0, *np.cumsum(labels.counts).tolist()]):
        if stop - start < 2:
            continue
        boxes, label = labels.boxes[start:stop], labels.label[start:stop]
        alike = (label[:, None] == label) & ~(crowd[start:stop, None] | crowd[start:stop])
        equal = alike & (boxes[:, None] == boxes).all(axis=2)
        near = alike & (_ious(boxes) > NEAR_IOU) & ~equal
        for kind, pairs in (("box-twice", equal), ("near-duplicate", near)):
            for first, second in np.argwhere(np.triu(pairs, 1)).tolist():
                yield kind, labels.place(start + first, start + second)


def _ious(boxes: Floats) -> Floats:
    """(G, G) of (G, 4) x, y, width, height."""
    low, side = boxes[:, :2], np.maximum(boxes[:, 2:], 0)
    high = low + side
    overlap = np.maximum(0, np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).prod(axis=2)
    area = side.prod(axis=1)
    union = area[:, None] + area - overlap
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0))


def few(labels: Labels) -> Found:
    """Images with one or two boxes in a split where most have many."""
    counts = labels.counts
    if not len(counts) or (usual := float(np.median(counts))) < _USUAL:
        return
    for index in np.flatnonzero((counts > 0) & (counts <= _FEW)).tolist():
        detail = f"{counts[index]}, usual {usual:g}"
        yield "few-boxes", Place(labels.split, labels.images[index]["file_name"], detail=detail)


def one_based(labels: Labels) -> Found:
    """Boxes that end with their image in a split where none begins at 0."""
    if len(labels.boxes) < _ENOUGH or labels.boxes[:, :2].min() != 1:
        return
    ends = (labels.boxes[:, :2] + labels.boxes[:, 2:] == labels.sizes[labels.image]).any(axis=1)
    if count := int(ends.sum()):
        yield "one-based", Place(labels.split, count=count)


CHECKS = (outside, marked, repeated, few, one_based)
