from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kdlab.inspection.examine import examine

Told = Callable[[Any, str], list[str]]


def test_a_labelled_split_beside_train_and_val_is_looked_at_too(data: Any) -> None:
    data.add_split("test")
    assert [split.name for split in data.examine().summaries] == ["train", "val", "test", "all"]


def test_broken_labels_of_a_split_that_no_job_reads_are_a_warning(data: Any, told: Told) -> None:
    data.add_split("test", labels=[])
    found = data.examine()
    assert told(found, "labels-unusable") == ['test: test.json this file has no "categories"']
    assert [defect.severity for defect in found.defects] == ["warn"]
    assert found.usable


def test_broken_labels_of_a_split_that_jobs_read_are_an_error(data: Any, told: Told) -> None:
    data.labels["val"] = {}
    found = data.examine()
    assert told(found, "labels-unusable") == ['val: val.json this file has no "categories"']
    assert not found.usable
    assert [split.name for split in found.summaries] == ["train"]


def test_labels_without_categories_are_unusable(data: Any, told: Told) -> None:
    data.labels["val"]["categories"] = []
    assert 'val: val.json this file has no "categories"' in told(data.examine(), "labels-unusable")


def test_where_no_labels_can_be_used_there_is_nothing_to_count(data: Any) -> None:
    data.labels = {"train": {}, "val": {}}
    found = data.examine()
    assert (found.summaries, [defect.count for defect in found.defects]) == ((), [2])


def test_a_split_without_images_counts_as_none(data: Any) -> None:
    data.labels["val"].update(images=[], annotations=[])
    summary = data.examine().summaries[1]
    assert (summary.images, summary.objects, summary.per_image, summary.narrowest_px) == (
        0,
        0,
        (0, 0.0, 0),
        0,
    )


def test_a_root_that_goes_up_and_down_is_the_same_root(data: Any) -> None:
    (data.root / "further").mkdir(parents=True)
    data.root = data.root / "further" / ".."
    assert [split.name for split in data.examine().summaries] == ["train", "val", "all"]


def test_it_tells_how_far_it_is(data: Any) -> None:
    told: list[tuple[str, int, int]] = []
    examine(data.write(), lambda *step: told.append(step))
    assert told[:3] == [("label files", 0, 2), ("label files", 1, 2), ("label files", 2, 2)]
    assert told[3:] == [("images", done, 4) for done in range(5)]


def test_broken_images_are_left_out_where_a_job_skips_them(data: Any) -> None:
    data.files["images/train/a.jpg"] = b""
    data.files["images/val/c.jpg"] = b"text"
    data.add_split("test")
    data.files["images/test/test-a.jpg"] = b""
    stops, skips = data.examine(), data.examine(broken_images="skip")
    assert (stops.usable, stops.left_out) == (False, 0)
    assert (skips.usable, skips.left_out) == (True, 2)
    assert {defect.severity for defect in skips.defects} == {"warn"}


def test_skipping_does_not_mend_labels(data: Any) -> None:
    data.files["images/train/a.jpg"] = b""
    data.labels["train"]["annotations"][0]["bbox"] = []
    found = data.examine(broken_images="skip")
    assert {defect.kind: defect.severity for defect in found.defects} == {
        "labels-unusable": "error", "image-empty": "warn",
    }  # fmt: skip


def test_all_of_it_is_plain_json(voc_data: Any) -> None:
    voc_data.labels["train"]["annotations"][0]["bbox"] = [0, 0, 0, 0]
    found = voc_data.examine().to_dict()
    assert json.loads(json.dumps(found))["defects"][0]["places"][0]["objects"] == [0]
