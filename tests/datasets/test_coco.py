from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets import coco
from kdlab.datasets.base import Split, fingerprint
from kdlab.datasets.coco import load_labels
from kdlab.errors import MachineError, UsageError

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]


def write_labels(path: Path, categories: Any = CATEGORIES, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**more, "images": [], "annotations": [], "categories": categories}))


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
    assert files.train == Split(root / "train2017", labels_of(root, "train"))
    assert files.val == Split(root / "val2017", labels_of(root, "val"))
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
        ([{"id": "1", "name": "person"}], "not a whole number"),
        ([{"id": 1, "name": "person"}, {"id": 1, "name": "car"}], "occurs twice"),
        ([{"id": 1, "name": "person"}, {"id": 2, "name": "person"}], "occurs twice"),
    ],
)
def test_improper_categories_are_refused(root: Path, categories: Any, message: str) -> None:
    write_labels(labels_of(root, "val"), categories)
    with pytest.raises(UsageError, match=message) as caught:
        coco.prepare(root=str(root))
    assert [fault.where for fault in caught.value.faults] == [str(labels_of(root, "val"))]


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


def test_unreadable_file_is_a_fault_of_the_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(MachineError, match="Permission denied") as caught:
        coco.prepare(root=str(root))
    assert caught.value.faults[0].where == str(labels_of(root, "train"))


def test_dangling_image_link_is_a_fault_of_the_machine(root: Path) -> None:
    (root / "val2017" / "2.jpg").symlink_to(root / "gone.jpg")
    with pytest.raises(MachineError, match="cannot be read"):
        coco.prepare(root=str(root))


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

    def test_other_lists_of_that_name_are_not_taken_for_the_categories(self, root: Path) -> None:
        for split in ("train", "val"):
            write_labels(labels_of(root, split), info={"categories": [{"id": 9, "name": "no"}]})
        assert coco.prepare(root=str(root)).classes == ("person", "car")


class TestLabels:
    IMAGE = {"id": 0, "file_name": "sub/1.jpg", "width": 40, "height": 30}
    BOX = {"id": 0, "image_id": 0, "category_id": 3, "bbox": [1, 2, 10, 5.5]}

    def written(self, folder: Path, images: Any = (IMAGE,), annotations: Any = (BOX,)) -> Path:
        content = {"images": list(images), "annotations": list(annotations), "categories": CATEGORIES}
        (folder / "labels.json").write_text(json.dumps(content))
        return folder / "labels.json"

    def test_what_may_be_left_out_is_filled_in(self, tmp_path: Path) -> None:
        (box,) = load_labels(self.written(tmp_path))["annotations"]
        assert (box["area"], box["iscrowd"]) == (55, 0)

    def test_what_is_given_stays(self, tmp_path: Path) -> None:
        given = self.BOX | {"area": 30.5, "iscrowd": 1, "segmentation": {"counts": [3, 4], "size": [30, 40]}}
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
        ],
    )
    def test_each_kind_of_fault_is_told(
        self, tmp_path: Path, images: Any, annotations: Any, told: str
    ) -> None:
        path = self.written(tmp_path, images, annotations)
        with pytest.raises(UsageError) as caught:
            load_labels(path)
        (fault,) = caught.value.faults
        assert (fault.what, fault.where) == (told, str(path))
        assert fault.fix

    def test_many_of_a_kind_are_one_fault_that_names_the_first(self, tmp_path: Path) -> None:
        strays = [self.BOX | {"id": number, "image_id": 9} for number in range(5)]
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
        content = {"images": [], "annotations": [self.BOX], "categories": CATEGORIES}
        labels_of(root, "val").write_text(json.dumps(content))
        with pytest.raises(UsageError, match="an image that is not listed") as caught:
            coco.prepare(root=str(root))
        assert caught.value.faults[0].where == str(labels_of(root, "val"))
