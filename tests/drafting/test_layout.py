"""Formats and splits of folders as exports leave them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdlab.drafting.layout import Layout, find
from kdlab.drafting.walk import role, tree
from kdlab.errors import UsageError

VOC = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>{name}</name>"
    "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>15</xmax><ymax>16</ymax></bndbox></object></annotation>"
)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def coco(path: Path, *names: str) -> None:
    labels: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": name, "width": 40, "height": 30}
            for number, name in enumerate(names, 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [1, 2, 3, 4],
                "area": 12,
                "iscrowd": 0,
            }
            for number in range(1, len(names) + 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    text(path, json.dumps(labels))


def found(folder: Path) -> Layout:
    return find(tree(folder))


def read(folder: Path) -> dict[str, Any]:
    layout = found(folder)
    assert layout.labels is not None
    return layout.labels()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("valid/_annotations.coco.json", "val"),
        ("images/val2017/a.jpg", "val"),
        ("training/test.json", "test"),
        ("trainer/labels.json", ""),
        ("a/b.json", ""),
    ],
)
def test_a_path_says_its_split(path: str, expected: str) -> None:
    assert role(path) == expected


def test_a_roboflow_export_in_coco_json(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        image(tmp_path / split / "a.jpg")
        coco(tmp_path / split / "_annotations.coco.json", "a.jpg")
    assert found(tmp_path).dataset == {
        "name": "coco",
        "train_images": "train",
        "val_images": "valid",
        "train_labels": "train/_annotations.coco.json",
        "val_labels": "valid/_annotations.coco.json",
    }


def test_coco_s_own_folders_and_its_other_files(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        image(tmp_path / split / "a.jpg")
        for kind in ("instances", "person_keypoints"):
            coco(tmp_path / "annotations" / f"{kind}_{split}.json", "a.jpg")
    section = found(tmp_path).dataset
    assert section["train_labels"] == "annotations/instances_train2017.json"
    assert (section["train_images"], section["val_images"]) == ("train2017", "val2017")


def test_the_test_split_takes_the_place_of_a_missing_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image(tmp_path / "images" / split / "a.jpg")
        coco(tmp_path / f"{split}.json", "a.jpg")
    layout = found(tmp_path)
    assert layout.dataset["val_images"] == "images/test"
    assert layout.told


def test_one_coco_file_is_read_whole_with_names_from_the_root_on(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "a.jpg")
    coco(tmp_path / "labels" / "result.json", "a.jpg")
    assert [one["file_name"] for one in read(tmp_path)["images"]] == ["photos/a.jpg"]


def test_coco_files_whose_split_nobody_says_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    for name in ("one", "two"):
        coco(tmp_path / f"{name}.json", "a.jpg")
    with pytest.raises(UsageError, match="do not say which is for training"):
        found(tmp_path)


def test_labels_whose_images_are_elsewhere_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "b.jpg")
    coco(tmp_path / "result.json", "a.jpg")
    with pytest.raises(UsageError, match="images of these labels are not there"):
        found(tmp_path)


def test_voc_with_lists_of_its_splits(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        text(tmp_path / "Annotations" / f"{stem}.xml", VOC.format(name="cat"))
    text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    text(tmp_path / "ImageSets/Main/val.txt", "b\n")
    assert found(tmp_path).dataset == {
        "name": "voc",
        "images": "JPEGImages",
        "annotations": "Annotations",
        "splits": "ImageSets/Main",
        "train": ["train"],
        "val": ["val"],
    }


def test_voc_without_lists_is_read_whole(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        image(tmp_path / f"{stem}.jpg")
        text(tmp_path / f"{stem}.xml", VOC.format(name="cat"))
    labels = read(tmp_path)
    assert [one["file_name"] for one in labels["images"]] == ["a.jpg", "b.jpg"]
    assert labels["annotations"][0]["bbox"] == [4, 5, 10, 10]
    assert {one["role"] for one in labels["images"]} == {""}


def test_voc_by_folders_says_the_split_of_each_image(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        image(tmp_path / split / "a.jpg")
        text(tmp_path / split / "a.xml", VOC.format(name="cat"))
    assert {one["file_name"]: one["role"] for one in read(tmp_path)["images"]} == {
        "train/a.jpg": "train",
        "valid/a.jpg": "val",
    }


def test_an_xml_file_without_its_image_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    for stem in ("a", "b"):
        text(tmp_path / f"{stem}.xml", VOC.format(name="cat"))
    with pytest.raises(UsageError, match="labels whose image is not there: 1"):
        read(tmp_path)


def test_cvat_s_boxes_and_polygons(tmp_path: Path) -> None:
    image(tmp_path / "images" / "a.jpg")
    text(
        tmp_path / "annotations.xml",
        '<annotations><image id="0" name="a.jpg" width="40" height="30">'
        '<box label="dog" xtl="1" ytl="2" xbr="11" ybr="22"/>'
        '<polygon label="cat" points="3.0,4.0;9.0,4.0;5.0,8.0"/></image></annotations>',
    )
    labels = read(tmp_path)
    names = {one["id"]: one["name"] for one in labels["categories"]}
    assert [(names[one["category_id"]], one["bbox"]) for one in labels["annotations"]] == [
        ("dog", [1.0, 2.0, 10.0, 20.0]),
        ("cat", [3.0, 4.0, 6.0, 4.0]),
    ]
    assert labels["images"][0]["file_name"] == "images/a.jpg"


def test_labelme_s_shapes_and_windows_paths(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    shapes = [
        {"label": "cat", "points": [[9, 8], [1, 2]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[10, 10], [13, 14]], "shape_type": "circle"},
    ]
    data = {"shapes": shapes, "imagePath": "..\\photos\\a.jpg", "imageWidth": 40, "imageHeight": 30}
    text(tmp_path / "a.json", json.dumps(data))
    boxes = [one["bbox"] for one in read(tmp_path)["annotations"]]
    assert boxes == [[1, 2, 8, 6], [5, 5, 10, 10]]


def test_a_labelme_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    text(tmp_path / "a.json", '{"imagePath": "a.jpg", "shapes": [')
    with pytest.raises(UsageError, match=r"a\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "there are no images below this folder"),
        (["a.jpg"], "there are no labels of a known format"),
        (["a.jpg", "a.xml", "a.json"], "there are labels of several formats"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, files: list[str], told: str) -> None:
    for name in files:
        if name.endswith(".jpg"):
            image(tmp_path / name)
        elif name.endswith(".xml"):
            text(tmp_path / name, VOC.format(name="cat"))
        else:
            text(tmp_path / name, json.dumps({"shapes": [], "imagePath": "a.jpg"}))
    with pytest.raises(UsageError, match=told):
        found(tmp_path)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    image(tmp_path / ".cache" / "a.jpg")
    image(tmp_path / "b.jpg")
    assert tree(tmp_path).stems == {"": {"b": ["b.jpg"]}}


def yolo(folder: Path, said: str, *stems: str) -> None:
    for stem in stems:
        image(folder / "images" / f"{stem}.jpg")
        text(folder / "labels" / f"{stem}.txt", "0 0.5 0.5 0.2 0.4\n")
    text(folder / "data.yaml", f"names: [cat]\n{said}")


def test_yolo_with_both_splits_is_read_as_it_is(tmp_path: Path) -> None:
    yolo(tmp_path, "train: images/train\nval: images/val\n", "train/a", "val/b")
    assert found(tmp_path).dataset == {"name": "yolo", "data": "data.yaml"}


@pytest.mark.parametrize("said", ["train: images\n", "train: images\nval: images\n"])
def test_yolo_without_images_to_measure_on_is_read_whole(
    tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    yolo(tmp_path, said, "a", "b")
    labels = read(tmp_path)
    assert [one["file_name"] for one in labels["images"]] == ["images/a.jpg", "images/b.jpg"]
    assert labels["annotations"][0]["bbox"] == pytest.approx([16, 9, 8, 12])
    assert found(tmp_path).told


def test_what_is_wrong_with_a_data_yaml_is_told(tmp_path: Path) -> None:
    yolo(tmp_path, "nc: 3\ntrain: images\n", "a")
    with pytest.raises(UsageError, match="nc"):
        found(tmp_path)


def test_cvat_for_video_is_refused_by_its_name(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    text(tmp_path / "annotations.xml", '<annotations><track id="0" label="dog"/></annotations>')
    with pytest.raises(UsageError, match="without an <image>"):
        read(tmp_path)


def test_a_labelme_file_without_a_size_names_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    text(tmp_path / "a.json", json.dumps({"shapes": [], "imagePath": "a.jpg"}))
    with pytest.raises(UsageError, match="images that cannot be read: 1"):
        read(tmp_path)


def shape(name: Any = "cat", *points: list[float]) -> dict[str, Any]:
    return {"label": name, "points": points or [[1, 2], [9, 8]], "shape_type": "rectangle"}


def labelme(path: Path, *shapes: dict[str, Any], name: str = "", encoding: str = "utf-8") -> None:
    said = {"imagePath": name or f"{path.stem}.jpg", "imageData": "A" * 2**20, "shapes": shapes or [shape()]}
    path.write_text(json.dumps(said | {"imageWidth": 40, "imageHeight": 30}), encoding=encoding)


def cvat(path: Path, *shapes: str, name: str = "a.jpg", size: str = 'width="40" height="30"') -> None:
    text(path, f'<annotations><image name="{name}" {size}>{"".join(shapes)}</image></annotations>')


BOX = '<box label="cat" xtl="1" ytl="2" xbr="11" ybr="22"/>'
PAIR = ("train", "val")


def coco_pair(folder: Path, *more: str) -> None:
    for split in PAIR:
        image(folder / "images" / split / f"{split}.jpg")
        coco(folder / "annotations" / f"{split}.json", f"{split}.jpg")
    for path in more:
        coco(folder / path, "train.jpg")


def in_two_folders(folder: Path) -> None:
    for name in ("left", "right"):
        image(folder / name / "a.jpg")
    text(folder / "xml" / "a.xml", VOC.format(name="cat"))


def one_labelme(folder: Path, *shapes: dict[str, Any], name: str = "") -> None:
    image(folder / "a.jpg")
    labelme(folder / "a.json", *shapes, name=name)


def two_labelme(folder: Path) -> None:
    one_labelme(folder)
    labelme(folder / "b.json", name="a.jpg")


def one_cvat(folder: Path, *shapes: str, **said: str) -> None:
    image(folder / "images" / "a.jpg")
    cvat(folder / "annotations.xml", *shapes, **said)


def two_cvat(folder: Path) -> None:
    one_cvat(folder, BOX)
    cvat(folder / "more.xml", BOX)


def one_voc(folder: Path, head: str = "", name: str = "a.jpg") -> None:
    image(folder / "images" / name)
    image(folder / "images" / "b.jpg")
    text(folder / "xml" / "a.xml", head + VOC.format(name="cat"))


def one_coco(folder: Path, content: str) -> None:
    image(folder / "a.jpg")
    text(folder / "result.json", content)


def two_yaml(folder: Path) -> None:
    yolo(folder, "train: images\n", "a")
    text(folder / "a.yaml", "names: [x]\ntrain: images\n")


def yaml_of(folder: Path, content: bytes) -> None:
    yolo(folder, "", "train/a", "val/b")
    (folder / "data.yaml").write_bytes(content)


YAML = b"names: [cat]\ntrain: images/train\nval: images/val\n"
LONG = "a" * 300 + ".jpg"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda at: coco_pair(at, "a_backup/train.json"), "a_backup/train.json, annotations/train.json"),
        (lambda at: coco_pair(at, "old/instances_train.json"), "several COCO files for train"),
        (lambda at: coco(at / "x.json", LONG) or image(at / "a.jpg"), "images of these labels are not there"),
        (lambda at: coco(at / "x.json", "Sub\\A.jpg") or image(at / "a.jpg"), "there is 'a.jpg' .*backslash"),
        (lambda at: one_coco(at, '{"images": [], "annotations": [], "categories": [{"id"'), "is not JSON"),
        (in_two_folders, "left/a.jpg, right/a.jpg"),
        (two_labelme, "a.jpg: a.json, b.json"),
        (lambda at: one_labelme(at, shape(None)), "a.json: a label is no text: None"),
        (lambda at: one_labelme(at, shape(["a"])), "a.json: a label is no text"),
        (lambda at: one_labelme(at, shape(" ")), "a.json: a label is blank"),
        (lambda at: one_labelme(at, shape("cat", [float("nan"), 1])), "a.json: cat: no place in an image"),
        (two_cvat, "images/a.jpg: annotations.xml, more.xml"),
        (lambda at: one_cvat(at, name=LONG), "labels whose image is not there"),
        (lambda at: one_cvat(at, BOX.replace('"11"', '"0"')), "a.jpg: xtl is above xbr"),
        (lambda at: one_cvat(at, BOX, size='width="0" height="30"'), "a.jpg: the size is 0x30"),
        (lambda at: one_cvat(at, "<blob/>"), "a.jpg: <blob> is no shape that is known"),
        (lambda at: one_cvat(at, BOX + '</image><track id="0"/><image name="b">'), "with a <track>"),
        (lambda at: one_voc(at, '<?xml version="1.0" encoding="gb2312"?>'), "XML files that do not parse: 1"),
        (lambda at: one_voc(at, '<?xml version="1.0" encoding="foo"?>'), "unknown encoding"),
        (lambda at: one_voc(at, name="A.jpg"), "there is 'A.jpg'"),
        (lambda at: one_voc(at, name="a.jfif"), "there is 'a.jfif' .another ending"),
        (two_yaml, "a.yaml, data.yaml"),
        (lambda at: yaml_of(at, YAML.decode().encode("utf-16")), "not UTF-8 text"),
        (lambda at: yaml_of(at, b"<<: {names: [cat]}\ntrain: images\n"), "names no classes"),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None], told: str
) -> None:
    make(tmp_path)
    with pytest.raises(UsageError, match=told):
        read(tmp_path)


@pytest.mark.parametrize("other", ["Masks", "depth", "annotated"])
def test_a_folder_called_images_goes_before_another_with_the_same_names(tmp_path: Path, other: str) -> None:
    coco_pair(tmp_path)
    image(tmp_path / other / "train" / "train.jpg")
    assert found(tmp_path).dataset["train_images"] == "images/train"
    one_voc(tmp_path / "voc")
    image(tmp_path / "voc" / other / "a.jpg")
    assert [one["file_name"] for one in read(tmp_path / "voc")["images"]] == ["images/a.jpg"]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<ellipse label="cat" cx="20" cy="15" rx="10" ry="5"/>', [10, 10, 20, 10]),
        ('<ellipse label="cat" cx="20" cy="15" rx="10" ry="5" rotation="90"/>', [15, 5, 10, 20]),
        ('<mask label="cat" rle="1, 2" left="5" top="6" width="10" height="8"/>', [5, 6, 10, 8]),
        ('<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"/>', [15, 5, 10, 20]),
        (
            '<cuboid label="cat" xtl1="1" ytl1="4" xbl1="1" ybl1="9" xtr1="5" ytr1="4" xbr1="5" ybr1="9" '
            'xtl2="7" ytl2="2" xbl2="7" ybl2="8" xtr2="9" ytr2="2" xbr2="9" ybr2="8"/>',
            [1, 2, 8, 7],
        ),
        (
            '<skeleton label="cat"><points label="eye" points="3,4"/><points label="ear" points="9,8"/>'
            '<points label="tail" outside="1" points="30,20"/></skeleton>',
            [3, 4, 6, 4],
        ),
    ],
)
def test_each_shape_of_cvat_becomes_the_box_around_it(tmp_path: Path, shape: str, box: list[float]) -> None:
    one_cvat(tmp_path, shape, '<tag label="night"/>')
    labels = read(tmp_path)
    assert [one["bbox"] for one in labels["annotations"]] == [pytest.approx(box)]
    assert [one["name"] for one in labels["categories"]] == ["cat"]


def test_labels_in_utf_16_and_behind_much_image_data_count(tmp_path: Path) -> None:
    one_labelme(tmp_path)
    image(tmp_path / "b.jpg")
    labelme(tmp_path / "b.json", encoding="utf-16")
    assert [one["file_name"] for one in read(tmp_path)["images"]] == ["a.jpg", "b.jpg"]


def test_files_of_no_known_format_are_told(tmp_path: Path) -> None:
    one_voc(tmp_path)
    text(tmp_path / "xml" / "b.xml", VOC.format(name="cat").replace("annotation", "Annotation"))
    text(tmp_path / "xml" / "c.xml", "<html/>")
    text(tmp_path / "notes.json", "{}")
    assert len(read(tmp_path)["images"]) == 2
    assert found(tmp_path).told == (
        "left aside, for no format is known that has them: notes.json, xml/c.xml",
    )


def test_links_to_folders_above_and_files_that_are_none_are_left_out(tmp_path: Path) -> None:
    one_labelme(tmp_path / "set")
    (tmp_path / "store").mkdir()
    image(tmp_path / "store" / "b.jpg")
    for name, target in {"a_loop": "set", "up": ".", "z_in": "store", "z_again": "store"}.items():
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    for name in ("x.json", "x.xml", "x.yaml"):
        (tmp_path / "set" / name).symlink_to("nowhere")
        os.mkfifo(tmp_path / "set" / f"pipe{name}")
    known = tree(tmp_path / "set")
    assert known.stems == {"": {"a": ["a.jpg"]}, "z_again/": {"b": ["b.jpg"]}}
    assert known.files == {".jpg": ["a.jpg", "z_again/b.jpg"], ".json": ["a.json"]}


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + YAML,
        b'{"names": ["cat"], "train": "images/train", "val": "images/val"}',
        b"  " + YAML.replace(b"\n", b"\n  "),
    ],
)
def test_a_data_yaml_in_any_form_of_yaml_is_known(tmp_path: Path, content: bytes) -> None:
    yaml_of(tmp_path, content)
    text(tmp_path / "a.yaml", "names: hello\n")
    assert found(tmp_path).dataset == {"name": "yolo", "data": "data.yaml"}


def test_one_folder_written_in_two_ways_is_no_split(tmp_path: Path) -> None:
    yolo(tmp_path, "train: images\nval: ./images\n", "a", "b")
    assert not found(tmp_path).dataset


def test_lists_of_a_voc_split_are_those_in_main(tmp_path: Path) -> None:
    one_voc(tmp_path)
    for folder in ("Layout", "Main"):
        for split in PAIR:
            text(tmp_path / "ImageSets" / folder / f"{split}.txt", "a\n")
    assert found(tmp_path).dataset["splits"] == "ImageSets/Main"


def roles(labels: dict[str, Any]) -> list[str]:
    return [one["role"] for one in labels["images"]]


def test_folders_of_splits_count_in_one_coco_file(tmp_path: Path) -> None:
    coco(tmp_path / "all.json", "train/a.jpg", "val/b.jpg", "c.jpg")
    for name in ("train/a.jpg", "val/b.jpg", "c.jpg"):
        image(tmp_path / name)
    assert roles(read(tmp_path)) == ["train", "val", ""]


def test_subsets_of_cvat_are_its_splits(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / f"{name}.jpg")
    nodes = (
        f'<image name="{name}.jpg" width="40" height="30" subset="{subset}">{BOX}</image>'
        for name, subset in (("a", "Train"), ("b", "Validation"))
    )
    text(tmp_path / "annotations.xml", f"<annotations>{''.join(nodes)}</annotations>")
    assert roles(read(tmp_path)) == ["train", "val"]


def test_a_subset_of_cvat_that_is_no_split_leaves_it_to_the_folders(tmp_path: Path) -> None:
    image(tmp_path / "val" / "a.jpg")
    node = f'<image name="val/a.jpg" width="40" height="30" subset="default">{BOX}</image>'
    text(tmp_path / "annotations.xml", f"<annotations>{node}</annotations>")
    assert roles(read(tmp_path)) == ["val"]


def test_labels_of_a_split_mean_the_images_of_that_split(tmp_path: Path) -> None:
    for part in PAIR:
        coco(tmp_path / "annotations" / f"instances_{part}.json", "a.jpg")
        image(tmp_path / "images" / part / "a.jpg")
    image(tmp_path / "images" / "a.jpg")
    assert found(tmp_path).dataset["val_images"] == "images/val"


def test_cvat_s_backslash_is_a_separator(tmp_path: Path) -> None:
    image(tmp_path / "images" / "train" / "a.jpg")
    cvat(tmp_path / "annotations.xml", BOX, name="train\\a.jpg")
    assert read(tmp_path)["images"][0]["file_name"] == "images/train/a.jpg"


def listed_voc(folder: Path, stem: str, *lists: str) -> None:
    image(folder / "images" / f"{stem}.jpg")
    text(folder / "xml" / f"{stem}.xml", VOC.format(name="cat"))
    for name in lists:
        with (folder / f"{name}.txt").open("a") as file:
            file.write(f"{stem} 1\n")


def test_voc_s_trainval_and_test_are_a_split(tmp_path: Path) -> None:
    listed_voc(tmp_path, "a", "trainval")
    listed_voc(tmp_path, "b", "test")
    layout = found(tmp_path)
    assert (layout.dataset["train"], layout.dataset["val"]) == (["trainval"], ["test"])
    assert layout.told == ("there is no validation split: the test images take its place",)


def test_labelled_images_in_no_list_of_voc_are_counted(tmp_path: Path) -> None:
    for stem, name in (("a a", "train"), ("b", "val")):
        listed_voc(tmp_path, stem, name)
    assert found(tmp_path).told == ()
    for stem in "cd":
        listed_voc(tmp_path, stem)
    assert found(tmp_path).told == ("labelled images in neither list, left out: 2",)


def test_yolo_s_test_is_measured_on_where_there_is_no_val(tmp_path: Path) -> None:
    yolo(tmp_path, "train: images/train\ntest: images/test\n", "train/a", "test/b")
    assert found(tmp_path).dataset["val"] == ["images/test"]
    # a path of another machine, as it is passed over where a data.yaml names both
    yolo(tmp_path, "path: ../datasets/x\ntrain: images/train\ntest: images/test\n")
    layout = found(tmp_path)
    assert layout.dataset["val"] == ["images/test"]
    assert "test images take its place" in layout.told[0]


def test_a_mask_of_the_same_stem_is_not_the_photograph(tmp_path: Path) -> None:
    one_labelme(tmp_path / "labelme", name="C:\\me\\a.jpg")
    image(tmp_path / "labelme" / "a.png")
    assert read(tmp_path / "labelme")["images"][0]["file_name"] == "a.jpg"
    image(tmp_path / "voc" / "a.jpg")
    image(tmp_path / "voc" / "a.png")
    named = VOC.replace("<annotation>", "<annotation><filename>a.jpg</filename>")
    text(tmp_path / "voc" / "a.xml", named.format(name="cat"))
    assert read(tmp_path / "voc")["images"][0]["file_name"] == "a.jpg"
    text(tmp_path / "voc" / "a.xml", VOC.format(name="cat"))
    with pytest.raises(
        UsageError, match=r"one of several(.|\n)*a.jpg, a.png(.|\n)*name the image in the labels"
    ):
        read(tmp_path / "voc")


def test_folders_of_labels_mirror_those_of_images(tmp_path: Path) -> None:
    for camera in ("cam0", "cam1"):
        image(tmp_path / "images" / camera / "0.jpg")
        text(tmp_path / "annotations" / camera / "0.xml", VOC.format(name="cat"))
    assert [one["file_name"] for one in read(tmp_path)["images"]] == [
        "images/cam0/0.jpg",
        "images/cam1/0.jpg",
    ]
