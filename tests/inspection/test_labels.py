from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlab.inspection import labels
from kdlab.inspection.labels import Labels


def arranged(data: Any, split: str = "train") -> tuple[Labels, list[str]]:
    found, wrong = labels.arranged(split, Path(), data.labels[split], "f.json")
    assert {kind for kind, _ in wrong} <= {"labels-unusable"}
    return found, [place.detail for _, place in wrong]


def test_objects_are_numbered_in_their_image_in_the_order_of_the_file(data: Any) -> None:
    entries = data.labels["train"]["annotations"]
    entries[:] = [entries[index] for index in (3, 0, 2, 1)]
    found, _ = arranged(data)
    assert [entry["id"] for entry in found.objects] == [1001, 1002, 1004, 1003]
    assert found.number.tolist() == [0, 1, 0, 1]
    assert str(found.place(2, 3, detail="here")) == "b.jpg #0,1 here"


def test_an_area_that_is_not_recorded_is_width_x_height(data: Any) -> None:
    data.labels["train"]["annotations"][0].update(bbox=[0, 0, -2, 5])
    data.labels["train"]["annotations"][1].update(area=7)
    found, _ = arranged(data)
    assert found.areas[:3].tolist() == [0, 7, 60.5 * 50.5]
    assert found.box_areas[0] == 0


def test_sizes_bin_as_coco_does() -> None:
    areas = np.array([0, 1023.9, 1024, 9215.9, 9216])
    assert labels.bins(areas) == {"small": 2, "medium": 2, "large": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": "x"}, "has no id"),
        ({"image_id": 99}, "of image 99, which is not listed"),
        ({"image_id": [1]}, "of image [1], which is not listed"),
        ({"category_id": 9}, "of category 9, which is not listed"),
        ({"bbox": [1, 2, 3]}, "bbox is not [x, y, width, height]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "bbox is not [x, y, width, height]"),
        ({"bbox": [1, 2, 3, True]}, "bbox is not [x, y, width, height]"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_left_out_and_named(
    change: dict[str, Any], why: str, data: Any
) -> None:
    data.labels["train"]["annotations"][2].update(change)
    found, wrong = arranged(data)
    assert wrong == [f"annotation 2: {why}"]
    assert len(found.objects) == 3


@pytest.mark.parametrize("entry", ["text", {"id": 5}, {"file_name": "e.jpg"}])
def test_an_image_without_id_or_name_is_left_out_and_named(entry: Any, data: Any) -> None:
    data.labels["train"]["images"].append(entry)
    found, wrong = arranged(data)
    assert wrong == ["image 2 has no id or no file_name"]
    assert found.files == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[", "Expecting value"),
        ("[]", 'has no list "images"'),
        ('{"images": [], "annotations": {}}', 'has no list "annotations"'),
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


def test_a_number_beyond_all_floats_is_left_out_and_named(data: Any) -> None:
    data.labels["train"]["annotations"][0]["bbox"] = [0, 0, 10**400, 5]
    _, wrong = arranged(data)
    assert wrong == ["annotation 0: bbox is not [x, y, width, height]"]


def test_what_a_job_refuses_is_told_of_files_of_any_size(data: Any, tmp_path: Path) -> None:
    content = data.labels["train"]
    content["images"][0]["width"] = 64.5
    content["annotations"][0]["area"] = "big"
    (tmp_path / "f.json").write_text(json.dumps(content))
    _, wrong = labels.read("train", tmp_path, tmp_path / "f.json")
    details = [place.detail for kind, place in wrong if kind == "labels-unusable"]
    assert any("whole width and height" in detail for detail in details)
    assert any("area is not a number" in detail for detail in details)
