from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets import coco
from kdlab.datasets.base import Split, fingerprint
from kdlab.datasets.coco import load_labels
from kdlab.errors import MachineError, UsageError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
IMAGE = {"id": 0, "file_name": "sub/1.jpg", "width": 40, "height": 30}
BOX = {"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 2, 10, 5.5]}

NO_IMAGE_ID = {key: value for key, value in BOX.items() if key != "image_id"}


def write_labels(path: Path, categories: Any = CATEGORIES, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": [IMAGE], "annotations": [BOX], "categories": categories, **more}
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / f"{split}2017" / "1.jpg").write_bytes(b"x")
        write_labels(labels_of(tmp_path, split))
    return tmp_path


def labels_of(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


@pytest.fixture
def big_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every labels file counts as too large to parse whole."""
    monkeypatch.setattr(coco, "_PARSE_WHOLE_BYTES", 0)


def test_files_are_found_where_coco_has_them(root: Path) -> None:
    files = coco.prepare(root=str(root))
    assert files.train == Split(root / "train2017", labels_of(root, "train")).sealed()
    assert files.val == Split(root / "val2017", labels_of(root, "val")).sealed()
    assert files.fingerprint == fingerprint([files.train, files.val])


def test_relative_root_gives_paths_that_hold_in_another_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    assert coco.prepare(root=root.name).train.images == root / "train2017"


def test_classes_are_in_the_order_of_their_ids(root: Path) -> None:
    for split in ("train", "val"):
        write_labels(labels_of(root, split), CATEGORIES[::-1])
    assert coco.prepare(root=str(root)).classes == ("person", "car")


def test_missing_root_is_the_only_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(tmp_path / "nowhere"))
    assert [fault.what for fault in caught.value.faults] == ["dataset.root is not a folder"]


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(tmp_path))
    assert [fault.what for fault in caught.value.faults] == [
        "dataset.train_images is not a folder",
        "dataset.val_images is not a folder",
        "dataset.train_labels is not a file",
        "dataset.val_labels is not a file",
    ]


def test_missing_folder_names_what_is_there_and_the_nearest(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(root), val_images="val2014")
    fault = caught.value.faults[0]
    assert fault.where == str(root / "val2014")
    assert (fault.known, fault.fix) == ("annotations, train2017, val2017", "did you mean val2017?")


def test_the_folder_of_another_option_is_not_proposed(root: Path) -> None:
    (root / "val2017" / "1.jpg").unlink()
    (root / "val2017").rmdir()
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(root))
    assert caught.value.faults[0].fix == (
        "put the folder there, or set dataset.val_images relative to dataset.root"
    )


def test_what_is_there_and_of_another_kind_is_said_to_be(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(root), train_images="val2017/1.jpg", val_labels="annotations")
    assert [(fault.what, fault.got) for fault in caught.value.faults] == [
        ("dataset.train_images is not a folder", "a file"),
        ("dataset.val_labels is not a file", "a folder"),
    ]
    assert not any("did you mean" in fault.fix for fault in caught.value.faults)


def test_a_folder_that_is_missing_on_the_way_is_the_one_that_is_named(root: Path) -> None:
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(root), val_labels="annotation/instances_val2017.json")
    fault = caught.value.faults[0]
    assert (fault.known, fault.fix) == ("annotations, train2017, val2017", "did you mean annotations?")


def test_both_files_that_are_not_json_are_told_with_the_line(root: Path) -> None:
    for split in ("train", "val"):
        labels_of(root, split).write_text('{"images": [],\n "categories": [}')
    with pytest.raises(UsageError, match="line 2") as caught:
        coco.prepare(root=str(root))
    assert [fault.where for fault in caught.value.faults] == [
        str(labels_of(root, split)) for split in ("train", "val")
    ]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], 'has no "categories"'),
        (None, 'has no "categories"'),
        (["person"], "is not a list of"),
        ([{"id": 1}], "is not a list of"),
        ([{"id": "3", "name": "person"}], "categories without a whole number as id: 1"),
        ([{"id": True, "name": "person"}, *CATEGORIES], "categories without a whole number as id: 1"),
        ([{"id": 3, "name": 7}], "categories whose name is not text: 1"),
        ([{"id": 3, "name": "person"}, {"id": 3, "name": "car"}], "categories with the id of another: 1"),
        ([{"id": 3, "name": "person"}, {"id": 2, "name": "person"}], "with the name of another: 1"),
        ([{"id": 3, "name": "a\x1b[31m"}], "categories whose name holds control characters"),
        ([{"id": 3, "name": ""}], "categories whose name is blank: 1"),
        ([{"id": 3, "name": "  "}], "categories whose name is blank: 1"),
        ([{"id": 3, "name": "\ud800"}], "categories whose name holds control characters"),
    ],
)
def test_improper_categories_are_refused(root: Path, categories: Any, message: str) -> None:
    write_labels(labels_of(root, "val"), categories)
    with pytest.raises(UsageError, match=message) as caught:
        coco.prepare(root=str(root))
    assert {fault.where for fault in caught.value.faults} == {str(labels_of(root, "val"))}
    assert not any("fetch it again" in fault.fix for fault in caught.value.faults)


@pytest.mark.parametrize("content", ["", "[]", "\xff"])
def test_content_that_is_no_coco_file_is_refused(root: Path, content: str) -> None:
    labels_of(root, "val").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError):
        coco.prepare(root=str(root))


def test_categories_that_differ_are_told_for_both_sides(root: Path) -> None:
    write_labels(labels_of(root, "val"), [CATEGORIES[0], {"id": 3, "name": "bus"}])
    with pytest.raises(UsageError, match="categories differ") as caught:
        coco.prepare(root=str(root))
    assert caught.value.faults[0].got == "only here: {3: 'bus'}; only in training: {3: 'car'}"


def test_categories_that_differ_in_their_unicode_form_are_told_so(root: Path) -> None:
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        write_labels(labels_of(root, split), [CATEGORIES[0], {"id": 3, "name": name}])
    with pytest.raises(UsageError) as caught:
        coco.prepare(root=str(root))
    assert caught.value.faults[0].got.endswith(": the same names in another Unicode form (NFC, NFD)")


def test_unreadable_file_is_a_fault_of_the_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(MachineError, match="Permission denied") as caught:
        coco.prepare(root=str(root))
    assert caught.value.faults[0].where == str(labels_of(root, "train"))


def test_links_that_lead_nowhere_are_no_part_of_the_set(root: Path) -> None:
    before = coco.prepare(root=str(root))
    (root / "val2017" / "2.jpg").symlink_to(root / "gone.jpg")
    (root / "val2017" / "loop").symlink_to(root / "val2017")
    (root / "val2017" / "self").symlink_to("self")
    assert coco.prepare(root=str(root)) == before


@pytest.mark.usefixtures("big_files")
class TestBigFile:
    def test_classes_are_read_without_parsing_the_rest(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(content: bytes) -> None:
            raise AssertionError("parsed whole")

        monkeypatch.setattr(json, "loads", never)
        assert coco.prepare(root=str(root)).classes == ("person", "car")

    def test_categories_may_come_first(self, root: Path) -> None:
        content = json.dumps({"categories": CATEGORIES, "images": [{"id": 1}]}, indent=1)
        labels_of(root, "train").write_text(content)
        assert coco.prepare(root=str(root)).classes == ("person", "car")

    def test_file_cut_short_is_refused(self, root: Path) -> None:
        content = json.dumps({"categories": CATEGORIES, "images": [1, 2, 3]})
        labels_of(root, "train").write_text(content[:-3])
        with pytest.raises(UsageError, match="not JSON"):
            coco.prepare(root=str(root))

    def test_categories_nested_beyond_all_measure_are_no_json(self, root: Path) -> None:
        labels_of(root, "val").write_text('{"categories": ' + "[" * 200_000 + "}")
        with pytest.raises(UsageError, match="nested too deeply"):
            coco.prepare(root=str(root))

    def test_other_lists_of_that_name_are_not_taken_for_the_categories(self, root: Path) -> None:
        for split in ("train", "val"):
            write_labels(labels_of(root, split), info={"categories": [{"id": 9, "name": "no"}]})
        assert coco.prepare(root=str(root)).classes == ("person", "car")


class TestLabels:
    def written(self, folder: Path, images: Any = (IMAGE,), annotations: Any = (BOX,)) -> Path:
        content = {"images": list(images), "annotations": list(annotations), "categories": CATEGORIES}
        (folder / "labels.json").write_text(json.dumps(content))
        return folder / "labels.json"

    def test_what_may_be_left_out_is_filled_in(self, tmp_path: Path) -> None:
        (box,) = load_labels(self.written(tmp_path))["annotations"]
        assert (box["area"], box["iscrowd"]) == (55, 0)

    def test_what_is_given_stays(self, tmp_path: Path) -> None:
        given = BOX | {"area": 30.5, "iscrowd": 0, "segmentation": {"counts": [3, 4], "size": [30, 40]}}
        assert load_labels(self.written(tmp_path, annotations=[given]))["annotations"] == [given]

    @pytest.mark.parametrize(
        ("images", "annotations", "told"),
        [
            ([IMAGE | {"id": "1"}], [], "images without a whole number as id: 1"),
            ([IMAGE, IMAGE], [BOX], "images with the id of another: 1"),
            ([{"id": 0, "width": 4, "height": 3}], [BOX], "images without a file_name: 1"),
            ([{"id": 0, "file_name": "a"}], [BOX], "images without a whole width and height: 1"),
            ([IMAGE], [{"image_id": 0}], "annotations without a whole number as id: 1"),
            ([IMAGE], [BOX, BOX], "annotations with the id of another: 1"),
            ([IMAGE], [BOX | {"image_id": 7}], "annotations of an image that is not listed: 1"),
            ([IMAGE], [BOX | {"category_id": 2}], "annotations of a category that is not listed: 1"),
            ([IMAGE], [BOX | {"bbox": [1, 2, 3]}], "annotations whose bbox is not [x, y, width, height]: 1"),
            (
                [IMAGE],
                [BOX | {"bbox": [1, 2, 3, float("nan")]}, BOX | {"id": 1, "bbox": [1, 2, 3, 10**400]}],
                "annotations whose bbox is not [x, y, width, height]: 2",
            ),
            ([IMAGE], [BOX | {"area": "55"}], "annotations whose area is not a number: 1"),
            ([IMAGE | {"id": True}], [], "images without a whole number as id: 1"),
            ([IMAGE | {"width": 10**400}], [BOX], "images without a whole width and height: 1"),
            ([IMAGE], [BOX | {"bbox": [0, 0, 10**200, 10**200]}], "annotations whose bbox is not [x, y"),
            ([IMAGE], [BOX | {"area": 1e300}], "annotations whose area is not a number: 1"),
            ([IMAGE | {"width": 10**11}], [BOX], "images without a whole width and height: 1"),
            ([IMAGE | {"width": True}], [BOX], "images without a whole width and height: 1"),
            ([IMAGE | {"file_name": ""}], [BOX], "images without a file_name: 1"),
            ([IMAGE | {"file_name": "a\n"}], [BOX], "images whose file_name holds control characters"),
            ([IMAGE], [BOX | {"image_id": [0]}], "annotations whose image_id is no whole number: 1"),
            ([IMAGE], [BOX | {"category_id": "3"}], "annotations whose category_id is no whole number: 1"),
            ([IMAGE], [BOX | {"bbox": [9, 9, -4, 5]}], "annotations whose bbox has a negative width"),
            ([IMAGE], [BOX | {"iscrowd": "0"}], "annotations whose iscrowd is neither 0 nor 1: 1"),
            ([IMAGE], [BOX | {"iscrowd": 2}], "annotations whose iscrowd is neither 0 nor 1: 1"),
            ([IMAGE], [BOX | {"ignore": "false"}], "annotations whose ignore is neither 0 nor 1: 1"),
        ],
    )
    def test_each_kind_of_fault_is_told(
        self, tmp_path: Path, images: Any, annotations: Any, told: str
    ) -> None:
        path = self.written(tmp_path, images, annotations)
        with pytest.raises(UsageError) as caught:
            load_labels(path)
        (fault,) = caught.value.faults
        assert fault.what.startswith(told)
        assert fault.where == str(path)
        assert fault.fix

    @pytest.mark.parametrize(
        ("images", "annotations", "got", "fix"),
        [
            ([IMAGE], [BOX | {"image_id": "0"}], "annotation 0: image_id is text: '0'", "quotation"),
            ([IMAGE], [BOX | {"category_id": 3.0}], "annotation 0: category_id is 3.0", "decimal point"),
            ([IMAGE], [BOX | {"area": "55"}], "annotation 0: area is text: '55'", "quotation"),
            ([IMAGE], [BOX | {"bbox": ["1", 2, 3, 4]}], "bbox is ['1', 2, 3, 4]", "quotation"),
            ([IMAGE], [BOX | {"ignore": "0"}], "annotation 0: ignore is text: '0'", "quotation"),
            ([IMAGE], [BOX | {"iscrowd": 0.5}], "annotation 0: iscrowd is 0.5", "write 0 or 1"),
            ([IMAGE | {"id": "0"}], [], "number 0 (from 0): id is text: '0'", "quotation"),
            ([IMAGE | {"id": "a1-1"}], [], "id is text: 'a1-1'", "an id of its own, a whole number"),
            ([IMAGE], [BOX | {"image_id": "a.jpg"}], "text: 'a.jpg'", "the id of the image, a whole number"),
            ([IMAGE], [NO_IMAGE_ID], "image_id is None", "write the id of the image"),
            ([IMAGE], [BOX | {"category_id": None}], "category_id is None", "write the id of the category"),
            ([IMAGE | {"width": 10**11}], [BOX], "width is 100000000000", "at most 1,000,000 a side"),
            ([IMAGE | {"id": 1.0}], [], "number 0 (from 0): id is 1.0", "decimal point"),
            ([IMAGE | {"width": "40"}], [BOX], "image 0: width is text: '40'", "quotation"),
            ([IMAGE | {"height": 30.0}], [BOX], "image 0: height is 30.0", "decimal point"),
            ([IMAGE | {"file_name": "a\x1b"}], [BOX], r"image 0: 'a\x1b'", "take them out"),
        ],
    )
    def test_a_wrong_value_is_told_with_its_place_and_a_fix_that_fits(
        self, tmp_path: Path, images: Any, annotations: Any, got: str, fix: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            load_labels(self.written(tmp_path, images, annotations))
        (fault,) = caught.value.faults
        assert got in fault.got
        assert fix in fault.fix

    @pytest.mark.parametrize("flag", [0, 1, 0.0, True, False, None])
    def test_a_flag_may_be_a_number_or_a_truth_value(self, tmp_path: Path, flag: Any) -> None:
        content = [BOX, BOX | {"id": 1, "iscrowd": flag, "ignore": flag}]
        assert load_labels(self.written(tmp_path, annotations=content))["annotations"][1]["iscrowd"] == int(
            bool(flag)
        )

    @pytest.mark.parametrize("number", [2**53, 2**63, 2**64, -7])
    def test_a_category_id_may_be_any_whole_number(self, tmp_path: Path, number: int) -> None:
        categories = [{"id": number, "name": "person"}, {"id": number + 1, "name": "car"}]
        write_labels(tmp_path / "a.json", categories, annotations=[BOX | {"category_id": number + 1}])
        assert load_labels(tmp_path / "a.json")["annotations"][0]["category_id"] == number + 1

    @pytest.mark.parametrize("key", ["images", "categories"])
    def test_labels_nested_beyond_all_measure_are_no_json(self, tmp_path: Path, key: str) -> None:
        (tmp_path / "a.json").write_text(f'{{"{key}": {"[" * 200_000}')
        with pytest.raises(UsageError, match="nested too deeply"):
            load_labels(tmp_path / "a.json")

    def test_many_of_a_kind_are_one_fault_that_names_the_first(self, tmp_path: Path) -> None:
        strays = [BOX | {"id": number, "image_id": 9} for number in range(5)]
        with pytest.raises(UsageError) as caught:
            load_labels(self.written(tmp_path, annotations=strays))
        assert caught.value.faults[0].got == (
            "annotation 0: image 9, annotation 1: image 9, annotation 2: image 9 and 2 more"
        )

    def test_a_file_without_annotations_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "labels.json").write_text(json.dumps({"images": [], "categories": CATEGORIES}))
        with pytest.raises(UsageError, match='no "annotations"'):
            load_labels(tmp_path / "labels.json")

    def test_bad_labels_of_a_small_file_are_told_before_anything_runs(self, root: Path) -> None:
        write_labels(labels_of(root, "val"), annotations=[BOX | {"image_id": 9}])
        with pytest.raises(UsageError, match="an image that is not listed") as caught:
            coco.prepare(root=str(root))
        assert caught.value.faults[0].where == str(labels_of(root, "val"))


def test_a_name_of_very_many_categories_is_told_at_once(tmp_path: Path) -> None:
    categories = [{"id": number, "name": "cat"} for number in range(20_000)]
    before = time.process_time()
    (fault,) = coco.category_faults(categories, tmp_path)
    assert time.process_time() - before < 1
    assert fault.got.startswith("cat: ids 0, 1, 2, 3 and 19996 more")


class TestFirstImage:
    @pytest.fixture(params=[0, 2**20], ids=["large", "small"])
    def written(self, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Labels of such a text, which count as large or small."""
        monkeypatch.setattr(coco, "_PARSE_WHOLE_BYTES", request.param)

        def write(text: str) -> Path:
            (tmp_path / "a.json").write_text(text)
            return tmp_path / "a.json"

        return write

    @pytest.mark.parametrize(
        "front",
        [
            {"categories": CATEGORIES, "annotations": [BOX] * 9},
            {"info": {"images": [{"x": 1}]}},
            {"info": {"images": [1]}},
        ],
        ids=["last", "name twice", "name twice without entries"],
    )
    def test_it_is_found_wherever_the_list_stands(self, front: Any, written: Any) -> None:
        text = json.dumps(front | {"images": [IMAGE, IMAGE | {"id": 1}]}, indent=2)
        assert coco.first_image(written(text)) == IMAGE

    def test_it_may_be_of_any_length(self, written: Any) -> None:
        image = IMAGE | {"note": "x" * 2**17}
        assert coco.first_image(written(json.dumps({"images": [image]}))) == image

    @pytest.mark.parametrize(
        "text",
        ["", "{}", "[]", '{"images": []}', '{"images": [3]}', '{"images": [{"file_name": "a', "[" * 99],
    )
    def test_of_labels_of_another_content_there_is_none(self, text: str, written: Any) -> None:
        assert coco.first_image(written(text)) == {}
