"""Labels whose entries are right one by one and cannot be meant, and labels of which nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from kdlab.datasets._coco_objects import MOST_LOST, NOTHING_LEFT, complete, unmeant
from kdlab.errors import Fault

PIXELS = [[40, 50, 30, 20], [60, 10, 20, 30], [5, 5, 50, 60], [30, 40, 60, 30]]
CORNERS = [[x, y, x + w, y + h] for x, y, w, h in PIXELS]


def faults(boxes: list[list[float]], *, size: tuple[int, int] = (96, 80), **more: Any) -> list[Fault]:
    """What is wrong with one image's boxes."""
    objects = [{"id": number, "image_id": 1, "bbox": box, **more} for number, box in enumerate(boxes, 1)]
    for entry in objects:
        complete(entry)
    image = {"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}
    return unmeant({"images": [image], "annotations": objects}, "f.json")


def test_sound_boxes_are_no_fault() -> None:
    assert faults(PIXELS) == []


@pytest.mark.parametrize(
    ("more", "got", "fix"),
    [
        (
            {"area": 0},
            "area is not above 0: 4 (annotation 1, annotation 2, annotation 3 and 1 more)",
            "leave",
        ),
        ({"area": -3.5}, "area is not above 0: 4", "leave area out"),
        ({"iscrowd": 1}, "iscrowd is 1: 4", "set iscrowd to 0"),
        ({"ignore": 1}, "ignore is 1: 4", "set ignore to 0"),
        ({"bbox": [200, 1, 5, 5]}, "the box is outside of its image: 4", "in pixels"),
        ({"bbox": [20, 1, 0.5, 5]}, "the box is smaller than a pixel: 4", "in pixels"),
    ],
)
def test_labels_of_which_no_object_is_left_say_why(more: dict[str, Any], got: str, fix: str) -> None:
    (fault,) = faults(PIXELS, **more)
    assert (fault.what, fault.where) == (NOTHING_LEFT, "f.json")
    assert fault.got.startswith(got)
    assert fix in fault.fix


def test_labels_without_annotations_leave_nothing() -> None:
    (fault,) = faults([])
    assert (fault.what, fault.got) == (NOTHING_LEFT, "no annotations")


def test_one_object_that_is_left_is_enough() -> None:
    assert faults([[1, 1, 0, 0], [1, 1, 5, 5]]) == []


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"bbox": [200, 1, 5, 5]}, "the box is outside of its image: 4"),
        ({"area": 0}, "area is not above 0: 4"),
        ({"bbox": [20, 1, 0.5, 5]}, "the box is smaller than a pixel: 4"),
    ],
)
def test_labels_of_which_half_or_more_would_be_lost_are_refused(more: dict[str, Any], got: str) -> None:
    def told(sound: int, odd: int) -> list[Any]:
        extra = [{}] * sound + [more] * odd
        image = {"id": 1, "file_name": "a.jpg", "width": 96, "height": 80}
        boxes = [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [10 + number, 9, 30, 20], **one}
            for number, one in enumerate(extra, start=1)
        ]
        for one in boxes:
            complete(one)
        return unmeant({"images": [image], "annotations": boxes}, "f.json")

    (fault,) = told(4, 4)
    assert (fault.what, fault.where) == (MOST_LOST, "f.json")
    assert fault.got.startswith(got)
    assert told(5, 4) == []
    # of so few it may be chance
    assert told(1, 3) == []


def test_a_file_that_is_listed_twice_needs_the_same_objects_both_times() -> None:
    def told(*boxes: list[int]) -> list[Any]:
        names = ["x/a.jpg", "x/b.jpg", "x/./a.jpg"]
        images = [{"id": n, "file_name": name, "width": 96, "height": 80} for n, name in enumerate(names)]
        objects = [
            {"id": n, "image_id": image, "category_id": 1, "bbox": box}
            for n, (image, box) in enumerate(zip((0, 2, 1), boxes, strict=True))
        ]
        for one in objects:
            complete(one)
        return unmeant({"images": images, "annotations": objects}, "f.json")

    assert told([9, 9, 20, 20], [9, 9, 20, 20], [1, 1, 5, 5]) == []
    (fault,) = told([9, 9, 20, 20], [9, 9, 20, 21], [1, 1, 5, 5])
    assert fault.what == "files listed as several images, whose objects differ: 1"
    assert fault.got == "x/a.jpg: images 0, 2"


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_boxes_in_fractions_of_the_image_are_told_where_they_are_half_or_more(kept: int) -> None:
    boxes = [[x / 96, y / 80, w / 96, h / 80] for x, y, w, h in PIXELS]
    (fault,) = faults(PIXELS[:kept] + boxes[kept:])
    assert fault.what == f"annotations whose bbox is a fraction of the image, not in pixels: {4 - kept}"


def test_the_fix_of_fractions_holds_for_boxes_by_their_centre_too() -> None:
    (fault,) = faults([[0.5, 0.5, 0.25, 0.25]])
    assert "where x and y are the centre, as in YOLO's files" in fault.fix


def test_a_few_small_boxes_in_the_corner_are_no_fractions() -> None:
    assert faults([*PIXELS, [0, 0, 1, 1], [0.5, 0, 0.5, 0.5]]) == []


@pytest.mark.parametrize("more", [{}, {"area": 600}])
def test_boxes_of_two_corners_are_told_by_where_they_end(more: dict[str, Any]) -> None:
    (fault,) = faults(CORNERS, **more)
    assert fault.what == "annotations whose bbox is likely [x, y, x2, y2], two corners: 4"
    assert fault.fix.startswith("write [x, y, x2 - x, y2 - y]")


def test_boxes_of_two_corners_are_told_by_their_area() -> None:
    boxes = [[1, 2, 5, 6]] * 4
    assert faults(boxes) == []
    assert "two corners" in faults(boxes, area=16)[0].what


@pytest.mark.parametrize("odd", [[1, 2, 999, 6], [5, 2, 5, 9]])
def test_boxes_of_two_corners_are_told_also_where_one_of_many_is_none(odd: list[int]) -> None:
    assert "two corners" in faults([*CORNERS * 5, odd])[0].what


def test_boxes_that_reach_out_and_are_no_corners_are_no_fault() -> None:
    assert faults([[90, 70, 20, 20]] * 4) == []


@pytest.mark.parametrize(("side", "over"), [(20, 2), (100, 2), (100, 5), (1000, 50)])
def test_boxes_of_the_whole_image_may_reach_out_a_little(side: int, over: int) -> None:
    assert faults([[over, over, side, side]] * 4, size=(side, side)) == []


def test_a_box_or_two_tell_no_corners_from_sizes() -> None:
    assert faults(CORNERS[:3]) == []
