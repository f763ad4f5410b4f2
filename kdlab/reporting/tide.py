"""Where the AP of one model is lost: the errors of TIDE, and which classes it takes for one another.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
arXiv:2008.08115, sections 2.2 to 2.4. Differs: classes without objects are in no mean, where the package
`tidecv` counts one with detections as AP 0; of equal scores in a class the order is the images'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdlab.jobs.detections import Detections

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection finds an object, and up to which it lies on none."""
MOST = 100
"""Detections of an image that count, of all classes together: those of the highest score."""
CONFUSED_SCORE = 0.3
"""Least score of a detection in a confusion matrix."""
RECALLS = np.arange(101) / 100

KINDS = {
    "cls": "classification",
    "loc": "localisation",
    "both": "both of these",
    "dup": "duplicate",
    "bkg": "background",
    "miss": "missed",
    "fp": "all false positives",
    "fn": "all false negatives",
}
"""All errors in the order of tables, by their keys: the six of TIDE, then those that cut across them."""
RIGHT, CLASS, LOCATION, BOTH, DUPLICATE, NOTHING = range(6)
"""What a detection is: right, or its error; an object that none of them would find is missed."""
_OF_DETECTIONS = {"cls": CLASS, "loc": LOCATION, "both": BOTH, "dup": DUPLICATE, "bkg": NOTHING}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Lost:
    """What one model loses, and on G objects of the images what finds them.

    Args:
        ap50: AP at IoU 0.5 of the `MOST` highest detections of each image, in points 0 to 100.
        gains: by key of `KINDS` the points that AP50 would gain if that error alone were put right: TIDE's
            dAP. 0 or more; those of all false positives or negatives can be below by a step of recall.
        confusion: (K + 1, K + 1) int64, counts: row the object's class, column the detection's, the last of
            each the background, so that the last column counts what is not found and the last row what is on
            no object. Of detections with at least `CONFUSED_SCORE`.
        box: (G, 4) float64 xyxy, the detection that the evaluation at IoU 0.5 gives to each object; NaN where
            there is none.
        score: (G,) of the same.
        unfound: classes with objects of which none is found; `miss` and `fn` hide what that costs, for
            without objects to find, the class keeps AP 0 as long as it has a detection.
        truth: a hash of images and objects; models with different ones cannot be paired.
    """

    ap50: float
    gains: dict[str, float]
    confusion: Ints
    box: Floats
    score: Floats
    unfound: tuple[int, ...]
    truth: str


@dataclass(frozen=True)
class Agreement:
    """How far a student finds what its teacher finds, over the objects of the validation images.

    Args:
        both: share of all objects that both find, 0 to 1, each by the detection of `Lost.box`.
        iou: mean IoU of their two boxes over these objects; NaN without any.
        score: mean of the student's score minus the teacher's over them; NaN likewise.
        correlation: Pearson's, of the two scores over them; NaN below two, and where one of them is constant.
    """

    both: float
    iou: float
    score: float
    correlation: float

    @classmethod
    def of(cls, student: Lost, teacher: Lost) -> Agreement | None:
        """That of two models; None where they were not measured on the same objects."""
        if student.truth != teacher.truth or not len(student.score):
            return None
        found = np.isfinite(student.score) & np.isfinite(teacher.score)
        if not found.any():
            return cls(0.0, np.nan, np.nan, np.nan)
        mine, theirs = student.score[found], teacher.score[found]
        varied = found.sum() > 1 and mine.std() > 0 and theirs.std() > 0
        return cls(
            both=float(found.mean()),
            iou=float(_pairwise(student.box[found], teacher.box[found]).mean()),
            score=float((mine - theirs).mean()),
            correlation=float(np.corrcoef(mine, theirs)[0, 1]) if varied else np.nan,
        )


@dataclass(frozen=True)
class _Judged:
    """All detections that count, by image and falling score, and all objects.

    Args:
        label: (D,) class of each detection.
        score: (D,) its score.
        kind: (D,) `RIGHT` or its error.
        ignored: (D,) whether it counts neither for nor against the model.
        fixes: (D,) the object that it would find if its class or place were right; -1 where it would find
            none, for the object has another detection.
        object_label: (G,) class of each object.
        found: (G,) the detection that finds it, -1 where none does.
        reachable: (G,) whether a detection would find it.
    """

    label: Ints
    score: Floats
    kind: Ints
    ignored: Flags
    fixes: Ints
    object_label: Ints
    found: Ints
    reachable: Flags


def lost(detections: Detections, classes: int) -> Lost:
    """What a model loses.

    Args:
        detections: of it.
        classes: K, how many there are.
    """
    order, box, label, score, image = _counted(detections)
    counts = ~detections.ignored
    object_box = detections.object_box[counts]
    object_label = detections.object_label[counts].astype(int)
    judged = _Judged(
        label=label,
        score=score,
        kind=np.full(len(order), NOTHING),
        ignored=np.zeros(len(order), bool),
        fixes=np.full(len(order), -1),
        object_label=object_label,
        found=np.full(len(object_label), -1),
        reachable=np.zeros(len(object_label), bool),
    )
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    own = [detections.object_image[counts], detections.object_image[~counts]]
    region = detections.object_box[~counts], detections.object_label[~counts]
    for found, objects, regions in _by_image(len(detections.images), image, *own):
        iou = _iou(box[found], object_box[objects])
        inside = _inside(box[found], region[0][regions]) & (label[found, None] == region[1][regions])
        _judge(judged, found, objects, iou, inside.any(1))
        shown = score[found] >= CONFUSED_SCORE
        _confuse(confusion, label[found][shown], object_label[objects], iou[shown], inside.any(1)[shown])
    has = judged.found >= 0
    kept_box, kept_score = np.full((len(has), 4), np.nan), np.full(len(has), np.nan)
    kept_box[has], kept_score[has] = box[judged.found[has]], score[judged.found[has]]
    ap50, gains = _gains(judged, classes)
    unfound = tuple(sorted({*object_label.tolist()} - {*object_label[has].tolist()}))
    return Lost(ap50, gains, confusion, kept_box, kept_score, unfound, _truth(detections))


def _counted(found: Detections) -> tuple[Ints, Floats, Ints, Floats, Ints]:
    """Places of the detections that count, by image and falling score, with box, class, score and image."""
    order = np.lexsort((-found.score, found.image))
    image = found.image[order].astype(int)
    rank = np.arange(len(order)) - np.searchsorted(image, image)
    order, image = order[rank < MOST], image[rank < MOST]
    label, score = found.label[order].astype(int), found.score[order].astype(float)
    return order, found.box[order].astype(float), label, score, image


def _by_image(images: int, *owners: Ints) -> Iterator[list[slice]]:
    """Of each image the slices of several arrays, whose rows are in the order of the images."""
    ends = [np.searchsorted(owner, np.arange(images + 1)) for owner in owners]
    for place in range(images):
        yield [slice(end[place], end[place + 1]) for end in ends]


def _judge(judged: _Judged, found: slice, objects: slice, iou: Floats, crowded: Flags) -> None:
    """Tell of one image's detections what each is, and of its objects what finds them.

    Args:
        judged: of all images; takes the answer.
        found: the image's detections, d of them by falling score.
        objects: its objects, g of them.
        iou: (d, g).
        crowded: (d,) whether each lies in a region that its class ignores.
    """
    if not iou.shape[1]:
        judged.ignored[found] = crowded
        return
    same = judged.label[found, None] == judged.object_label[objects]
    own, other = np.where(same, iou, 0.0), np.where(same, 0.0, iou)
    free, finder = own.copy(), np.full(iou.shape[1], -1)
    for row in np.flatnonzero(own.max(1) >= FOREGROUND):
        best = free[row].argmax()
        if free[row, best] >= FOREGROUND:
            finder[best], free[:, best] = row, 0.0
    taken = finder >= 0
    wrong = np.ones(len(iou), bool)
    wrong[finder[taken]] = False
    best_own, best_other = own.max(1), other.max(1)
    # the first that holds, in the order of the paper's definitions
    kind = np.select(
        [
            ~wrong,
            (best_own >= BACKGROUND) & (best_own <= FOREGROUND),
            best_other >= FOREGROUND,
            np.where(taken, own, 0.0).max(1) >= FOREGROUND,
            iou.max(1) <= BACKGROUND,
        ],
        [RIGHT, LOCATION, CLASS, DUPLICATE, NOTHING],
        BOTH,
    )
    judged.kind[found], judged.ignored[found] = kind, crowded & wrong
    judged.found[objects] = np.where(taken, found.start + finder, -1)
    target = np.where(kind == CLASS, other.argmax(1), own.argmax(1))
    fixable = ((kind == CLASS) | (kind == LOCATION)) & ~taken[target]
    # of several that would find one object the highest scored does
    reached, rows = np.unique(target[fixable], return_index=True)
    judged.reachable[objects.start + reached] = True
    judged.fixes[found.start + np.flatnonzero(fixable)[rows]] = objects.start + reached


def _confuse(confusion: Ints, label: Ints, object_label: Ints, iou: Floats, crowded: Flags) -> None:
    """Count one image: each detection, by falling score, takes the free object of largest IoU, of any class.

    Args:
        confusion: (K + 1, K + 1) takes the counts.
        label: (d,) of the detections.
        object_label: (g,) of the objects.
        iou: (d, g).
        crowded: (d,) those that count only where they find an object.
    """
    nothing = len(confusion) - 1
    free = iou.copy()
    left = np.ones(len(object_label), bool)
    for row, name in enumerate(label):
        best = free[row].argmax() if len(object_label) else -1
        if best >= 0 and free[row, best] >= FOREGROUND:
            confusion[object_label[best], name] += 1
            left[best], free[:, best] = False, 0.0
        elif not crowded[row]:
            confusion[nothing, name] += 1
    confusion[:, nothing] += np.bincount(object_label[left], minlength=len(confusion))


def _gains(judged: _Judged, classes: int) -> tuple[float, dict[str, float]]:
    """AP50, and by error what it would gain, in points."""
    objects = np.bincount(judged.object_label, minlength=classes)
    right = judged.kind == RIGHT
    counts = right | ~judged.ignored
    before = _ap(judged.label, judged.score, right, counts, objects, objects)
    gains = {}
    for name, kind in _OF_DETECTIONS.items():
        label, fixed, kept = judged.label.copy(), right.copy(), counts & (judged.kind != kind)
        if kind in (CLASS, LOCATION):
            mended = (judged.kind == kind) & (judged.fixes >= 0)
            label[mended] = judged.object_label[judged.fixes[mended]]
            fixed |= mended
            kept |= mended
        gains[name] = _ap(label, judged.score, fixed, kept, objects, objects) - before
    unfound = judged.found < 0
    fewer = {"miss": unfound & ~judged.reachable, "fn": unfound}
    left = {
        name: objects - np.bincount(judged.object_label[gone], minlength=classes)
        for name, gone in fewer.items()
    }
    plain = judged.label, judged.score, right, counts
    gains["miss"] = _ap(*plain, left["miss"], objects) - before
    # fewer steps of recall may end a little lower
    gains = {name: max(0.0, gain) for name, gain in gains.items()}
    gains["fp"] = _ap(judged.label, right.astype(float), right, counts, objects, objects) - before
    gains["fn"] = _ap(*plain, left["fn"], objects) - before
    return before, gains


def _ap(label: Ints, score: Floats, right: Flags, counts: Flags, objects: Ints, known: Ints) -> float:
    """AP in points: COCO's mean precision at 101 recalls, mean over the classes.

    Args:
        label: (D,) of the detections.
        score: (D,).
        right: (D,) whether each finds an object.
        counts: (D,) whether it is there.
        objects: (K,) how many objects of each class are to be found.
        known: (K,) how many there are; a class without any is in no mean.

    Returns:
        0 to 100. A class of which neither objects to find nor detections are left is in no mean either; 100
        where that is so of all, for nothing is wrong any more.
    """
    places = np.flatnonzero(counts)
    places = places[np.lexsort((-score[places], label[places]))]
    ends = np.searchsorted(label[places], np.arange(len(objects) + 1))
    found = []
    for name in np.flatnonzero(known):
        hits = right[places[ends[name] : ends[name + 1]]]
        if not objects[name]:
            found += [0.0] * bool(len(hits))
            continue
        true = np.cumsum(hits)
        best = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
        reached = np.searchsorted(true / objects[name], RECALLS)
        found.append(float(best[reached[reached < len(hits)]].sum() / len(RECALLS)))
    return 100 * float(np.mean(found)) if found else 100.0


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """(n, m) area in common of (n, 4) and (m, 4) xyxy."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - low
    area: Floats = sides.clip(0).prod(-1)
    return area


def _areas(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return area


def _iou(boxes: Floats, others: Floats) -> Floats:
    """(n, m) IoU; 0 of boxes without area."""
    both = _overlap(boxes, others)
    union = _areas(boxes)[:, None] + _areas(others) - both
    iou: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return iou


def _inside(boxes: Floats, regions: Floats) -> Flags:
    """(n, m) whether more than half of a box lies in a region, as COCO judges crowds."""
    within: Flags = _overlap(boxes, regions) > FOREGROUND * _areas(boxes)[:, None]
    return within


def _pairwise(boxes: Floats, others: Floats) -> Floats:
    """(n,) IoU of boxes two by two."""
    low, high = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    both = (high - low).clip(0).prod(-1)
    union = _areas(boxes) + _areas(others) - both
    iou: Floats = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return iou


def _truth(found: Detections) -> str:
    parts = found.images, found.object_image, found.object_box, found.object_label, found.ignored
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]
