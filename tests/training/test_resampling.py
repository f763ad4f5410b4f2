"""AP of resampled images equals hotcoco's own over a data set in which the images are repeated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hotcoco import COCO
from hotcoco import COCOeval as Comparison

from kdlab.jobs.resampled import RESAMPLES
from kdlab.training.matching import IOU_THRESHOLDS, Matches, matches_of
from kdlab.training.resampling import average_precision, draw, of_each_image, resample

CATEGORIES = [1, 2, 3, 4]


class Scenes:
    """Images with objects, crowds, near misses and false alarms, whose scores tie now and then."""

    def __init__(self, images: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = images
        self.objects: list[list[dict[str, Any]]] = []
        self.found: list[list[list[float]]] = []
        for _ in range(images):
            # class 4 has objects in few images, so that some resamples lack it
            count = rng.integers(0, 5)
            boxes = np.hstack([rng.uniform(0, 40, (count, 2)), rng.uniform(6, 24, (count, 2))])
            labels = rng.choice(CATEGORIES, count, p=[0.4, 0.3, 0.29, 0.01])
            self.objects.append(
                [
                    {"category_id": int(label), "bbox": list(box), "area": box[2] * box[3],
                     "iscrowd": int(rng.random() < 0.05)}
                    for box, label in zip(boxes, labels, strict=True)
                ]
            )  # fmt: skip
            near = np.repeat(boxes, 2, 0) + rng.normal(0, 1.5, (2 * count, 4))
            false = np.hstack([rng.uniform(0, 40, (3, 2)), rng.uniform(6, 24, (3, 2))])
            # equal scores in several images, not in one: its copies would take turns there
            score = (rng.choice(60, 2 * count + 3, replace=False) / 60).astype(np.float32)
            label = np.concatenate([np.repeat(labels, 2), rng.choice(CATEGORIES[:3], 3)])
            self.found.append(
                [list(row) for row in np.column_stack([np.vstack([near, false]), score, label])]
            )

    def labelled(self, times: Any) -> tuple[COCO, COCO]:
        """Labels and detections where image i is there `times[i]` times."""
        images, annotations, rows = [], [], []
        for place in np.repeat(np.arange(self.images), times):
            number = len(images) + 1
            images.append({"id": number, "width": 64, "height": 64, "file_name": ""})
            for one in self.objects[place]:
                annotations.append({**one, "id": len(annotations) + 1, "image_id": number})
            rows += [[number, *row] for row in self.found[place]]
        names = [{"id": number, "name": str(number)} for number in CATEGORIES]
        truth = COCO({"images": images, "categories": names, "annotations": annotations})
        return truth, truth.load_res(np.array(rows))

    def matches(self) -> Matches:
        return matches_of(*self.labelled(np.ones(self.images, int)), range(1, self.images + 1), CATEGORIES)


def ap_of(labelled: tuple[COCO, COCO]) -> float:
    """hotcoco's own."""
    comparison = Comparison(*labelled, "bbox")
    comparison.evaluate()
    comparison.accumulate()
    precision = np.asarray(comparison.eval["precision"])[..., 0, -1]
    return float(100 * precision[precision > -1].mean())


def test_resampled_ap_equals_hotcocos_on_200_images() -> None:
    scenes = Scenes(200)
    times = np.vstack([np.ones((1, 200), np.int32), draw(200, 12, np.random.default_rng(0))])
    expected = [ap_of(scenes.labelled(row)) for row in times]
    assert average_precision(scenes.matches(), times) == pytest.approx(expected, abs=1e-6)


def test_a_class_that_no_drawn_image_holds_is_left_out_of_the_mean() -> None:
    scenes = Scenes(40, seed=3)
    times = np.array([[1] * 10 + [0] * 30, [0] * 39 + [1]], np.int32)
    assert any(scenes.matches().objects[:10].sum(0) == 0)
    expected = [ap_of(scenes.labelled(row)) for row in times]
    assert average_precision(scenes.matches(), times) == pytest.approx(expected, abs=1e-6)


def test_images_without_objects_have_no_ap() -> None:
    scenes = Scenes(30)
    empty = np.array([[not one for one in scenes.objects]], np.int32)
    assert empty.any()
    assert np.isnan(average_precision(scenes.matches(), empty)).all()


def test_nothing_found_is_worth_0() -> None:
    matches = Matches(
        images=np.arange(2),
        image=np.empty(0, np.int32),
        label=np.empty(0, np.int16),
        score=np.empty(0, np.float32),
        right=np.empty(0, np.uint16),
        ignored=np.empty(0, np.uint16),
        objects=np.ones((2, 1), np.uint16),
    )
    assert average_precision(matches, draw(2, 5, np.random.default_rng(0))).tolist() == [0.0] * 5


def test_how_many_resamples_are_asked_for_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matches, times = Scenes(60).matches(), draw(60, 25, np.random.default_rng(0))
    whole = average_precision(matches, times)
    monkeypatch.setattr("kdlab.training.resampling._CELLS", 1)
    assert (average_precision(matches, times) == whole).all()


def test_a_resample_is_as_many_images_as_there_are() -> None:
    times = draw(50, 200, np.random.default_rng(0))
    assert (times.sum(1) == 50).all()
    assert times.mean(0) == pytest.approx(np.ones(50), abs=0.4)


def test_models_of_equally_many_images_are_resampled_alike() -> None:
    # the same numbers as when all resamples are drawn in one go
    times = draw(40, RESAMPLES, np.random.default_rng(0))
    for seed in (0, 1):
        matches = Scenes(40, seed).matches()
        found = resample(matches)
        assert found.images == 40
        assert np.array_equal(found.ap, average_precision(matches, times), equal_nan=True)


def test_other_objects_are_another_truth() -> None:
    matches = Scenes(20).matches()
    others = replace(matches, objects=matches.objects + np.uint16(1))
    truths = [resample(one).truth for one in (matches, matches, others)]
    assert truths[0] == truths[1] != truths[2]


def test_images_are_matched_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = Scenes(30)
    whole = scenes.matches()
    monkeypatch.setattr("kdlab.training.matching._IMAGES_AT_ONCE", 7)
    parts = scenes.matches()
    assert all((getattr(parts, name) == array).all() for name, array in vars(whole).items())


def test_a_bit_a_threshold() -> None:
    right = Scenes(50).matches().right
    # what is right at a threshold need not be at a stricter one
    counts = [(right >> bit & 1).sum() for bit in range(IOU_THRESHOLDS)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_ap_of_one_image_is_the_mean_over_the_classes_in_it() -> None:
    every, half = 2**IOU_THRESHOLDS - 1, 2**5 - 1
    # image, label, score, right: in image 0 one of two objects of class 0, and class 1 below a false alarm,
    # at IoU 0.50 to 0.70; image 1 is empty; in image 2 a false alarm of a class that is not there
    rows = [
        (0, 0, 0.9, every), (2, 0, 0.5, every), (0, 1, 0.9, 0), (0, 1, 0.8, half),
        (1, 1, 0.7, 0), (2, 1, 0.6, 0),
    ]  # fmt: skip
    image, label, score, right = (np.array(column) for column in zip(*rows, strict=True))
    objects = np.array([[2, 1], [0, 0], [1, 0]], np.uint16)
    ignored = np.zeros(len(rows), np.uint16)
    matches = Matches(
        np.array([4, 5, 6]), image.astype(np.int32), label.astype(np.int16), score, right, ignored, objects
    )
    # of the 101 recalls 0.00 to 0.50 are reached, at precision 1; half of the thresholds at precision 1/2
    first = 100 * (51 / 101 + 0.5 * 0.5) / 2
    assert of_each_image(matches) == pytest.approx([first, np.nan, 100.0], nan_ok=True)


def test_ap_of_each_image_is_that_of_a_resample_of_it_alone() -> None:
    matches = Scenes(12).matches()
    alone = average_precision(matches, np.eye(12, dtype=np.int32))
    assert np.isnan(alone).any()
    assert of_each_image(matches) == pytest.approx(alone, nan_ok=True)
