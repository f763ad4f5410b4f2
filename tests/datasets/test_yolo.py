from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdlab.cli import app
from kdlab.datasets import _yolo_labels, coco, yolo
from kdlab.datasets.base import DatasetFiles
from kdlab.errors import Fault, MachineError, UsageError
from kdlab.inspection import across
from kdlab.inspection.examine import examine

CAT = "0 0.5 0.5 0.2 0.4"
LARGE = "0 0.5 0.5 0.6 0.6"
YAML = "names: [cat, dog]\ntrain: images/train\nval: images/val\n"


def picture(path: Path, size: tuple[int, int] = (100, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # one colour for each name, so that no two splits share an image
    colour = tuple(path.name.encode().ljust(3)[:3])
    Image.new("RGB", size, colour).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lay(root: Path, data: str = YAML, **files: str | None) -> Path:
    """A folder with data.yaml, and for each of "train/a" an image of 100 x 80 px; None for no label file."""
    write(root / "data.yaml", data)
    for name, text in files.items():
        picture(root / "images" / f"{name}.png")
        if text is not None:
            write(root / "labels" / f"{name}.txt", text)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, a cat of 20 x 32 px in each."""
    return lay(tmp_path / "set", **{"train/a": CAT, "val/b": CAT})


def prepared(root: Path, **options: Any) -> DatasetFiles:
    return yolo.prepare(root=str(root), **options)


def faults(root: Path, **options: Any) -> list[Fault]:
    with pytest.raises(UsageError) as caught:
        prepared(root, **options)
    return list(caught.value.faults)


def labels(files: DatasetFiles, part: str = "train") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(getattr(files, part).labels.read_text())
    return content


def boxes(files: DatasetFiles, part: str = "train") -> list[Any]:
    return [entry["bbox"] for entry in labels(files, part)["annotations"]]


def names(files: DatasetFiles, part: str = "train") -> list[str]:
    return [image["file_name"] for image in labels(files, part)["images"]]


class TestObjects:
    def test_a_box_in_pixels_has_its_corner_in_the_place_of_its_centre(self, root: Path) -> None:
        (box,) = labels(prepared(root))["annotations"]
        assert (box["bbox"], box["area"], box["iscrowd"], box["category_id"]) == ([40, 24, 20, 32], 640, 0, 1)

    @pytest.mark.parametrize("line", ["1 0.1 0.2 0.5 0.4 0.3 0.9", "1 .1 .9 .5 .2 .5 .9 .1 .2"])
    def test_a_polygon_becomes_its_bounding_box(self, line: str, root: Path) -> None:
        write(root / "labels/train/a.txt", f"{CAT}\n{line}\n")
        plain, polygon = labels(prepared(root))["annotations"]
        assert (polygon["bbox"], polygon["category_id"], polygon["polygon"]) == ([10, 16, 40, 56], 2, 1)
        assert "polygon" not in plain

    def test_objects_know_their_line_and_images_their_label_file(self, root: Path) -> None:
        write(root / "labels/train/a.txt", f"\ufeff\n{CAT}\r\n\n1.0 5e-1 .5 .5 +.5\n")
        content = labels(prepared(root))
        assert [entry["line"] for entry in content["annotations"]] == [2, 4]
        assert content["images"] == [
            {
                "id": 1,
                "file_name": "images/train/a.png",
                "txt": "labels/train/a.txt",
                "width": 100,
                "height": 80,
            }
        ]

    @pytest.mark.parametrize("text", [None, "", "\n \n"])
    def test_an_image_without_labels_has_no_objects(self, text: str | None, tmp_path: Path) -> None:
        files = prepared(lay(tmp_path / "set", **{"train/a": CAT, "train/empty": text, "val/b": CAT}))
        assert names(files) == ["images/train/a.png", "images/train/empty.png"]
        assert [entry["image_id"] for entry in labels(files)["annotations"]] == [1]

    @pytest.mark.parametrize(
        ("line", "box"),
        [
            # numbers beyond 0 to 1, and a border beyond them, by rounding
            ("0 0.5 0.5 1.0008 1.0004", [0, 0, 100, 80]),
            ("0 0.0996 0.9004 0.2 0.2", [0, 64.032, 19.96, 15.968]),
            ("0 -0.0005 0.5 0.2 -0.0001", [-10.05, 40, 20, 0]),
            ("0 -0.0005 0 1.0009 0 1 1", [0, 0, 100, 80]),
            # a box that reaches out stays as it is, and one without area too: the doctor tells of both
            ("0 0.95 0.5 0.2 0.4", [85, 24, 20, 32]),
            ("0 0.5 0.5 0 0.4", [50, 24, 0, 32]),
        ],
    )
    def test_what_rounding_moved_out_is_moved_back(self, line: str, box: list[float], root: Path) -> None:
        write(root / "labels/train/a.txt", f"{CAT}\n{line}\n")
        assert boxes(prepared(root))[1] == pytest.approx(box)

    def test_boxes_are_fractions_of_the_image_as_it_is_shown(self, root: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        (root / "images/train/a.png").unlink()
        Image.new("RGB", (60, 40)).save(root / "images/train/a.jpg", exif=turned)
        files = prepared(root)
        assert labels(files)["images"][0]["width"] == 40
        assert boxes(files) == [[16, 18, 8, 24]]


def test_corners_in_the_place_of_centre_and_size_are_told(root: Path) -> None:
    corners = [(x / 10, y / 10, x / 10 + 0.3, y / 10 + 0.2) for x in range(7) for y in range(0, 8, 2)]
    write(root / "labels" / "train" / "a.txt", "".join("0 {} {} {} {}\n".format(*box) for box in corners))
    (fault,) = faults(root)
    assert "likely class x1 y1 x2 y2" in fault.what
    # the same boxes as centre and size, and objects that fill their images
    meant = [((x + right) / 2, (y + low) / 2, right - x, low - y) for x, y, right, low in corners]
    for lines in (meant, [(0.5, 0.5, 1, 1)] * 9, [(0.4, 0.4, 0.8, 0.8)] * 9):
        text = "".join("0 {} {} {} {}\n".format(*box) for box in lines)
        write(root / "labels" / "train" / "a.txt", text)
        assert len(boxes(prepared(root))) == len(lines)


def test_the_same_set_as_coco_has_the_same_labels(tmp_path: Path) -> None:
    lines = {"train/a": f"{CAT}\n1 0.25 0.125 0.5 0.25\n", "train/e": "", "val/b": "1 0.5 0.5 0.02 0.0125\n"}
    root = lay(tmp_path / "set", **lines)
    objects = {"a": [(1, [40, 24, 20, 32]), (2, [0, 0, 50, 20])], "e": [], "b": [(2, [49, 39.5, 2, 1])]}
    for part, stems in (("train", "ae"), ("val", "b")):
        found: dict[str, Any] = {"images": [], "annotations": []}
        found["categories"] = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
        for number, stem in enumerate(stems):
            found["images"].append({"id": number, "file_name": f"{stem}.png", "width": 100, "height": 80})
            for category, box in objects[stem]:
                entry = {"id": len(found["annotations"]), "image_id": number, "bbox": box}
                found["annotations"].append({**entry, "category_id": {1: 7, 2: 9}[category]})
        write(root / f"{part}.json", json.dumps(found))
    options = {f"{part}_images": f"images/{part}" for part in ("train", "val")}
    options |= {f"{part}_labels": f"{part}.json" for part in ("train", "val")}
    mine, theirs = prepared(root), coco.prepare(root=str(root), **options)
    assert mine.classes == theirs.classes
    assert mine.metrics == theirs.metrics

    def content(file: Path) -> list[Any]:
        read = coco.load_labels(file)
        classes = {entry["id"]: entry["name"] for entry in read["categories"]}
        images = {image["id"]: image for image in read["images"]}
        shown: dict[str, list[Any]] = {Path(one["file_name"]).stem: [] for one in read["images"]}
        for entry in read["annotations"]:
            image = images[entry["image_id"]]
            values = [entry[key] for key in ("bbox", "area", "iscrowd")]
            shown[Path(image["file_name"]).stem].append(
                [*values, classes[entry["category_id"]], image["width"], image["height"]]
            )
        return [*shown.items()]

    for part in ("train", "val"):
        assert content(getattr(mine, part).labels) == content(getattr(theirs, part).labels)


class TestLayouts:
    @pytest.mark.parametrize(
        "written", ["../train/images", "train/images", "./train/images", r"..\train\images"]
    )
    def test_exports_of_roboflow_are_read_wherever_they_are_unpacked(
        self, written: str, tmp_path: Path
    ) -> None:
        root = tmp_path / "export"
        write(root / "data.yaml", f"names: [cat]\nnc: 1\ntrain: {written}\nval: ../valid/images\n")
        for split in ("train", "valid"):
            picture(root / split / "images/a.jpg")
            write(root / split / "labels/a.txt", CAT)
        files = prepared(root)
        assert (names(files), names(files, "val")) == (["train/images/a.jpg"], ["valid/images/a.jpg"])
        assert boxes(files) == boxes(files, "val") == [[40, 24, 20, 32]]

    def test_a_folder_above_counts_where_it_is_there(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "set", **{"train/a": CAT, "val/b": CAT})
        write(root / "yolo/data.yaml", YAML.replace("images/", "../images/"))
        assert names(prepared(root / "yolo")) == ["../images/train/a.png"]

    @pytest.mark.parametrize("path", ["set", "../set", ".", "C:\\Users\\me\\set", "/content/set", "", "null"])
    def test_a_path_that_leads_nowhere_is_the_root(self, path: str, root: Path) -> None:
        write(root / "data.yaml", f"path: {path}\n{YAML}")
        assert names(prepared(root)) == ["images/train/a.png"]

    def test_a_path_that_is_there_is_followed(self, root: Path, tmp_path: Path) -> None:
        write(tmp_path / "configs/mine.yaml", f"path: ../set\n{YAML}")
        files = prepared(tmp_path / "configs", data="mine.yaml")
        assert names(files) == ["../set/images/train/a.png"]
        assert (files.train.images / names(files)[0]).is_file()

    def test_the_last_images_of_a_path_becomes_labels(self, tmp_path: Path) -> None:
        root = tmp_path / "images"
        write(root / "data.yaml", "names: [cat]\ntrain: images/a\nval: images/b\n")
        for split in "ab":
            picture(root / "images" / split / "deep.er/x.y.png")
            write(root / "labels" / split / "deep.er/x.y.txt", CAT)
        files = prepared(root)
        assert labels(files)["images"][0]["txt"] == "labels/a/deep.er/x.y.txt"
        assert len(boxes(files)) == 1

    def test_without_a_folder_images_labels_lie_next_to_the_images(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        write(root / "data.yaml", "names: [cat]\ntrain: a\nval: b\n")
        for split in "ab":
            picture(root / split / "x.png")
            write(root / split / "x.txt", CAT)
        assert labels(prepared(root))["images"][0]["txt"] == "a/x.txt"

    def test_several_folders_are_one_split(self, tmp_path: Path) -> None:
        data = "names: [cat]\ntrain: [images/c, images/a]\nval:\n  - images/b\n"
        root = lay(tmp_path / "set", data, **{"a/1": CAT, "b/2": CAT, "c/3": CAT})
        assert names(prepared(root)) == ["images/c/3.png", "images/a/1.png"]

    @pytest.mark.parametrize(
        "line",
        [
            "images/train/a.png",
            "./images/train/a.png",
            r"images\train\a.png",
            "\ufeffimages/train/a.png\r\n\n",
        ],
    )
    def test_a_list_names_images_below_the_root(self, line: str, root: Path) -> None:
        write(root / "train.txt", line)
        picture(root / "images/train/unlisted.png")
        assert names(prepared(root, train=("train.txt",))) == ["images/train/a.png"]

    def test_a_list_may_name_images_from_where_it_lies_or_by_whole_paths(self, root: Path) -> None:
        write(root / "lists/train.txt", f"./../images/train/a.png\n{root}/images/val/b.png\n")
        write(root / "data.yaml", YAML.replace("images/train", "lists/train.txt"))
        assert names(prepared(root)) == ["images/train/a.png", "images/val/b.png"]

    def test_options_take_the_place_of_what_the_yaml_names(self, root: Path) -> None:
        write(root / "data.yaml", "path: elsewhere\nnames: [cat]\n")
        files = prepared(root, train=("images/val",), val=("images/train",))
        assert (names(files), names(files, "val")) == (["images/val/b.png"], ["images/train/a.png"])

    def test_the_only_yaml_file_is_taken_where_there_is_no_data_yaml(self, root: Path) -> None:
        (root / "data.yaml").rename(root / "coco8.yml")
        write(root / ".hidden.yaml", "x: 1")
        assert names(prepared(root)) == ["images/train/a.png"]
        write(root / "other.yaml", YAML)
        (fault,) = faults(root)
        assert (fault.what, fault.known) == (
            "there is no data.yaml, and several other YAML files",
            "coco8.yml, other.yaml",
        )

    def test_hidden_files_are_no_images(self, root: Path) -> None:
        (root / "images/train/._a.png").write_bytes(b"of a file manager")
        assert names(prepared(root)) == ["images/train/a.png"]

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_umlauts_are_found_in_either_form(self, form: str, tmp_path: Path) -> None:
        name = unicodedata.normalize(form, "train/Käse")
        files = prepared(lay(tmp_path / "set", **{name: CAT, "val/b": CAT}))
        assert names(files) == [f"images/{name}.png"]
        assert len(boxes(files)) == 1

    def test_links_to_images_keep_the_labels_of_their_own_folder(self, root: Path, tmp_path: Path) -> None:
        (root / "images/train/a.png").rename(tmp_path / "a.png")
        (root / "images/train/a.png").symlink_to(tmp_path / "a.png")
        assert boxes(prepared(root)) == [[40, 24, 20, 32]]


class TestNames:
    @pytest.mark.parametrize(
        "written",
        ["[dog, cat]", "{0: dog, 1: cat}", "{1: cat, 0: dog}", "\n- dog\n- cat", "\n  0: dog\n  1: cat"],
    )
    def test_names_are_a_list_or_have_their_numbers(self, written: str, root: Path) -> None:
        write(root / "data.yaml", YAML.replace("[cat, dog]", written))
        files = prepared(root)
        assert files.classes == ("dog", "cat")
        assert labels(files)["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]

    def test_names_that_yaml_takes_for_values_stay_names(self, root: Path) -> None:
        write(root / "data.yaml", YAML.replace("cat, dog", "no, 010, 2024-01-01, 1e3, null"))
        assert prepared(root).classes == ("no", "010", "2024-01-01", "1e3", "null")

    def test_what_is_none_of_its_business_is_passed_over(self, root: Path) -> None:
        more = "nc: 2\ndownload: https://x.y/set.zip\nroboflow: {license: MIT}\ntest: https://x.y/z\n"
        write(root / "data.yaml", YAML + more)
        assert prepared(root).classes == ("cat", "dog")

    @pytest.mark.parametrize(
        ("old", "new", "what", "line"),
        [
            ("names: [cat, dog]\n", "", "this file names no classes", ""),
            ("[cat, dog]", "", "this file names no classes", ":1"),
            ("[cat, dog]", "{}", "this file names no classes", ":1"),
            ("[cat, dog]", "coco.names", "names is neither a list nor numbers with their names", ":1"),
            ("[cat, dog]", "{0: cat, 2: dog}", "the numbers of names are not 0, 1, 2 and so on", ":1"),
            ("[cat, dog]", "{0: cat, 0: dog}", "the numbers of names are not 0, 1, 2 and so on", ":1"),
            ("[cat, dog]", "{1: cat, 2: dog}", "the numbers of names are not 0, 1, 2 and so on", ":1"),
            ("[cat, dog]", "{[0]: cat, 1: dog}", "the numbers of names are not 0, 1, 2 and so on", ":1"),
            ("[cat, dog]", "[cat, [dog]]", "names that are not text: 1", ""),
            ("[cat, dog]", "[cat, ' ']", "names that are blank: 1", ""),
            ("[cat, dog]", "[cat, cat]", "names with that of another: 1", ""),
            (
                "[cat, dog]",
                r'["c\nat", dog]',
                "names whose text holds control characters or surrogates: 1",
                "",
            ),
            ("[cat, dog]", "[cat, dog]\nnc: 3", "nc differs from the number of names", ":2"),
            ("[cat, dog]", "[cat, dog]\nnc: two", "nc differs from the number of names", ":2"),
            ("[cat, dog]", "&names [*names]", "names that are not text: 1", ""),
            ("[cat, dog]", "[cat]\nnames: [dog]", "the key names is given twice", ":2"),
            ("[cat, dog]", "[cat, dog]\nkpt_shape: [17, 3]", "labels of poses cannot be read", ":2"),
            ("train: images/train\n", "", "this file names no train", ""),
            ("val: images/val", "", "this file names no val", ""),
            ("images/val", "", "this file names no val", ""),
            ("images/val", "[]", "this file names no val", ""),
            ("images/val", "{a: b}", "val is no path and no list of paths", ":3"),
        ],
    )
    def test_what_is_wrong_in_the_yaml_is_told_with_its_line(
        self, old: str, new: str, what: str, line: str, root: Path
    ) -> None:
        write(root / "data.yaml", YAML.replace(old, new))
        (fault,) = faults(root)
        assert (fault.what, fault.where) == (what, f"{root}/data.yaml{line}")
        assert fault.fix

    def test_all_of_it_is_told_at_once(self, root: Path) -> None:
        write(root / "data.yaml", "nc: 3\nnames: [cat, cat, '']\n")
        found = {fault.what: fault.got for fault in faults(root)}
        assert found == {
            "names with that of another: 1": "line 2: class 1 cat, as in line 2",
            "names that are blank: 1": "line 2: class 2",
            "this file names no train": "",
            "this file names no val": "",
        }

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            (b"names: [cat\n", "this file is not YAML: expected"),
            (b"a: b: c", "this file is not YAML: mapping values"),
            (b'train: "..\\images"', "this file is not YAML: found unknown escape character"),
            (b"names: " + 5000 * b"[", "this file is not YAML: it is nested too deeply"),
            (b"\x00", "this file is not YAML: unacceptable character #x0000"),
            (b"names: [K\xe4se]", "this file is not UTF-8 text"),
            (b"- cat", "this file is no data.yaml: it holds no keys and values"),
            (b"", "this file is no data.yaml: it holds no keys and values"),
        ],
    )
    def test_what_is_no_data_yaml_is_refused(self, text: bytes, what: str, root: Path) -> None:
        (root / "data.yaml").write_bytes(text)
        (fault,) = faults(root)
        assert fault.what.startswith(what)
        assert fault.where.startswith(f"{root}/data.yaml")

    def test_no_object_is_made_of_a_tag(self, root: Path, tmp_path: Path) -> None:
        tag = f"!!python/object/apply:os.mkdir [{tmp_path}/made]"
        write(root / "data.yaml", f"{YAML}extra: {tag}\n")
        prepared(root)
        assert not (tmp_path / "made").exists()


class TestPlaces:
    def test_all_that_is_missing_is_told_at_once(self, root: Path) -> None:
        shutil.rmtree(root / "images")
        assert [(fault.what, fault.where) for fault in faults(root)] == [
            ("dataset.train is not a folder", f"{root}/images/train"),
            ("dataset.val is not a folder", f"{root}/images/val"),
        ]

    def test_a_missing_root_and_yaml_are_told(self, root: Path) -> None:
        (root / "data.yaml").unlink()
        assert [fault.what for fault in faults(root)] == ["dataset.data is not a file"]
        assert [fault.what for fault in faults(root / "x")] == ["dataset.root is not a folder"]

    @pytest.mark.parametrize("where", ["yaml", "option"])
    def test_an_address_is_refused_and_never_fetched(self, where: str, root: Path) -> None:
        address = "https://me:secret@x.y/train"
        if where == "yaml":
            write(root / "data.yaml", YAML.replace("images/train", address))
        (fault,) = faults(root, **({} if where == "yaml" else {"train": (address,)}))
        assert (fault.what, fault.got) == ("dataset.train is an address", "https://...")
        assert "kdlab downloads nothing" in fault.fix

    def test_a_path_that_yaml_read_as_an_escape_is_told(self, root: Path) -> None:
        write(root / "data.yaml", YAML.replace("images/train", r'"..\train"'))
        (fault,) = faults(root)
        assert (fault.what, fault.got) == (
            "dataset.train holds control characters or surrogates",
            r"'..\train'",
        )
        assert "write / in paths" in fault.fix

    def test_a_folder_without_images_is_refused(self, root: Path) -> None:
        (root / "images/val/b.png").unlink()
        (fault,) = faults(root)
        assert (fault.what, fault.where) == ("there is no image below this folder", f"{root}/images/val")

    def test_a_file_that_is_no_list_is_refused(self, root: Path) -> None:
        assert [(f.what, f.got) for f in faults(root, val=("data.yaml",))] == [
            ("dataset.val is not a folder", "a file")
        ]

    @pytest.mark.parametrize(
        ("line", "got", "fix"),
        [
            ("images/train/x.png", "line 2: 'images/train/x.png'", "write paths relative to dataset.root"),
            ("images/train/A.PNG", "line 2: 'images/train/A.PNG'", "there is 'images/train/a.png' (upper or"),
            ("https://me:secret@x.y/a.png", "line 2: 'https://***@x.y/a.png'", "write paths relative"),
            ("images/train/\x1b[31m.png", r"line 2: 'images/train/\x1b[31m.png'", "write paths relative"),
            ("a" * 5000, "line 2: 'aaa", "write paths relative"),
        ],
    )
    def test_listed_images_that_are_not_there_are_told_with_their_line(
        self, line: str, got: str, fix: str, root: Path
    ) -> None:
        write(root / "train.txt", f"images/train/a.png\n{line}\nimages/y.png\n")
        (fault,) = faults(root, train=("train.txt",))
        assert (fault.what, fault.where) == ("listed images that are not there: 2", f"{root}/train.txt")
        assert fault.got.startswith(got)
        assert fault.got.endswith(", line 3: 'images/y.png'")
        assert fault.fix.startswith(fix)

    def test_an_umlaut_in_the_other_form_is_named(self, root: Path) -> None:
        picture(root / "images/train" / unicodedata.normalize("NFD", "ä.png"))
        write(root / "train.txt", unicodedata.normalize("NFC", "images/train/ä.png"))
        (fault,) = faults(root, train=("train.txt",))
        assert "another Unicode form (NFC, NFD)): change the list" in fault.fix

    def test_an_empty_list_is_refused(self, root: Path) -> None:
        write(root / "train.txt", "\n")
        (fault,) = faults(root, train=("train.txt",))
        assert (fault.what, fault.where) == ("this list is empty", f"{root}/train.txt")

    @pytest.mark.parametrize("train", [("images/train", "images"), ("twice.txt",)])
    def test_an_image_that_is_named_twice_is_refused(self, train: tuple[str, ...], root: Path) -> None:
        write(root / "twice.txt", "images/train/a.png\n./images/train/a.png\n")
        (fault,) = faults(root, train=train)
        assert (fault.what, fault.got) == (
            "images named twice in dataset.train: 1",
            "'images/train/a.png'",
        )

    def test_a_name_with_a_line_break_is_refused(self, root: Path) -> None:
        picture(root / "images/train/x\ny.png")
        (fault,) = faults(root)
        assert (fault.what, fault.got) == (
            "images whose name holds control characters or surrogates: 1",
            r"'images/train/x\ny.png'",
        )

    def test_images_of_one_stem_are_refused(self, root: Path) -> None:
        picture(root / "images/train/a.jpg")
        (fault,) = faults(root)
        assert fault.what == "images that differ in their ending alone, and so share a label file: 1"
        assert fault.got == "images/train/a.jpg and images/train/a.png"

    def test_a_split_without_any_label_file_is_refused(self, root: Path) -> None:
        (root / "labels/train").rename(root / "labels/training")
        (fault,) = faults(root)
        assert (fault.what, fault.where, fault.got) == (
            "no image of dataset.train has a label file",
            f"{root}/labels/train",
            "there is no 'a.txt'",
        )

    @pytest.mark.parametrize(("image", "label"), [("a", "A"), ("K\u00e4se", "Ka\u0308se")])
    def test_label_files_of_nearly_the_name_are_not_passed_over(
        self, image: str, label: str, root: Path
    ) -> None:
        picture(root / f"images/val/{image}.png")
        write(root / f"labels/val/{label}.txt", CAT)
        (fault,) = faults(root)
        assert fault.what == "label files that differ from their image in case or Unicode form (NFC, NFD): 1"
        assert fault.got == f"{label + '.txt'!a} of {f'images/val/{image}.png'!a}"

    def test_images_that_differ_in_case_have_labels_of_their_own(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "set", **{"train/a": CAT, "train/A": None, "val/b": CAT})
        assert [entry["image_id"] for entry in labels(prepared(root))["annotations"]] == [2]

    def test_images_whose_size_cannot_be_read_are_told_at_once(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "set", **{f"train/{name}": CAT for name in "abc"}, **{"val/b": CAT})
        (root / "images/train/a.png").write_bytes(b"")
        (root / "images/train/b.png").write_bytes(b"text")
        (root / "images/train/c.png").unlink()
        (root / "images/train/c.png").symlink_to("/dev/null")
        (fault,) = faults(root)
        assert (fault.what, fault.got) == (
            "images whose size cannot be read: 3",
            "images/train/a.png: not an image, images/train/b.png: not an image, "
            "images/train/c.png: no regular file",
        )

    @pytest.mark.parametrize("target", ["gone.txt", "/dev/null"])
    def test_a_label_file_that_cannot_be_read_is_told(self, target: str, root: Path) -> None:
        (root / "labels/train/a.txt").unlink()
        (root / "labels/train/a.txt").symlink_to(target)
        with pytest.raises(MachineError, match="cannot be read") as caught:
            prepared(root)
        assert caught.value.faults[0].where == f"{root}/labels/train/a.txt"


PIXELS = "lines whose numbers look like pixels"
OUTSIDE = "lines with a number outside 0 to 1"
TEXT = "lines with text among the numbers"
COUNT = "lines that are neither a box (class cx cy w h) nor a polygon (class x1 y1 x2 y2 x3 y3 ...)"
NO_CLASS = "lines whose class is no whole number from 0 on"


class TestLines:
    @pytest.mark.parametrize(
        ("line", "what", "fix"),
        [
            ("0.5 0.5 0.2 0.4", COUNT, "write the number of the class"),
            ("0", COUNT, "write five numbers"),
            ("0 0.5 0.5 0.2 0.4 0.93", COUNT, "is the last one a confidence?"),
            ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", COUNT, "write five numbers"),
            ("cat 0.5 0.5 0.2 0.4", TEXT, "write numbers alone"),
            ("0,0.5,0.5,0.2,0.4", TEXT, "write numbers alone"),
            ("0 0,5 0,5 0,2 0,4", TEXT, "write numbers alone"),
            ("1_0 0.5 0.5 0.2 0.4", TEXT, "write numbers alone"),
            ("0 nan 0.5 0.2 0.4", "lines with nan, inf or a number that is too large", "mend"),
            ("0 0.5 0.5 -inf 0.4", "lines with nan, inf or a number that is too large", "mend"),
            ("0 0.5 0.5 0.2 1e999", "lines with nan, inf or a number that is too large", "mend"),
            ("2 0.5 0.5 0.2 0.4", "lines whose class is not among the names", "the last is 1: add its name"),
            ("-1 0.5 0.5 0.2 0.4", NO_CLASS, "counted from 0"),
            ("0.5 0.5 0.5 0.2 0.4", NO_CLASS, "counted from 0"),
            ("0 50 40 20 32", PIXELS, "divide x and width by the width"),
            ("0 1.2 0.5 0.2 0.4", OUTSIDE, "write fractions"),
            ("0 0.5 0.5 0.2 -0.4", OUTSIDE, "write fractions"),
            ("0 0.5 0.5 1.0011 0.4", OUTSIDE, "write fractions"),
            ("0 0.1 0.1 0.2 0.2 0.3 -0.3", OUTSIDE, "write fractions"),
            ("0 10 10 20 20 30 30", PIXELS, "divide x and width by the width"),
        ],
    )
    def test_a_wrong_line_is_told_with_its_place(self, line: str, what: str, fix: str, root: Path) -> None:
        write(root / "labels/train/a.txt", f"{CAT}\n\n{line}\n")
        (fault,) = faults(root)
        assert (fault.what, fault.got) == (f"{what}: 1", f"labels/train/a.txt:3: {line}")
        assert fix in fault.fix

    def test_all_kinds_are_told_at_once_with_their_number(self, tmp_path: Path) -> None:
        bad = {f"train/{n}": "0 50 40 20 32\n0 x 0.5 0.5 0.5\n" for n in range(4)}
        root = lay(tmp_path / "set", **bad, **{"val/b": "9 0.5 0.5 0.5 0.5\n"})
        found = {fault.what: fault.got for fault in faults(root)}
        assert [*found] == [f"{PIXELS}: 4", f"{TEXT}: 4", "lines whose class is not among the names: 1"]
        assert found[f"{PIXELS}: 4"].startswith(
            "labels/train/0.txt:1: 0 50 40 20 32, labels/train/1.txt:1: 0 50"
        )
        assert found[f"{PIXELS}: 4"].endswith(" and 1 more")

    def test_a_file_of_both_splits_is_told_once(self, root: Path) -> None:
        write(root / "labels/train/a.txt", "0 50 40 20 32\n")
        (fault,) = faults(root, val=("images/train",))
        assert fault.what == f"{PIXELS}: 1"

    def test_what_is_no_text_is_told(self, root: Path) -> None:
        (root / "labels/train/a.txt").write_bytes(b"\x89PNG\x00\xff\n")
        (fault,) = faults(root)
        assert fault.what == f"{TEXT}: 1"
        assert "\x00" not in str(fault)

    def test_boxes_that_were_divided_twice_are_told_with_their_lines(self, root: Path) -> None:
        write(root / "labels/train/a.txt", "0 0.005 0.005 0.005 0.005\n")
        (fault,) = faults(root)
        assert fault.what == "annotations whose bbox is a fraction of the image, not in pixels: 1"
        assert fault.got.startswith("labels/train/a.txt:1: [")

    def test_a_split_of_which_no_object_is_left_is_refused(self, root: Path) -> None:
        write(root / "labels/val/b.txt", "0 0.5 0.5 0 0\n")
        (fault,) = faults(root)
        assert fault.where == f"{root}  dataset.val"
        assert fault.got == "the box is smaller than a pixel: 1 (labels/val/b.txt:1)"


class TestCache:
    def test_a_second_call_converts_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = prepared(root)
        monkeypatch.setattr(yolo, "converted", None)
        assert prepared(root) == first

    def test_a_changed_label_of_equal_size_and_time_is_converted_anew(self, root: Path) -> None:
        before, path = prepared(root), root / "labels/train/a.txt"
        times = path.stat()
        write(path, CAT.replace("0.2", "0.3"))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        after = prepared(root)
        assert after.fingerprint != before.fingerprint
        assert boxes(after) == [[35, 24, 30, 32]]

    def test_another_name_in_the_yaml_is_converted_anew(self, root: Path) -> None:
        before = prepared(root)
        write(root / "data.yaml", YAML.replace("dog", "eel"))
        after = prepared(root)
        assert after.fingerprint != before.fingerprint
        assert labels(after)["categories"][1]["name"] == "eel"

    def test_an_image_of_another_size_is_converted_anew(self, root: Path) -> None:
        before = prepared(root)
        picture(root / "images/val/b.png", (200, 160))
        after = prepared(root)
        assert after.fingerprint != before.fingerprint
        assert boxes(after, "val") == [[80, 48, 40, 64]]

    def test_a_label_file_that_became_empty_or_went_away_is_seen(self, tmp_path: Path) -> None:
        root = lay(tmp_path / "set", **{"train/a": CAT, "train/c": CAT, "val/b": CAT})
        assert len(boxes(prepared(root))) == 2
        (root / "labels/train/c.txt").unlink()
        assert len(boxes(prepared(root))) == 1

    def test_the_fingerprint_does_not_depend_on_the_place(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root, tmp_path / "moved")
        assert prepared(root).fingerprint == prepared(tmp_path / "moved").fingerprint

    def test_what_an_earlier_kdlab_converted_and_this_one_refuses_is_refused(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(root / "labels/val/b.txt", "0 0.5 0.5 0 0\n")
        with monkeypatch.context() as patch:
            patch.setattr(yolo, "_CHECKS", 0)
            patch.setattr(_yolo_labels, "unmeant", lambda *_: [])
            prepared(root)
        assert len(faults(root)) == 1

    def test_converted_labels_that_were_edited_are_refused(self, root: Path) -> None:
        path = prepared(root).train.labels
        path.write_text(path.read_text().replace("640", "641"))
        with pytest.raises(MachineError, match="changed or removed"):
            prepared(root)


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay(tmp_path / "set", **{f"train/{n}": CAT for n in range(50)}, **{"val/b": CAT})
    prepared(root)
    scans: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(str(path)) or scandir(path))
    monkeypatch.setattr(os.path, "relpath", None)
    prepared(root)
    folders = [f"{root}/{kind}/{part}" for kind in ("images", "labels") for part in ("train", "val")]
    assert sorted(scan for scan in scans if scan.startswith(str(root))) == folders


class TestDoctor:
    @pytest.fixture(autouse=True)
    def few_suffice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(across, "FEW_IMAGES", 0)
        monkeypatch.setattr(across, "FEW_OBJECTS", 0)

    def told(self, root: Path, **options: Any) -> dict[str, tuple[str, list[str]]]:
        """Severity and places of each defect."""
        found = examine(prepared(root, **options)).defects
        return {
            one.kind: (one.severity, [f"{place.split}: {place}" for place in one.places]) for one in found
        }

    @pytest.fixture
    def clean(self, tmp_path: Path) -> Path:
        return lay(tmp_path / "set", YAML.replace(", dog", ""), **{"train/a": LARGE, "val/b": LARGE})

    def test_a_clean_set_has_no_defect(self, clean: Path) -> None:
        write(clean / "labels/train/classes.txt", "cat\n")
        assert self.told(clean) == {}

    def test_polygons_are_counted(self, clean: Path) -> None:
        write(clean / "labels/train/a.txt", f"0 .1 .1 .9 .1 .9 .9\n{LARGE}\n0 .1 .1 .6 .1 .6 .9\n")
        assert self.told(clean) == {"polygons": ("note", ["train: "])}
        (defect,) = examine(prepared(clean)).defects
        assert defect.count == 2

    def test_images_without_labels_and_labels_without_image_are_told(self, clean: Path) -> None:
        picture(clean / "images/train/c.png")
        picture(clean / "images/train/e.png")
        write(clean / "labels/train/e.txt", "")
        write(clean / "labels/val/z.txt", CAT)
        Image.new("RGB", (9, 9)).save(clean / "images/val/y.gif")
        write(clean / "labels/val/y.txt", CAT)
        told = self.told(clean)
        assert told["no-objects"] == ("note", ["train: c.png", "train: e.png"])
        assert told["txt-alone"] == ("warn", ["val: y.txt", "val: z.txt"])

    def test_a_val_that_is_train_is_a_leak(self, clean: Path) -> None:
        assert self.told(clean, val=("images/train",))["leak"] == ("warn", ["val: a.png = train a.png"])

    def test_names_that_differ_in_case_alone_are_told(self, root: Path) -> None:
        write(root / "data.yaml", YAML.replace("dog", "Cat"))
        assert self.told(root)["class-spelling"] == ("warn", [": cat = Cat"])

    def test_a_recipe_of_another_form_can_be_pointed_at_it(
        self, clean: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        write(clean / "labels/train/a.txt", "0 .1 .1 .9 .1 .9 .9\n")
        change = ["--set", "dataset.name=yolo", "--set", f"dataset.root={clean}"]
        assert app.main(["doctor", "--data", "voc/retinanet_r101_r50", *change]) == 0
        out, _ = capfd.readouterr()
        assert out.startswith("yolo  fingerprint ")
        assert "note  1  polygons, of which the bounding boxes are taken" in out

    def test_faults_of_the_set_give_3_and_are_all_told(
        self, root: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        write(root / "labels/train/a.txt", "0 50 40 20 32\n0.5 0.5 0.2 0.4\n")
        change = ["--set", "dataset.name=yolo", "--set", f"dataset.root={root}"]
        assert app.main(["doctor", "--data", "voc/retinanet_r101_r50", *change]) == 3
        err = capfd.readouterr().err
        assert f"error: {root}  {PIXELS}: 1\n  got    labels/train/a.txt:1: 0 50 40 20 32\n" in err
        assert "\n  got    labels/train/a.txt:2: 0.5 0.5 0.2 0.4\n" in err
