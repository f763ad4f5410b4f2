"""Every kind of defect: a clean set does not report it, the same set spoilt in one way does."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlab.inspection import across
from kdlab.inspection.findings import KINDS, SEVERITIES, Place, defects

HASH = "0123456789abcdef" * 2
Spoil = Callable[[Any, Callable[..., bytes], Callable[..., bytes]], Any]

CASES: dict[str, tuple[Spoil, list[str]]] = {}
"""Of each kind what spoils a set, given the set, `make_picture`, `make_xml`; and the places then told."""


def case(kind: str, *places: str) -> Callable[[Spoil], Spoil]:
    def kept(spoil: Spoil) -> Spoil:
        assert kind not in CASES
        CASES[kind] = spoil, list(places)
        return spoil

    return kept


def objects(data: Any, split: str = "train") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data.labels[split]["annotations"]
    return found


def change(kind: str, place: str, index: int = 0, **values: Any) -> None:
    """A case that changes an annotation of train."""
    case(kind, place)(lambda data, *_: objects(data)[index].update(values))


def change_image(kind: str, place: str, **values: Any) -> None:
    """A case that changes the first image of train."""
    case(kind, place)(lambda data, *_: data.labels["train"]["images"][0].update(values))


def twelve_bits() -> bytes:
    """A PNG of 16 bits that holds 12."""
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 4095, 200 * 150).astype(np.uint16).reshape(150, 200)).save(file, "PNG")
    return file.getvalue()


def put(kind: str, place: str, name: str, content: Callable[..., bytes]) -> None:
    """A case that gives the first image of train another name and content."""
    case(kind, place)(lambda data, picture, _: data.rename("train", 0, name, content(picture)))


def change_xml(kind: str, *places: str, **values: Any) -> None:
    """A case that writes the XML file of a.jpg anew."""

    def spoil(data: Any, _: Any, xml: Callable[..., bytes]) -> None:
        data.files["xml/a.xml"] = xml(**{"filename": "a.jpg", **values})

    case(kind, *places)(spoil)


change(
    "labels-unusable",
    "train: train.json annotations whose bbox is not [x, y, width, height]: 1 "
    "(annotation 1001: bbox is [1, 2])",
    bbox=[1, 2],
)
change("area-0", "train: a.jpg #0 cat 10.5 10.5 60.5 50.5", area=0)
change("ignore-marked", "train: a.jpg #0", ignore=1)
change("difficult-text", "train: a.jpg #0 '1'", difficult="1")
change_image("image-id-twice", "train: id 2", id=2)
change("annotation-id-twice", "train: id 1003", id=1003)
change("annotation-id-0", "train: a.jpg #0", id=0)
change("zero-area", "train: a.jpg #0 cat 10.5 10.5 0 50.5", bbox=[10.5, 10.5, 0, 50.5])
change("box-outside", "train: a.jpg #0 cat 200 10.5 9.5 9.5", bbox=[200, 10.5, 9.5, 9.5])
change("box-cut", "train: a.jpg #1 dog 150.5 10.5 60.5 9.5", 1, bbox=[150.5, 10.5, 60.5, 9.5])
change("box-twice", "train: a.jpg #0,1", 1, bbox=[10.5, 10.5, 60.5, 50.5], category_id=1)
change("near-duplicate", "train: a.jpg #0,1", 1, bbox=[12.5, 10.5, 60.5, 50.5], category_id=1)
change("mixed-numbers", "train: a.jpg #0", bbox=[10, 10.5, 60.5, 50.5])
change("area-mask", "train: a.jpg #0 (by area: small 1, medium 3, large 0)", area=99.5)
change("crowd-rle", "train: a.jpg #0", iscrowd=1, segmentation={"counts": [9], "size": [150, 200]})
change_image("licence-missing", "train: a.jpg 9", license=9)
change_image("size-differs", "train: a.jpg 200x150, recorded 201x150", width=201)
put("image-empty", "train: a.jpg", "a.jpg", lambda picture: b"")
put("image-unreadable", "train: a.jpg not an image", "a.jpg", lambda picture: b"text")
put("exif-turned", "train: a.jpg orientation 6", "a.jpg", lambda picture: picture(turned=6))
put("cmyk", "train: a.jpg", "a.jpg", lambda picture: picture(mode="CMYK"))
put("grey", "train: a.jpg L", "a.jpg", lambda picture: picture(mode="L"))
put("alpha", "train: a.png RGBA", "a.png", lambda picture: picture(mode="RGBA", form="PNG"))
put("palette", "train: a.png P", "a.png", lambda picture: picture(mode="P", form="PNG"))
put("other-mode", "train: a.png I;16", "a.png", lambda picture: picture(mode="I;16", form="PNG"))
put("misnamed", "train: a.jpg is PNG", "a.jpg", lambda picture: picture(form="PNG"))
put("export-hash", f"train: a.rf.{HASH}.jpg", f"a.rf.{HASH}.jpg", lambda picture: picture())
put("content-twice", "train: b.jpg = a.jpg", "a.jpg", lambda picture: picture(2))
change_xml("xml-filename", "train: a.xml b.jpg", filename="b.jpg")
change_xml("xml-folder", "train: a.xml RBC, most images", folder="RBC")
change_xml("xml-size", "train: a.xml", size=(0, 0))
change_xml("xml-path", ": 1 of /home/pi/...", path="/home/pi/data/a.jpg")
change_xml("xml-one-based", "train: ", box=(1, 1, 200, 50))
change_xml("xml-truncated", "train: ", truncated=1)


@case("image-missing", "train: a.jpg")
def _(data: Any, *_: Any) -> None:
    del data.files["images/train/a.jpg"]


@case("image-truncated", "train: a.jpg image file is truncated...")
def _(data: Any, *_: Any) -> None:
    data.files["images/train/a.jpg"] = data.files["images/train/a.jpg"][:-200]


@case("few-levels", "train: a.png pixels arrive as 0..15 of 0..255, the file has 0..4095 of 16 bits")
def _(data: Any, *_: Any) -> None:
    data.rename("train", 0, "a.png", twelve_bits())


@case("few-images", "val: ")
def _(data: Any, *_: Any) -> None:
    across.FEW_IMAGES = 3


@case("few-objects", "val: dog 1")
def _(data: Any, *_: Any) -> None:
    across.FEW_OBJECTS = 2
    data.labels["val"]["annotations"].pop()


@case("class-spelling", ": cat = Cat.")
def _(data: Any, *_: Any) -> None:
    for labels in data.labels.values():
        labels["categories"][1]["name"] = "Cat."


@case("leak", "val: c.jpg = train a.jpg")
def _(data: Any, *_: Any) -> None:
    data.files["images/val/c.jpg"] = data.files["images/train/a.jpg"]


@case("source-leak", f"val: a.rf.{HASH[::-1]}.jpg of train a.rf.{HASH}.jpg")
def _(data: Any, *_: Any) -> None:
    data.rename("train", 0, f"a.rf.{HASH}.jpg")
    data.rename("val", 0, f"a.rf.{HASH[::-1]}.jpg")


@case("same-name", "val: a.jpg also train")
def _(data: Any, *_: Any) -> None:
    data.rename("val", 0, "a.jpg")


@case("unlisted", ": z.jpg")
def _(data: Any, picture: Callable[..., bytes], *_: Any) -> None:
    data.files["images/train/z.jpg"] = picture(3)


@case("number-gaps", ": train 08..10 without 9")
def _(data: Any, *_: Any) -> None:
    data.rename("train", 0, "x08.jpg")
    data.rename("train", 1, "x10.jpg")


@case("few-boxes", "train: b.jpg 2, usual 10")
def _(data: Any, *_: Any) -> None:
    data.add_image("train", 3, "e.jpg")
    for image in (1, 3):
        for step in range(8):
            data.add_box("train", image, [12.5 * step, 0.5, 10.5, 10.5])


@case("one-based", "train: ")
def _(data: Any, *_: Any) -> None:
    for step in range(46):
        data.add_box("train", 1, [1.0 + 4 * step, 1.0, 3.5, 3.5])
    data.add_box("train", 1, [150.0, 1.0, 50.0, 3.5])


@case("never-trained", "val: cat")
def _(data: Any, *_: Any) -> None:
    for entry in objects(data):
        entry["category_id"] = 2


@case("never-measured", "train: cat")
def _(data: Any, *_: Any) -> None:
    for entry in objects(data, "val"):
        entry["category_id"] = 2


@case("class-absent", "val: dog")
def _(data: Any, *_: Any) -> None:
    data.labels["val"]["annotations"] = [e for e in objects(data, "val") if e["category_id"] == 1]


@case("no-objects", "train: a.jpg")
def _(data: Any, *_: Any) -> None:
    data.labels["train"]["annotations"] = [e for e in objects(data) if e["image_id"] != 1]


@case("nothing-left", "train: train.json no object is left to learn from or to measure on (no annotations)")
def _(data: Any, *_: Any) -> None:
    data.labels["train"]["annotations"] = []


@case("imbalance", ": dog 4.9 %")
def _(data: Any, *_: Any) -> None:
    for step in range(74):
        data.add_box("train", 1, [step + 0.5, 0.5, 40.5, 40.5])


@case("small-objects", ": 56 %, narrowest 5.5 px, lowest 3.5 px")
def _(data: Any, *_: Any) -> None:
    for step in range(10):
        data.add_box("train", 1, [10.5 * step, 0.5, 5.5, 3.5])


@case("id-over-splits", "val: 1 image ids of train")
def _(data: Any, *_: Any) -> None:
    data.labels["val"]["images"][0]["id"] = 1
    for entry in objects(data, "val")[:2]:
        entry["image_id"] = 1


@case("category-gaps", "train: ids 1..3 without 2", "val: ids 1..3 without 2")
def _(data: Any, *_: Any) -> None:
    renumber(data, {2: 3})


@case("category-0", "train: ids 0..1", "val: ids 0..1")
def _(data: Any, *_: Any) -> None:
    renumber(data, {1: 0, 2: 1})


def renumber(data: Any, numbers: dict[int, int]) -> None:
    for labels in data.labels.values():
        for entry in labels["categories"]:
            entry["id"] = numbers.get(entry["id"], entry["id"])
        for entry in labels["annotations"]:
            entry["category_id"] = numbers.get(entry["category_id"], entry["category_id"])


@case("year-text", "train: '2026'")
def _(data: Any, *_: Any) -> None:
    data.labels["train"]["info"]["year"] = "2026"


@case("segmentation-empty", "train: ")
def _(data: Any, *_: Any) -> None:
    for entry in objects(data):
        entry["segmentation"] = []


@case("whole-numbers", "train: ")
def _(data: Any, *_: Any) -> None:
    for entry in objects(data):
        entry["bbox"] = [int(value) for value in entry["bbox"]]


@case("polygons", "train: ")
def _(data: Any, *_: Any) -> None:
    data.labels["train"]["images"][0]["txt"] = "labels/train/a.txt"
    objects(data)[0].update(line=1, polygon=1)


@case("txt-alone", "train: z.txt")
def _(data: Any, *_: Any) -> None:
    data.labels["train"]["images"][0]["txt"] = "../../labels/a.txt"
    data.files.update({"labels/a.txt": b"", "labels/b.txt": b"", "labels/z.txt": b""})


@case("xml-unreadable", "train: a.xml XML files that do not parse: a.xml: no element found...")
def _(data: Any, *_: Any) -> None:
    data.files["xml/a.xml"] = b"<annotation>"


@case("xml-difficult", ": ")
def _(data: Any, _picture: Any, xml: Callable[..., bytes]) -> None:
    data.files.update({name: xml(name, difficult=0) for name in data.files if name.endswith(".xml")})


def short(place: str, wanted: str) -> str:
    """What another package says is compared up to the "..." alone."""
    begin = wanted.removesuffix("...")
    return wanted if wanted != begin and place.startswith(begin) else place


def test_a_clean_set_has_no_defect(data: Any) -> None:
    assert data.examine().defects == ()


def test_a_clean_set_from_xml_has_no_defect(voc_data: Any) -> None:
    assert voc_data.examine().defects == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_is_found_and_placed(
    kind: str, data: Any, make_picture: Any, make_xml: Any, told: Callable[[Any, str], list[str]]
) -> None:
    spoil, places = CASES[kind]
    if kind.startswith("xml-"):
        data.add_xml()
    spoil(data, make_picture, make_xml)
    found = data.examine()
    assert [short(*pair) for pair in zip(told(found, kind), places, strict=True)] == places
    assert [d.severity for d in found.defects if d.kind == kind] == [KINDS[kind][0]]
    assert found.usable == all(KINDS[defect.kind][0] != "error" for defect in found.defects)


def test_no_case_is_of_an_unknown_kind() -> None:
    assert CASES.keys() == KINDS.keys()
    assert {severity for severity, _ in KINDS.values()} == {*SEVERITIES}


def test_the_name_of_a_file_on_disk_cannot_steer_a_terminal() -> None:
    assert str(Place("train", "sub/a\x1b[31m.jpg")) == r"'a\x1b[31m.jpg'"


def test_the_worst_come_first_and_counts_add_up() -> None:
    found = [("grey", Place("val", "a")), ("leak", Place("val", "b")), ("image-empty", Place("train", "c"))]
    found += [("whole-numbers", Place("train", count=3)), ("whole-numbers", Place("val", count=4))]
    made = defects(found)
    assert [defect.kind for defect in made] == ["image-empty", "leak", "grey", "whole-numbers"]
    assert (made[-1].count, made[-1].splits) == (7, {"train": 3, "val": 4})


@pytest.mark.parametrize(("split", "severity"), [("train", "error"), ("", "error"), ("test", "warn")])
def test_what_lies_in_a_split_that_no_job_reads_is_no_error(split: str, severity: str) -> None:
    assert defects([("image-empty", Place(split, "a"))])[0].severity == severity
