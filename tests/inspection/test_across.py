from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets.base import DatasetFiles, Split
from kdlab.inspection import across
from kdlab.inspection.examine import _siblings

HASH = "0123456789abcdef" * 2


def gaps(*names: str) -> list[str]:
    return [place.detail for _, place in across._gaps({Path("f") / name for name in names})]


def test_of_many_gaps_the_first_are_named() -> None:
    names = [f"x{number:02}.jpg" for number in range(40) if number % 3]
    assert gaps(*names) == ["01..38 without 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36"]
    names = [f"x{number:02}.jpg" for number in range(43) if number % 3]
    assert gaps(*names)[0].endswith(" 36, ...")


def test_scattered_numbers_have_no_gaps() -> None:
    assert gaps("1.jpg", "5.jpg", "9.jpg") == []


def test_names_of_two_kinds_are_counted_apart() -> None:
    assert gaps("a1.jpg", "a2.jpg", "b4.jpg", "b5.jpg", "c1_x.jpg", "c2_x.jpg", "none.jpg") == []


@pytest.mark.parametrize(
    "names", [("a.rf.01234567.jpg", "a.rf.89abcdef.png"), ("a_jpg.rf.A0.jpg", "a_jpg.rf.b1.jpg")]
)
def test_copies_that_init_keeps_together_are_a_leak_over_splits(names: tuple[str, str], data: Any) -> None:
    for split, name in zip(("train", "val"), names, strict=True):
        data.rename(split, 0, name)
    assert "source-leak" in {defect.kind for defect in data.examine().defects}


def test_copies_of_a_source_in_one_split_are_no_leak(data: Any) -> None:
    data.rename("train", 0, f"a.rf.{HASH}.jpg")
    data.rename("train", 1, f"a.rf.{HASH[::-1]}.jpg")
    assert {defect.kind for defect in data.examine().defects} == {"export-hash"}


def test_ids_of_a_conversion_are_not_told(voc_data: Any) -> None:
    for place, entry in enumerate(voc_data.labels["val"]["annotations"]):
        entry["id"] = 1001 + place
    assert voc_data.examine().defects == ()


def test_neighbours_of_a_folder_of_both_splits_are_other_data(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for part in ("train", "val"):
            labels = tmp_path / f"{name}-split" / f"{part}.json"
            labels.parent.mkdir(exist_ok=True)
            labels.touch()
        (tmp_path / name).mkdir()
    train, val = (
        Split(tmp_path / "one", tmp_path / "one-split" / f"{part}.json") for part in ("train", "val")
    )
    assert _siblings(DatasetFiles("coco", (), train, val, "")) == {}
