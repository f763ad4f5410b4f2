"""VOC's mAP equals mmdet's, and what is worked out by hand."""

from __future__ import annotations

from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest

from kdlab.training.voc import ImageBoxes, voc_metrics

pytestmark = pytest.mark.usefixtures("torch_")


def image(found: Any, found_labels: Any, boxes: Any, labels: Any, ignored: Any = ()) -> ImageBoxes:
    return ImageBoxes(
        np.reshape(np.array(found, float), (-1, 5)),
        np.array(found_labels, int),
        np.reshape(np.array(boxes, np.float32), (-1, 4)),
        np.array(labels, int),
        np.array(ignored if len(ignored) else [False] * len(labels), bool),
    )


A, B, C, FAR = [0, 0, 9, 9], [20, 20, 39, 39], [50, 50, 69, 69], [80, 80, 99, 99]


def test_worked_by_hand() -> None:
    # Three objects, A and B difficult not, found in the order: A hit, FAR miss, B hit; the last is not found.
    # Precision 1 at recall 1/3, 2/3 at recall 2/3, 0 beyond.
    one = image([[*A, 0.9], [*FAR, 0.8], [*B, 0.7]], [0, 0, 0], [A, B, C], [0, 0, 0])
    found = voc_metrics([one], 1)
    # recalls 0, 0.1, 0.2, 0.3 see 1; 0.4, 0.5, 0.6 see 2/3; the other four 0
    assert found["VOC07"] == pytest.approx(100 * (4 * 1 + 3 * 2 / 3) / 11, abs=1e-4)
    assert found["VOC12"] == pytest.approx(100 * (1 / 3 * 1 + 1 / 3 * 2 / 3), abs=1e-4)


def test_difficult_objects_are_neither_sought_nor_punished() -> None:
    # C is difficult and found best of all: without it the curve of A and B alone
    one = image([[*C, 0.95], [*A, 0.9], [*B, 0.7]], [0, 0, 0], [A, B, C], [0, 0, 0], [0, 0, 1])
    assert voc_metrics([one], 1)["VOC12"] == pytest.approx(100)
    unseen = image([[*A, 0.9]], [0], [A, C], [0, 0], [0, 1])
    assert voc_metrics([unseen], 1)["VOC12"] == pytest.approx(100)


def test_a_second_detection_of_an_object_is_a_miss() -> None:
    one = image([[*A, 0.9], [*A, 0.8], [*B, 0.7]], [0, 0, 0], [A, B], [0, 0])
    assert voc_metrics([one], 1)["VOC12"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3), abs=1e-4)


def test_classes_without_objects_do_not_count() -> None:
    one = image([[*A, 0.9], [*B, 0.9]], [0, 1], [A], [0])
    assert voc_metrics([one], 3) == {"VOC07": pytest.approx(100), "VOC12": pytest.approx(100)}


def test_a_class_that_is_not_found_has_0() -> None:
    assert voc_metrics([image([], [], [A], [0])], 1) == {"VOC07": 0.0, "VOC12": 0.0}


def test_only_difficult_objects_give_no_metric() -> None:
    assert voc_metrics([image([[*A, 0.9]], [0], [A], [0], [1])], 1) == {}


@pytest.mark.parametrize("seed", range(4))
def test_equals_eval_map_of_mmdet(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdet.evaluation.functional import eval_map, mean_ap

    monkeypatch.setattr(mean_ap, "Pool", ThreadPool)
    rng = np.random.default_rng(seed)
    images, found, truth = [], [], []
    for _ in range(12):
        count = int(rng.integers(0, 6))
        corners = rng.integers(0, 60, (count, 2))
        boxes = np.hstack([corners, corners + rng.integers(5, 40, (count, 2))]).astype(np.float32)
        labels, ignored = rng.integers(0, 3, count), rng.random(count) < 0.2
        moved = np.repeat(boxes, 3, 0) + rng.normal(0, 3, (3 * count, 4))
        guesses = np.hstack([moved, rng.random((3 * count, 1))])
        guessed = np.where(rng.random(3 * count) < 0.8, np.repeat(labels, 3), rng.integers(0, 3, 3 * count))
        images.append(image(guesses, guessed, boxes, labels, ignored))
        found.append([guesses[guessed == label].astype(np.float32) for label in range(3)])
        truth.append({"bboxes": boxes[~ignored], "labels": labels[~ignored],
                      "bboxes_ignore": boxes[ignored], "labels_ignore": labels[ignored]})  # fmt: skip
    ours = voc_metrics(images, 3)
    for name, mode in (("VOC07", "11points"), ("VOC12", "area")):
        theirs, _ = eval_map(found, truth, iou_thr=0.5, nproc=1, logger="silent", eval_mode=mode,
                             use_legacy_coordinate=True)  # fmt: skip
        assert ours[name] == pytest.approx(100 * theirs, abs=1e-4)
        assert 10 < ours[name] < 95
