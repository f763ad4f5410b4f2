"""Errors of detectors: each kind by hand, and all of them as the authors' package counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kdlab.jobs.detections import Detections
from kdlab.reporting.tide import KINDS, Agreement, lost

Row = tuple[Any, ...]


def made(objects: Sequence[Row], found: Sequence[Row], images: int = 1) -> Detections:
    """Objects as (image, label, box[, ignored]) and detections as (image, label, score, box)."""
    objects, found = sorted(objects, key=lambda row: row[0]), sorted(found, key=lambda row: row[0])
    return Detections(
        images=np.arange(1, images + 1, dtype=np.int32),
        image=np.array([row[0] for row in found], np.int32),
        box=np.array([row[3] for row in found], np.float32).reshape(-1, 4),
        score=np.array([row[2] for row in found], np.float32),
        label=np.array([row[1] for row in found], np.int16),
        object_image=np.array([row[0] for row in objects], np.int32),
        object_box=np.array([row[2] for row in objects], float).reshape(-1, 4),
        object_label=np.array([row[1] for row in objects], np.int16),
        ignored=np.array([len(row) > 3 for row in objects], bool),
    )


def scattered(
    seed: int, images: int = 12, classes: int = 3, crowds: float = 0.1, most: int = 30
) -> Detections:
    """Detections around objects and beside them; image 3 has no objects, image 5 no detections."""
    rng = np.random.default_rng(seed)
    objects: list[Row] = []
    found: list[Row] = []
    for image in range(images):
        count = 0 if image == 3 else int(rng.integers(1, 8))
        corners, sides = rng.uniform(0, 80, (count, 2)), rng.uniform(8, 40, (count, 2))
        boxes, labels = np.hstack([corners, corners + sides]), rng.integers(0, classes, count)
        for box, label in zip(boxes, labels, strict=True):
            objects.append((image, label, box, True) if rng.random() < crowds else (image, label, box))
        for _ in range(0 if image == 5 else int(rng.integers(1, most))):
            if count and rng.random() < 0.8:
                place = rng.integers(count)
                box = boxes[place] + rng.normal(0, 4, 4) * rng.choice([0.3, 1, 2])
                box[2:] = np.maximum(box[2:], box[:2] + 1)
                label = labels[place] if rng.random() < 0.8 else rng.integers(classes)
            else:
                corner = rng.uniform(0, 80, 2)
                box, label = np.hstack([corner, corner + rng.uniform(8, 40, 2)]), rng.integers(classes)
            found.append((image, label, rng.random(), box))
    return made(objects, found, images)


# AP50, then dAP of cls, loc, both, dup, bkg, miss, FP, FN: by tidecv 1.0.1 from the same rows
GOLDEN: dict[str, tuple[dict[str, Any], list[float]]] = {
    "plain": (
        {"seed": 0, "crowds": 0.0},
        [33.897297286, 1.024984630, 15.651291998, 1.648756359, 2.252797299,
         6.939843700, 7.345214226, 36.399732417, 14.258134315],
    ),
    "crowds": (
        {"seed": 1, "crowds": 0.4},
        [43.828811964, 6.436860228, 21.025206321, 0.355160453, 0.183238401,
         6.255589334, 0.839040013, 36.699240842, 6.251394501],
    ),
    "one class": (
        {"seed": 2, "classes": 1},
        [14.455078948, 0.000000000, 23.879248265, 0.000000000, 2.288737998,
         6.225763483, 0.956424511, 48.911257686, 8.303027049],
    ),
    "many classes": (
        {"seed": 3, "classes": 8, "images": 30},
        [24.268795823, 2.738475261, 11.944153788, 2.688411656, 2.665546097,
         4.711105045, 4.977292888, 38.973778435, 13.201278057],
    ),
    "beyond 100": (
        {"seed": 4, "images": 8, "most": 180},
        [30.949790045, 1.558456453, 3.745528388, 1.442706347, 2.135183975,
         5.120720431, 8.725357858, 45.947899724, 8.725357858],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_errors_are_those_of_the_authors_package(name: str) -> None:
    settings, numbers = GOLDEN[name]
    found = lost(scattered(**settings), settings.get("classes", 3))
    np.testing.assert_allclose([found.ap50, *found.gains.values()], numbers, rtol=0, atol=1e-6)
    assert [*found.gains] == [*KINDS]


A, B = (0, 0, 10, 10), (50, 50, 60, 60)
"""Two places without overlap."""
LEFT = (0, 0, 10, 5)
"""Of IoU 0.5 with A."""
THIRD = (0, 0, 10, 3)
"""Of IoU 0.3 with A."""


def gains(objects: Sequence[Row], found: Sequence[Row], classes: int = 2) -> dict[str, float]:
    """What is not 0, rounded."""
    told = lost(made(objects, found), classes).gains
    return {name: round(gain, 1) for name, gain in told.items() if round(gain, 1)}


BOTH = [(0, 0, A), (0, 1, B)]
"""An object of each of two classes."""
FINDS_B = (0, 1, 0.5, B)


SMALL = {"fp": 25.0, "fn": 25.0}
"""What both cost where one class has nothing and the other one wrong detection before its right one."""
ALONE: dict[str, tuple[list[Row], dict[str, float]]] = {
    "all right": ([(0, 0, 0.9, A), FINDS_B], {}),
    "wrong class": ([(0, 1, 0.9, A), FINDS_B], {"cls": 75.0, **SMALL}),
    "wrong place": ([(0, 0, 0.9, THIRD), FINDS_B], {"loc": 50.0}),
    "both": ([(0, 1, 0.9, THIRD), FINDS_B], {"both": 25.0, "miss": 25.0, **SMALL}),
    "duplicate behind all": ([(0, 0, 0.9, A), (0, 1, 0.9, B), (0, 1, 0.95, B)], {}),
    "on nothing": ([(0, 0, 0.9, A), (0, 1, 0.9, (20, 20, 30, 30)), FINDS_B], {"bkg": 25.0, "fp": 25.0}),
    "missed": ([(0, 0, 0.9, A)], {"miss": 50.0, "fn": 50.0}),
}


@pytest.mark.parametrize(("found", "told"), ALONE.values(), ids=ALONE)
def test_each_error_alone(found: list[Row], told: dict[str, float]) -> None:
    assert gains(BOTH, found) == told


def test_a_second_detection_costs_where_it_stands_before_a_right_one() -> None:
    objects = [(0, 0, A), (0, 0, B)]
    found = [(0, 0, 0.9, A), (0, 0, 0.8, A), (0, 0, 0.7, B)]
    # precision 1 up to recall 0.5 and 2/3 beyond, of 51 and 50 recalls
    assert gains(objects, found, 1) == {
        "dup": round(100 * 50 / 101 / 3, 1),
        "fp": round(100 * 50 / 101 / 3, 1),
    }


def test_one_class_cannot_be_mistaken() -> None:
    told = lost(scattered(7, classes=1), 1)
    assert told.gains["cls"] == told.gains["both"] == 0.0
    assert told.gains["loc"] > 1


def test_of_several_that_would_find_an_object_one_is_put_right() -> None:
    # the two that are put right would be a right one and a duplicate: the lower scored is taken out
    found = [(0, 0, 0.9, THIRD), (0, 0, 0.8, (7, 0, 10, 10))]
    assert gains([(0, 0, A)], found, 1) == {"loc": 100.0}


def test_a_detection_in_an_ignored_region_of_its_class_is_no_error() -> None:
    region = (0, 0, (40, 40, 90, 90), True)
    right, inside = (0, 0, 0.5, A), (0, 0, 0.9, (50, 50, 60, 60))
    assert gains([(0, 0, A), region], [right, inside]) == {}
    other_class = (0, 1, (40, 40, 90, 90), True)
    assert gains([(0, 0, A), other_class], [right, inside]) == {"bkg": 50.0, "fp": 50.0}


def test_the_hundred_highest_detections_of_an_image_count() -> None:
    wrong = [(0, 1, 0.9, (20, 20, 30, 30))] * 99
    right = (0, 0, 0.8, A)
    assert lost(made([(0, 0, A)], [*wrong, right]), 2).ap50 == pytest.approx(100)
    assert lost(made([(0, 0, A)], [*wrong, wrong[0], right]), 2).ap50 == 0.0


def test_a_class_without_objects_is_in_no_mean() -> None:
    found = lost(made([(0, 0, A)], [(0, 0, 0.5, A), (0, 1, 0.9, B)]), 3)
    assert found.ap50 == pytest.approx(100)
    assert set(found.gains.values()) == {0.0}
    # its detection counts where it is seen
    assert found.confusion[-1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("objects", [[(0, 0, A)], [(0, 0, A), (0, 1, B)]])
def test_a_model_that_finds_nothing_misses_all(objects: list[Row]) -> None:
    found = lost(made(objects, [], images=2), 2)
    assert found.ap50 == 0.0
    told = {name: gain for name, gain in found.gains.items() if gain}
    assert told == {"miss": 100.0, "fn": 100.0}
    assert found.confusion[:, -1].sum() == len(objects)
    assert np.isnan(found.score).all()


def test_confusion_counts_each_object_once_and_what_lies_on_none() -> None:
    objects = [(0, 0, A), (0, 1, B), (0, 1, (80, 80, 90, 90))]
    found = [
        (0, 1, 0.9, A),  # wrong, and takes the object
        (0, 0, 0.8, A),  # right, and too late
        (0, 1, 0.7, B),
        (0, 0, 0.29, (80, 80, 90, 90)),  # below the score
    ]
    assert lost(made(objects, found), 2).confusion.tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_rows_of_a_confusion_matrix_are_the_objects_of_the_classes() -> None:
    detections = scattered(3, crowds=0.3)
    confusion = lost(detections, 3).confusion
    objects = detections.object_label[~detections.ignored]
    assert confusion[:3].sum(1).tolist() == np.bincount(objects, minlength=3).tolist()


def test_a_detection_in_an_ignored_region_is_not_confused_with_background() -> None:
    found = made([(0, 0, A), (0, 1, B, True)], [(0, 0, 0.9, A), (0, 1, 0.9, B)])
    assert lost(found, 2).confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_student_that_is_its_teacher_agrees_in_everything() -> None:
    one = lost(scattered(1), 3)
    told = Agreement.of(one, one)
    assert told is not None
    assert (told.iou, told.score) == (1.0, 0.0)
    assert told.correlation == pytest.approx(1)
    assert told.both == pytest.approx(np.isfinite(one.score).mean())


def test_agreement_by_hand() -> None:
    objects = [(0, 0, A), (0, 1, B), (0, 1, (80, 80, 90, 90))]
    teacher = lost(made(objects, [(0, 0, 0.9, A), (0, 1, 0.5, B)]), 2)
    student = lost(made(objects, [(0, 0, 0.7, LEFT), (0, 1, 0.4, B), (0, 1, 0.9, (80, 80, 90, 90))]), 2)
    told = Agreement.of(student, teacher)
    assert told is not None
    # the third object is found by one of them
    assert told.both == pytest.approx(2 / 3)
    assert told.iou == pytest.approx((0.5 + 1) / 2)
    assert told.score == pytest.approx((-0.2 - 0.1) / 2)
    assert told.correlation == pytest.approx(1)


def test_models_that_saw_other_objects_have_no_agreement() -> None:
    assert Agreement.of(lost(scattered(1), 3), lost(scattered(2), 3)) is None


def test_agreement_on_nothing_has_no_means() -> None:
    told = Agreement.of(lost(made([(0, 0, A)], []), 1), lost(made([(0, 0, A)], [(0, 0, 0.5, A)]), 1))
    assert told is not None
    assert told.both == 0
    assert np.isnan([told.iou, told.score, told.correlation]).all()


def test_a_class_of_which_nothing_is_found_is_named() -> None:
    found = lost(made(BOTH, [(0, 0, 0.9, (20, 20, 30, 30)), FINDS_B]), 2)
    assert found.unfound == (0,)
    # as in tidecv: its AP stays 0 when nothing is left to find
    assert found.gains["fn"] == found.gains["miss"] == 0.0
    assert lost(made(BOTH, [(0, 0, 0.9, A), FINDS_B]), 3).unfound == ()
