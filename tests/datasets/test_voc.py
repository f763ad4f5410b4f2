from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets import _voc_xml, voc
from kdlab.datasets.base import DatasetFiles
from kdlab.errors import MachineError, UsageError

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
BCCD = {"images": "images", "annotations": "annotations", "splits": "splits", "train": ("train",),
        "val": ("val",)}  # fmt: skip
CAT = ("cat", (11, 21, 31, 51), 0)


def xml(*objects: tuple[str, tuple[Any, ...], int], size: str = "") -> str:
    boxes = (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for name, box, difficult in objects
    )
    size = size or "<size><width>100</width><height>80</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(boxes)}</annotation>"


def lay(root: Path, **splits: dict[str, str]) -> Path:
    """A VOC folder with split files of these stems and XML texts."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in content))
        for stem, text in content.items():
            (root / "JPEGImages" / f"{stem}.jpg").write_bytes(stem.encode())
            (root / "Annotations" / f"{stem}.xml").write_text(text)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay(tmp_path / "data", train={"a": xml(CAT)}, val={"b": xml(("dog", (1, 1, 10, 10), 0))})


def prepared(root: Path, **options: Any) -> DatasetFiles:
    return voc.prepare(root=str(root), **options)


def labels(files: DatasetFiles, part: str = "train") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(getattr(files, part).labels.read_text())
    return content


def file_names(files: DatasetFiles, part: str) -> list[str]:
    return [image["file_name"] for image in labels(files, part)["images"]]


def test_corners_lose_one_and_become_corner_and_size(root: Path) -> None:
    (box,) = labels(prepared(root))["annotations"]
    assert (box["bbox"], box["area"], box["iscrowd"]) == ([10, 20, 20, 30], 600, 0)


def test_fractions_are_cut_off_before_the_one_is_taken(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "data", train={"a": xml(("cat", ("11.9", "21.2", "31.5", "51.7"), 0))}, val={"b": xml(CAT)}
    )
    assert labels(prepared(root))["annotations"][0]["bbox"] == [10, 20, 20, 30]


def test_equal_corners_stay_a_box_without_area(tmp_path: Path) -> None:
    root = lay(tmp_path / "data", train={"a": xml(CAT, ("cat", (5, 6, 5, 6), 0))}, val={"b": xml(CAT)})
    box = labels(prepared(root))["annotations"][1]
    assert (box["bbox"], box["area"]) == ([4, 5, 0, 0], 0)


def test_difficult_objects_are_crowds_and_say_why(tmp_path: Path) -> None:
    root = lay(tmp_path / "data", train={"a": xml(CAT, ("cat", (1, 1, 9, 9), 1))}, val={"b": xml(CAT)})
    plain, difficult = labels(prepared(root))["annotations"]
    assert (difficult["iscrowd"], difficult["difficult"]) == (1, 1)
    assert "difficult" not in plain


def test_an_image_names_its_files_and_keeps_the_recorded_size(root: Path) -> None:
    files = prepared(root)
    assert labels(files)["images"] == [
        {"id": 1, "file_name": "JPEGImages/a.jpg", "xml": "Annotations/a.xml", "width": 100, "height": 80}
    ]
    assert (files.train.images / "Annotations/a.xml").is_file()


def test_objects_keep_the_order_of_their_file(tmp_path: Path) -> None:
    boxes = [("cat", (n, n, n + 9, n + 9), 0) for n in (30, 10, 20)]
    root = lay(tmp_path / "data", train={"a": xml(*boxes)}, val={"b": xml(CAT)})
    assert [box["bbox"][0] for box in labels(prepared(root))["annotations"]] == [29, 9, 19]


def test_classes_are_sorted_over_both_splits(root: Path) -> None:
    assert prepared(root).classes == ("cat", "dog")


def test_classes_may_be_put_in_an_order(root: Path) -> None:
    files = prepared(root, classes=("dog", "cat", "eel"))
    assert files.classes == ("dog", "cat", "eel")
    assert labels(files)["annotations"][0]["category_id"] == 2


def test_voc_is_measured_both_ways(root: Path) -> None:
    assert prepared(root).metrics == ("coco", "voc")


def test_a_devkit_learns_from_both_years_and_is_measured_on_the_test_of_2007(tmp_path: Path) -> None:
    lay(tmp_path / "VOC2007", trainval={"a": xml(CAT)}, test={"b": xml(CAT)}, train={}, val={})
    lay(tmp_path / "VOC2012", trainval={"c": xml(CAT)})
    files = prepared(tmp_path)
    assert file_names(files, "train") == ["VOC2007/JPEGImages/a.jpg", "VOC2012/JPEGImages/c.jpg"]
    assert file_names(files, "val") == ["VOC2007/JPEGImages/b.jpg"]


@pytest.mark.parametrize("inside", ["", "VOC2012"])
@pytest.mark.parametrize(
    ("names", "chosen"), [(("train", "val"), "train"), (("train", "trainval", "val", "test"), "trainval")]
)
def test_one_year_alone_learns_from_trainval_where_there_is_a_test(
    tmp_path: Path, inside: str, names: tuple[str, ...], chosen: str
) -> None:
    lay(tmp_path / "data" / inside, **{name: {name: xml(CAT)} for name in names})
    files = prepared(tmp_path / "data")
    assert Path(file_names(files, "train")[0]).stem == chosen
    assert Path(file_names(files, "val")[0]).stem == names[-1]


def test_flags_behind_the_stems_are_not_part_of_them(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text("\ufeffa  -1\n\n")
    assert file_names(prepared(root), "train") == ["JPEGImages/a.jpg"]


def test_a_stem_may_end_like_a_flag(tmp_path: Path) -> None:
    root = lay(tmp_path / "data", train={"cell 1": xml(CAT)}, val={"b": xml(CAT)})
    assert file_names(prepared(root), "train") == ["JPEGImages/cell 1.jpg"]


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg"])
def test_images_of_other_endings_are_found(root: Path, name: str) -> None:
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages" / name)
    assert file_names(prepared(root), "train") == [f"JPEGImages/{name}"]


def test_a_missing_size_is_read_from_the_image_as_it_is_shown(tmp_path: Path) -> None:
    from PIL import Image

    root = lay(tmp_path / "data", train={"a": xml(CAT, size=" ")}, val={"b": xml(CAT)})
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "JPEGImages/a.jpg", exif=turned)
    image = labels(prepared(root))["images"][0]
    assert (image["width"], image["height"]) == (40, 60)


class TestCache:
    def test_a_second_call_converts_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = prepared(root)
        monkeypatch.setattr(voc, "converted", None)
        assert prepared(root) == first

    def test_a_changed_label_of_equal_size_and_time_changes_the_fingerprint(self, root: Path) -> None:
        before, path = prepared(root), root / "Annotations/a.xml"
        times = path.stat()
        path.write_text(path.read_text().replace("<xmin>11<", "<xmin>12<"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        after = prepared(root)
        assert after.fingerprint != before.fingerprint
        assert labels(after)["annotations"][0]["bbox"][0] == 11

    def test_the_fingerprint_sees_an_image_of_another_size(self, root: Path) -> None:
        before = prepared(root)
        (root / "JPEGImages/b.jpg").write_bytes(b"longer")
        assert prepared(root).fingerprint != before.fingerprint

    def test_the_fingerprint_sees_no_file_beside_the_data_set(self, root: Path) -> None:
        before = prepared(root)
        (root / "notes.txt").write_text("mine")
        (root / "JPEGImages/unlisted.jpg").write_bytes(b"x")
        assert prepared(root) == before

    def test_the_fingerprint_does_not_depend_on_the_place(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root, tmp_path / "moved")
        assert prepared(root).fingerprint == prepared(tmp_path / "moved").fingerprint

    def test_converted_labels_that_were_edited_are_refused(self, root: Path) -> None:
        path = prepared(root).train.labels
        path.write_text(path.read_text().replace("600", "601"))
        with pytest.raises(MachineError, match="changed or removed"):
            prepared(root)


class TestFaults:
    def test_missing_root_is_the_only_fault(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            prepared(tmp_path / "nowhere")
        assert [fault.what for fault in caught.value.faults] == ["dataset.root is not a folder"]

    def test_all_folders_and_split_files_that_are_missing_are_told_at_once(self, root: Path) -> None:
        shutil.rmtree(root / "Annotations")
        with pytest.raises(UsageError) as caught:
            prepared(root, images="pictures", val=("test",))
        assert [fault.what for fault in caught.value.faults] == [
            "dataset.images is not a folder",
            "dataset.annotations is not a folder",
            "dataset.val is not a file",
        ]

    def test_stems_without_xml_or_image_are_told_at_once(self, root: Path) -> None:
        (root / "ImageSets/Main/train.txt").write_text("a\nx\ny\n")
        (root / "JPEGImages/b.jpg").unlink()
        with pytest.raises(UsageError) as caught:
            prepared(root)
        assert [(fault.what, fault.got) for fault in caught.value.faults] == [
            ("stems without an XML file: 2", "x, y"),
            ("stems without an image: 2", "x, y"),
            ("stems without an image: 1", "b"),
        ]

    def test_an_empty_split_is_refused(self, root: Path) -> None:
        (root / "ImageSets/Main/val.txt").write_text("\n")
        with pytest.raises(UsageError, match="lists no images") as caught:
            prepared(root)
        assert caught.value.faults[0].where.endswith("val.txt")

    def test_a_stem_listed_twice_is_refused(self, root: Path) -> None:
        (root / "ImageSets/Main/train.txt").write_text("a\na\n")
        with pytest.raises(UsageError, match=r"listed twice in dataset\.train: 1"):
            prepared(root)

    def test_all_that_is_wrong_in_the_xml_is_told_with_its_place(self, tmp_path: Path) -> None:
        boxless = "<object><name>cat</name></object></annotation>"
        broken = {
            "a": xml(CAT)[:-20],
            "b": xml(CAT).replace("</annotation>", boxless),
            "c": xml(("cat", (1, "left", 3, 4), 0)),
            "d": xml(("cat", (1, 2, "nan", 4), 0), ("cat", (1, 2, "inf", 4), 0)),
            "e": xml(("", (1, 2, 3, 4), 0)),
            "f": xml(("cat", (1, 2, 3, 4), 7)),
            "g": xml(CAT, size="<size><width>wide</width><height>1</height></size>"),
            "h": xml(CAT, size=f"<size><width>{10**400}</width><height>1</height></size>"),
            "i": xml(("cat", (1, 2, "1e300", 4), 0)),
        }
        root = lay(tmp_path / "data", train=broken, val={"v": xml(("dgo", (1, 2, 3, 4), 0))})
        with pytest.raises(UsageError) as caught:
            prepared(root, classes=("cat", "dog"))
        assert [(fault.what, fault.got.partition(":")[0]) for fault in caught.value.faults[:-1]] == [
            ("XML files that do not parse: 1", "a.xml"),
            ("objects without a <bndbox>: 1", "b.xml object 1 (from 0)"),
            ("objects whose box is not of numbers: 4", "c.xml object 0 (from 0)"),
            ("objects without a <name>: 1", "e.xml object 0 (from 0)"),
            ("objects whose <difficult> is neither 0 nor 1: 1", "f.xml object 0 (from 0)"),
            ("XML files whose <size> is not of whole numbers from 0 to a million: 2", "g.xml"),
        ]
        assert all(fault.fix for fault in caught.value.faults)
        assert caught.value.faults[-1].what == "class dgo is not in dataset.classes"
        assert caught.value.faults[-1].fix == "did you mean dog?"

    def test_many_faults_of_a_kind_are_one_with_their_number(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "data", train={f"{n}": "<a" for n in range(30)}, val={"v": xml(CAT)})
        with pytest.raises(UsageError) as caught:
            prepared(root)
        (fault,) = caught.value.faults
        assert fault.what == "XML files that do not parse: 30"
        assert fault.got.endswith(" and 27 more")

    def test_swapped_corners_are_refused(self, tmp_path: Path) -> None:
        swapped = {"a": xml(("cat", (30, 1, 10, 20), 0), ("cat", (1, 20, 10, 10), 0), CAT)}
        with pytest.raises(UsageError, match="swapped corners\\?: 2") as caught:
            prepared(lay(tmp_path / "data", train=swapped, val={"b": xml(CAT)}))
        assert "where they hold x, y, width and height" in caught.value.faults[0].fix
        assert "xmin '30', ymin '1', xmax '10', ymax '20'" in caught.value.faults[0].got

    def test_a_namespace_is_named_and_not_passed_over(self, tmp_path: Path) -> None:
        named = xml(CAT).replace("<annotation>", '<annotation xmlns="http://x.y/z">')
        with pytest.raises(UsageError, match="with a namespace"):
            prepared(lay(tmp_path / "data", train={"a": named}, val={"b": xml(CAT)}))

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("object>", "Object>"),
            ("<object>", '<object xmlns="http://x.y/z">'),
            ("<object>", "<objects><object>"),
        ],
    )
    def test_objects_that_are_written_otherwise_are_not_passed_over(
        self, tmp_path: Path, old: str, new: str
    ) -> None:
        odd = xml(CAT).replace(old, new)
        if "objects" in new:
            odd = odd.replace("</object>", "</object></objects>")
        with pytest.raises(UsageError, match="a <bndbox> that is in no <object>: 1"):
            prepared(lay(tmp_path / "data", train={"a": odd, "c": xml(CAT)}, val={"b": xml(CAT)}))

    def test_a_class_name_with_a_line_break_is_refused(self, tmp_path: Path) -> None:
        odd = {"a": xml(("c\nat", (1, 2, 3, 4), 0))}
        with pytest.raises(UsageError, match="holds control characters") as caught:
            prepared(lay(tmp_path / "data", train=odd, val={"b": xml(CAT)}))
        assert caught.value.faults[0].got == r"a.xml object 0 (from 0): 'c\nat'"

    def test_a_list_in_utf_16_is_told(self, root: Path) -> None:
        (root / "ImageSets/Main/train.txt").write_text("a\n", encoding="utf-16")
        with pytest.raises(UsageError, match="this list is not UTF-8"):
            prepared(root)

    def test_a_stem_with_an_escape_sequence_is_refused(self, root: Path) -> None:
        (root / "ImageSets/Main/train.txt").write_text("a\x1b[31m\n")
        with pytest.raises(UsageError, match="stems with control characters: 1") as caught:
            prepared(root)
        assert "\x1b" not in str(caught.value)

    def test_a_class_of_the_recipe_with_a_control_character_is_refused(self, root: Path) -> None:
        with pytest.raises(UsageError, match="control characters") as caught:
            prepared(root, classes=("cat\x07",))
        assert "\x07" not in str(caught.value)

    @pytest.mark.parametrize(
        ("marks", "why"), [(1, "<difficult> is 1: 2"), (0, "the box is smaller than a pixel: 2")]
    )
    def test_a_split_of_which_no_object_is_left_is_refused(
        self, tmp_path: Path, marks: int, why: str
    ) -> None:
        box = (1, 2, 30, 40) if marks else (0, 0, 0, 0)
        lost = xml(("cat", box, marks), ("cat", box, marks))
        with pytest.raises(UsageError, match="no object is left") as caught:
            prepared(lay(tmp_path / "data", train={"a": lost}, val={"b": xml(CAT)}))
        (fault,) = caught.value.faults
        assert fault.where.endswith("dataset.train")
        assert fault.got.startswith(why)
        assert "iscrowd" not in fault.fix
        assert "Annotations/a.xml" in fault.got

    def test_what_an_earlier_kdlab_converted_and_this_one_refuses_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = lay(tmp_path / "data", train={"a": xml(("cat", (1, 1, 1, 1), 0))}, val={"b": xml(CAT)})
        with monkeypatch.context() as patch:
            patch.setattr(voc, "_CHECKS", 1)
            patch.setattr(_voc_xml, "unmeant", lambda *_: [])
            prepared(root)
        with pytest.raises(UsageError, match="no object is left"):
            prepared(root)

    @pytest.mark.parametrize(
        ("line", "fix"),
        [
            ("a.jpg", "list stems alone: a in the place of a.jpg"),
            ("./JPEGImages/a.jpg ./Annotations/a.xml", "list stems alone: a in the place of ./JPEGImages"),
            ("A", "there is 'a.xml': rename it"),
            ("z", "put the files there"),
        ],
    )
    def test_a_list_of_another_form_is_told_what_to_list(self, root: Path, line: str, fix: str) -> None:
        (root / "ImageSets/Main/train.txt").write_text(f"{line}\n")
        with pytest.raises(UsageError) as caught:
            prepared(root)
        assert caught.value.faults[0].fix.startswith(fix)

    def test_the_list_of_the_other_split_is_not_proposed(self, root: Path) -> None:
        (root / "ImageSets/Main/val.txt").unlink()
        with pytest.raises(UsageError) as caught:
            prepared(root)
        (fault,) = caught.value.faults
        assert (fault.what, fault.known) == ("dataset.val is not a file", "train.txt")
        assert fault.fix.startswith("put the file there")

    def test_labels_without_any_object_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no XML file has an object"):
            prepared(lay(tmp_path / "data", train={"a": xml()}, val={"b": xml()}))

    def test_a_class_named_twice_is_refused(self, root: Path) -> None:
        with pytest.raises(UsageError, match="a class twice"):
            prepared(root, classes=("cat", "dog", "cat"))


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason="the real data is not here")
class TestBloodCells:
    @pytest.mark.parametrize("part", ["train", "val"])
    def test_boxes_and_labels_are_those_of_mmdet(self, part: str, torch_: Any) -> None:
        from mmdet.datasets import XMLDataset

        root = DATA / "bccd"
        files = prepared(root, **BCCD)
        reference = XMLDataset(
            img_subdir="images", ann_subdir="annotations", data_prefix={"sub_data_root": f"{root}/"},
            ann_file=f"{root}/splits/{part}.txt", metainfo={"classes": files.classes}, lazy_init=True,
        ).load_data_list()  # fmt: skip
        content = labels(files, part)
        assert len(content["images"]) == len(reference) > 80
        boxes: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
        for found in content["annotations"]:
            x, y, width, height = found["bbox"]
            boxes[found["image_id"]].append(([x, y, x + width, y + height], found["category_id"] - 1))
        for image, theirs in zip(content["images"], reference, strict=True):
            assert Path(image["file_name"]).stem == theirs["img_id"]
            assert (image["width"], image["height"]) == (theirs["width"], theirs["height"])
            assert boxes[image["id"]] == [(i["bbox"], i["bbox_label"]) for i in theirs["instances"]]

    def test_the_object_without_area_can_be_named(self) -> None:
        content = labels(prepared(DATA / "bccd", **BCCD), "val")
        image = next(i for i in content["images"] if i["xml"].endswith("BloodImage_00338.xml"))
        objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert objects[12]["bbox"] == [503, 336, 0, 0]


@pytest.mark.parametrize(
    ("target", "fix"),
    [("gone", "is a link to gone, which is not there: put"), ("/dev/null", "is no regular file: put")],
)
@pytest.mark.parametrize("file", ["JPEGImages/a.jpg", "Annotations/a.xml"])
def test_a_listed_file_that_leads_to_none_is_told_as_that(
    target: str, fix: str, file: str, root: Path
) -> None:
    (root / file).unlink()
    (root / file).symlink_to(target)
    with pytest.raises(UsageError) as caught:
        prepared(root)
    assert [fault.fix[:60] for fault in caught.value.faults] == [
        f"{Path(file).name!r} {fix} the file there"[:60]
    ]


def test_a_listed_path_with_a_backslash_is_told(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text("JPEGImages\\a.jpg\n")
    with pytest.raises(UsageError) as caught:
        prepared(root)
    for fault in caught.value.faults:
        assert fault.fix.endswith(r"a in the place of JPEGImages\a.jpg (a backslash is no separator here)")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<html></html>", "XML files without an <annotation>: 1"),
        (xml(CAT).replace(">100<", ">-96<"), "XML files whose <size> is not of whole numbers"),
        (xml(CAT).replace(">100<", ">100000000000<"), "XML files whose <size> is not of whole numbers"),
    ],
)
def test_xml_that_cannot_be_meant_is_refused(text: str, what: str, tmp_path: Path) -> None:
    root = lay(tmp_path / "data", train={"a": text}, val={"b": xml(CAT)})
    with pytest.raises(UsageError) as caught:
        prepared(root)
    assert [fault.what[: len(what)] for fault in caught.value.faults] == [what]


def test_a_stem_that_is_too_long_for_a_file_is_missing(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text(5000 * "a" + "\n")
    with pytest.raises(UsageError, match="stems without an XML file: 1"):
        prepared(root)
