from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdlab.inspection import voc
from kdlab.inspection.voc import XmlFile

Told = Callable[[Any, str], list[str]]


def test_what_lies_beside_the_splits_is_looked_at_as_other(
    voc_data: Any, make_picture: Any, make_xml: Any, told: Told
) -> None:
    voc_data.files["xml/z.xml"] = make_xml("z.jpg", box=(1, 1, 201, 90))
    voc_data.files["images/z.jpg"] = make_picture(77)
    found = voc_data.examine()
    assert [(split.name, split.images, split.objects) for split in found.summaries] == [
        ("train", 2, 4), ("val", 2, 4), ("other", 1, 1), ("all", 5, 9),
    ]  # fmt: skip
    assert {defect.kind for defect in found.defects} == {"class-absent"}
    assert told(found, "class-absent") == ["other: dog"]


def test_other_xml_without_an_image_is_a_warning(voc_data: Any, make_xml: Any, told: Told) -> None:
    voc_data.files["xml/z.xml"] = make_xml("z.jpg")
    found = voc_data.examine()
    assert found.usable
    assert {split for defect in found.defects for split in defect.splits} == {"other"}
    assert "image-missing" in {defect.kind for defect in found.defects}


def test_other_xml_of_another_class_adds_it(make_xml: Any, tmp_path: Path) -> None:
    (tmp_path / "z.xml").write_bytes(make_xml("z.jpg", difficult=1))
    read, wrong = voc.read([XmlFile("other", tmp_path / "z.xml", "z.jpg")])
    made = voc.as_coco(read, ["ant"])
    assert wrong == []
    assert made["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert made["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "bbox": [0, 0, 49, 49],
            "category_id": 2,
            "area": 49 * 49,
            "iscrowd": 1,
            "difficult": 1,
        }
    ]


@pytest.mark.parametrize("old", [b"<xmin>1</xmin>", b"<name>cat</name>", b"<width>200", b"<annotation>"])
def test_what_cannot_be_read_is_named(old: bytes, voc_data: Any, told: Told) -> None:
    voc_data.files["xml/a.xml"] = voc_data.files["xml/a.xml"].replace(old, b"<width>wide" * (b"w" in old))
    assert [place[:12] for place in told(voc_data.examine(), "xml-unreadable")] == ["train: a.xml"]


def test_a_file_that_is_gone_is_named(voc_data: Any, told: Told) -> None:
    del voc_data.files["xml/a.xml"]
    assert told(voc_data.examine(), "xml-unreadable")[0].startswith("train: a.xml No such file")


@pytest.mark.parametrize("filename", ["a", "a.jpg", ""])
def test_a_filename_may_lack_its_ending_or_be_left_out(filename: str, voc_data: Any, make_xml: Any) -> None:
    voc_data.files["xml/a.xml"] = make_xml(filename)
    assert voc_data.examine().defects == ()


@pytest.mark.parametrize(
    ("path", "told_as"),
    [
        ("C:\\Users\\me\\a.jpg", ["1 of C:/Users/me/..."]),
        ("a.jpg", []),
        ("../images/a.jpg", []),
        (__file__, []),
    ],
)
def test_only_an_absolute_path_that_is_not_here_is_foreign(
    path: str, told_as: list[str], voc_data: Any, make_xml: Any, told: Told
) -> None:
    voc_data.files["xml/a.xml"] = make_xml("a.jpg", path=path)
    assert told(voc_data.examine(), "xml-path") == [f": {place}" for place in told_as]


def test_a_corner_at_0_is_0_based(voc_data: Any, make_xml: Any) -> None:
    voc_data.files["xml/a.xml"] = make_xml("a.jpg", box=(0, 1, 200, 150))
    assert voc_data.examine().defects == ()


def test_xml_that_is_no_regular_file_is_named(voc_data: Any, told: Told) -> None:
    voc_data.write()
    (voc_data.root / "xml/z.xml").symlink_to("/dev/null")
    assert told(voc_data.examine(), "xml-unreadable") == ["other: z.xml no regular file"]
