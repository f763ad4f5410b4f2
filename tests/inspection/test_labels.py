from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlab.inspection import labels
from kdlab.inspection.labels import Labels


def arranged(data: Any, split: str = "train") -> Labels:
    return labels.arranged(split, Path(), data.labels[split])


def test_objects_are_numbered_in_their_image_in_the_order_of_the_file(data: Any) -> None:
    entries = data.labels["train"]["annotations"]
    entries[:] = [entries[index] for index in (3, 0, 2, 1)]
    found = arranged(data)
    assert [entry["id"] for entry in found.objects] == [1001, 1002, 1004, 1003]
    assert found.number.tolist() == [0, 1, 0, 1]
    assert str(found.place(2, 3, detail="here")) == "b.jpg #0,1 here"


def test_an_area_that_is_not_recorded_is_width_x_height(data: Any) -> None:
    data.labels["train"]["annotations"][0].update(bbox=[0, 0, -2, 5])
    data.labels["train"]["annotations"][1].update(area=7)
    found = arranged(data)
    assert found.areas[:3].tolist() == [0, 7, 60.5 * 50.5]
    assert found.box_areas[0] == 0


def test_sizes_bin_as_coco_does() -> None:
    areas = np.array([0, 1023.9, 1024, 9215.9, 9216])
    assert labels.bins(areas) == {"small": 2, "medium": 2, "large": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"image_id": 99},
        {"image_id": [1]},
        {"category_id": 9},
        {"category_id": True},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, 3, float("nan")]},
        {"bbox": [1, 2, 3, True]},
        {"bbox": [0, 0, 10**400, 5]},
    ],
)
def test_an_annotation_that_cannot_be_used_is_left_out(change: dict[str, Any], data: Any) -> None:
    data.labels["train"]["annotations"][2].update(change)
    assert [entry["id"] for entry in arranged(data).objects] in ([1001, 1002, 1004],)


@pytest.mark.parametrize("entry", ["text", {"id": 5}, {"file_name": "e.jpg"}, {"id": True, "file_name": "e"}])
def test_an_image_without_id_or_name_is_left_out(entry: Any, data: Any) -> None:
    data.labels["train"]["images"].append(entry)
    assert arranged(data).files == ["a.jpg", "b.jpg"]


def test_labels_count_categories_whatever_their_ids(data: Any) -> None:
    content = data.labels["train"]
    for entry, number in zip(content["categories"], (2**64, -(2**63)), strict=True):
        entry["id"] = number
    for entry in content["annotations"]:
        entry["category_id"] = {1: 2**64, 2: -(2**63)}[entry["category_id"]]
    found = arranged(data)
    assert (found.classes, found.label.tolist()) == (["dog", "cat"], [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("scale", "ratio"), [((400, 300), 2), ((300, 400), 2), ((100, 300), 2 / 3), ((400, 75), 0.5)]
)
def test_boxes_are_scaled_as_their_image_is(scale: tuple[int, int], ratio: float, data: Any) -> None:
    found = arranged(data)
    assert found.scaled_areas(scale) == pytest.approx(found.box_areas * ratio**2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[", "this file is not JSON: Expecting value"),
        ("[" * 200_000, "this file is not JSON: it is nested too deeply"),
        ("[]", 'this file has no "categories"'),
        ('{"images": [], "annotations": {}, "categories": [1]}', '"annotations" is not a list'),
    ],
)
def test_a_file_of_another_form_gives_no_labels(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(content)
    found, [(kind, place)] = labels.read("train", tmp_path, tmp_path / "f.json")
    assert (found, kind) == (None, "labels-unusable")
    assert place.detail.startswith(why)


def test_a_file_that_is_not_there_gives_no_labels(tmp_path: Path) -> None:
    found, [(_, place)] = labels.read("train", tmp_path, tmp_path / "f.json")
    assert found is None
    assert "No such file" in place.detail


def test_what_a_job_refuses_is_told_of_files_of_any_size(data: Any, tmp_path: Path) -> None:
    content = data.labels["train"]
    content["images"][0]["width"] = 64.5
    content["annotations"][0]["area"] = "big"
    content["annotations"][1]["iscrowd"] = "0"
    (tmp_path / "f.json").write_text(json.dumps(content))
    _, wrong = labels.read("train", tmp_path, tmp_path / "f.json")
    details = [place.detail for kind, place in wrong if kind == "labels-unusable"]
    assert any("whole width and height" in detail for detail in details)
    assert any("area is text: 'big'" in detail for detail in details)
    assert any("iscrowd is text: '0'" in detail for detail in details)
