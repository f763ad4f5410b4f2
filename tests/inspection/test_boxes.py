from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdlab.inspection import boxes

FIRST = [10.5, 10.5, 60.5, 50.5]


def kinds(data: Any) -> set[str]:
    return {defect.kind for defect in data.examine().defects}


def second(data: Any, **values: Any) -> None:
    """Change the second object of the first image."""
    data.labels["train"]["annotations"][1].update(values)


def test_equal_boxes_of_two_classes_are_no_repetition(data: Any) -> None:
    second(data, bbox=FIRST)
    assert "box-twice" not in kinds(data)


def test_a_crowd_may_hold_a_box_of_its_class(data: Any) -> None:
    second(data, bbox=FIRST, category_id=1, iscrowd=1)
    assert "box-twice" not in kinds(data)


def test_equal_boxes_are_not_told_as_near_besides(data: Any) -> None:
    second(data, bbox=FIRST, category_id=1)
    assert "near-duplicate" not in kinds(data)


def test_boxes_of_two_images_are_not_compared(data: Any) -> None:
    assert "box-twice" not in kinds(data)
    assert [entry["bbox"] for entry in data.labels["train"]["annotations"]].count(FIRST) == 2


def test_iou_of_shifted_inner_empty_and_negative_boxes() -> None:
    ious = boxes._ious(
        np.array([[0, 0, 10, 10], [5, 0, 10, 10], [0, 0, 10, 8], [3, 3, 0, 0], [9, 9, -4, 5.0]])
    )
    assert ious[0] == pytest.approx([1, 1 / 3, 0.8, 0, 0])
    assert np.allclose(ious, ious.T)


def test_iou_on_the_limit_is_not_near(data: Any) -> None:
    data.labels["train"]["annotations"][0]["bbox"] = [0.0, 0.0, 50.0, 50.0]
    second(data, bbox=[0.0, 0.0, 50.0, 40.0], category_id=1)
    assert "near-duplicate" not in kinds(data)


@pytest.mark.parametrize(("over", "told"), [(0.0, False), (0.01, False), (0.05, True)])
def test_a_hair_behind_the_edge_is_rounding(over: float, told: bool, data: Any) -> None:
    second(data, bbox=[150.0, 10.5, 50.0 + over, 50.5])
    assert ("box-cut" in kinds(data)) == told


def test_a_box_before_the_edge_is_cut_or_outside(data: Any) -> None:
    second(data, bbox=[-9.5, 10.5, 50.5, 50.5])
    assert "box-cut" in kinds(data)
    second(data, bbox=[-60.5, 10.5, 50.5, 50.5])
    assert kinds(data) == {"box-outside"}


def test_where_no_size_is_known_no_box_is_outside(data: Any) -> None:
    second(data, bbox=[900.5, 10.5, 60.5, 50.5])
    data.labels["train"]["images"][0].update(width=None, height=None)
    assert "box-outside" not in kinds(data)


def test_few_boxes_are_usual_where_all_images_have_few(data: Any) -> None:
    data.labels["train"]["annotations"].pop()
    assert "few-boxes" not in kinds(data)


@pytest.mark.parametrize(("low", "added", "told"), [(1.0, 45, True), (1.0, 40, False), (0.0, 45, False)])
def test_only_many_boxes_without_a_0_look_1_based(low: float, added: int, told: bool, data: Any) -> None:
    data.add_box("train", 1, [low, 1.0, 9.5, 9.5])
    data.add_box("train", 1, [101.0, 1.0, 99.0, 9.5])
    for step in range(added):
        data.add_box("train", 1, [1.5 + step, 1.0, 99.5, 9.5])
    assert ("one-based" in kinds(data)) == told
