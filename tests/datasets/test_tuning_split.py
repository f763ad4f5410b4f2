from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets import _tuning_split, coco, digits, voc
from kdlab.datasets._tuning_split import tuning_split
from kdlab.datasets.base import DatasetFiles, Split, fingerprint
from kdlab.errors import MachineError, UsageError

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
NAMES = [f"{number:03}.jpg" for number in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_labels(path: Path, names: list[str], **more: Any) -> None:
    """COCO labels with one object an image, whose id is the hundredfold of the image's."""
    images = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names, 1)]
    boxes = [
        {"id": 100 * i, "image_id": i, "category_id": 3, "bbox": [0.5, 1, 2, 3], "area": 5.5, "iscrowd": 0}
        for i in range(1, len(names) + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES, **more}))


CATEGORIES = [{"id": 3, "name": "car", "supercategory": "vehicle"}]


def data_set(root: Path, names: list[str] = NAMES, **more: Any) -> DatasetFiles:
    for part, files in (("train", names), ("val", ["v.jpg"])):
        write_labels(root / f"{part}.json", files, **(more if part == "train" else {}))
        for name in files:
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            (root / part / name).write_bytes(name.encode())
    train, val = (Split(root / part, root / f"{part}.json") for part in ("train", "val"))
    return DatasetFiles("coco", ("car",), train, val, fingerprint([train, val]), ("coco", "voc"))


def content(split: Split) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(split.labels.read_text())
    return read


def names(split: Split) -> set[str]:
    return {image["file_name"] for image in content(split)["images"]}


def change(files: DatasetFiles, **changes: Any) -> None:
    files.train.labels.write_text(json.dumps(content(files.train) | changes))


def test_parts_are_all_training_images_each_once_and_the_cut_part_has_its_share(tmp_path: Path) -> None:
    cut = tuning_split(data_set(tmp_path), 0.25)
    assert len(names(cut.val)) == 10
    assert names(cut.train) | names(cut.val) == set(NAMES)
    assert not names(cut.train) & names(cut.val)


def test_both_parts_lie_in_the_folder_of_the_training_images(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    cut = tuning_split(files, 0.25)
    assert cut.train.images == cut.val.images == files.train.images
    assert (cut.name, cut.classes, cut.metrics) == (files.name, files.classes, files.metrics)
    assert DatasetFiles.from_dict(cut.to_dict()) == cut


def test_objects_follow_their_image_and_keep_their_ids(tmp_path: Path) -> None:
    cut = tuning_split(data_set(tmp_path), 0.25)
    for split in (cut.train, cut.val):
        labels = content(split)
        assert [box["image_id"] for box in labels["annotations"]] == [i["id"] for i in labels["images"]]
        assert all(box["id"] == 100 * box["image_id"] for box in labels["annotations"])


def test_all_else_in_the_labels_is_kept(tmp_path: Path) -> None:
    files = data_set(tmp_path, info={"year": 2026}, licenses=[{"id": 7}])
    before = content(files.train)
    before["annotations"][0] |= {"segmentation": [[1, 2, 3, 4, 5, 6]], "note": "é"}
    before["images"][0]["license"] = 7
    change(files, **before)
    cut = tuning_split(files, 0.25)
    for key in ("categories", "info", "licenses"):
        assert content(cut.train)[key] == content(cut.val)[key] == before[key]
    for key in ("images", "annotations"):
        both = content(cut.train)[key] + content(cut.val)[key]
        assert sorted(both, key=lambda entry: entry["id"]) == before[key]


def test_larger_share_holds_the_smaller_one(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    shares = [names(tuning_split(files, share).val) for share in (0.01, 0.1, 0.3, 0.5)]
    assert [len(cut) for cut in shares] == [1, 4, 12, 20]
    assert all(small < large for small, large in pairwise(shares))


def test_order_and_numbers_of_the_labels_do_not_move_an_image(tmp_path: Path) -> None:
    shuffled = NAMES.copy()
    random.Random(0).shuffle(shuffled)
    one = tuning_split(data_set(tmp_path / "one"), 0.25)
    two = tuning_split(data_set(tmp_path / "two", shuffled), 0.25)
    assert names(one.val) == names(two.val)


def test_new_images_displace_no_more_than_their_number(tmp_path: Path) -> None:
    few = tuning_split(data_set(tmp_path / "one"), 0.5)
    more = tuning_split(data_set(tmp_path / "two", [*NAMES, "z.jpg", "y.jpg"]), 0.5)
    assert len(names(few.val) - names(more.val)) <= 2


def test_the_cut_is_the_same_on_every_machine(tmp_path: Path) -> None:
    cut = tuning_split(data_set(tmp_path), 0.1)
    # the four lowest of what `sha256sum` says of "000.jpg" to "039.jpg"
    assert names(cut.val) == {"038.jpg", "022.jpg", "003.jpg", "009.jpg"}


def test_at_most_so_many_images_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tuning_split, "MOST_CUT", 6)
    cut = tuning_split(data_set(tmp_path), 0.5)
    assert (len(names(cut.train)), len(names(cut.val))) == (34, 6)


def test_fingerprint_tells_the_share_and_not_where_things_lie(tmp_path: Path) -> None:
    files = data_set(tmp_path / "one")
    found = {files.fingerprint, *(tuning_split(files, share).fingerprint for share in (0.1, 0.2))}
    assert len(found) == 3
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    moved = tuning_split(data_set(tmp_path / "two"), 0.1, tmp_path / "elsewhere")
    assert moved.fingerprint == tuning_split(files, 0.1).fingerprint


def test_fingerprint_tells_a_changed_label_and_a_changed_image(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    before = tuning_split(files, 0.1)
    (files.train.images / NAMES[0]).write_bytes(b"larger than it was")
    image = tuning_split(sealed(files), 0.1)
    change(files, info={"year": 2026})
    label = tuning_split(sealed(files), 0.1)
    assert len({split.fingerprint for split in (before, image, label)}) == 3
    assert "info" not in content(before.train)
    assert "info" in content(label.train)


def sealed(files: DatasetFiles) -> DatasetFiles:
    """The files with the fingerprint that they have now."""
    told = files.to_dict() | {"fingerprint": fingerprint([files.train, files.val])}
    return DatasetFiles.from_dict(told)


def test_validation_files_are_not_needed(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    with_val = tuning_split(files, 0.25, tmp_path / "with")
    files.val.labels.unlink()
    shutil.rmtree(files.val.images)
    without = tuning_split(files, 0.25, tmp_path / "without")
    assert without.fingerprint == with_val.fingerprint
    for part in ("train", "val"):
        assert content(getattr(without, part)) == content(getattr(with_val, part))


def test_labels_are_parsed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, parsed, load = data_set(tmp_path), [], coco.load_labels
    monkeypatch.setattr(_tuning_split, "load_labels", lambda path: parsed.append(path) or load(path))
    assert tuning_split(files, 0.25) == tuning_split(files, 0.25)
    assert parsed == [files.train.labels]
    assert [path.name for path in (cache / "tuning").iterdir()] == [tuning_split(files, 0.25).fingerprint]


@pytest.mark.parametrize(
    "odd",
    [
        ["a/1.jpg", "b/1.jpg", "b/c/1.jpg"],
        [".hidden.jpg", ".folder/1.jpg"],
        ["with space.jpg", "ä.jpg", "日本.jpg"],
    ],
)
def test_odd_names_are_each_in_one_part(tmp_path: Path, odd: list[str]) -> None:
    cut = tuning_split(data_set(tmp_path, [*NAMES, *odd]), 0.5)
    assert names(cut.train) | names(cut.val) == {*NAMES, *odd}
    assert not names(cut.train) & names(cut.val)


def test_images_of_one_file_stay_together(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    labels = content(files.train)
    for image, first in zip(labels["images"][20:], labels["images"], strict=False):
        image["file_name"] = f"./{first['file_name']}"
    change(files, **labels)
    cut = tuning_split(files, 0.5)
    learned, measured = ({name.removeprefix("./") for name in names(part)} for part in (cut.train, cut.val))
    assert not learned & measured
    assert len(content(cut.val)["images"]) == 20


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, 1.0, 20, float("nan")])
def test_share_out_of_range_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(UsageError, match="out of range") as caught:
        tuning_split(data_set(tmp_path), share)
    assert caught.value.faults[0].got == str(share)


def test_fewer_than_ten_images_are_too_few(tmp_path: Path) -> None:
    assert len(names(tuning_split(data_set(tmp_path / "ten", NAMES[:10]), 0.01).val)) == 1
    with pytest.raises(UsageError, match="too few training images"):
        tuning_split(data_set(tmp_path / "nine", NAMES[:9]), 0.5)


@pytest.mark.parametrize(("kept", "told"), [("train", "the cut part"), ("val", "left to learn from")])
def test_part_without_objects_is_refused_and_leaves_nothing(
    tmp_path: Path, cache: Path, kept: str, told: str
) -> None:
    files = data_set(tmp_path)
    labels, part = content(files.train), getattr(tuning_split(files, 0.25, tmp_path / "other"), kept)
    ids = {image["id"] for image in content(part)["images"]}
    for box in labels["annotations"]:
        box["iscrowd"] = int(box["image_id"] not in ids)
    change(files, **labels)
    with pytest.raises(UsageError, match=told) as caught:
        tuning_split(files, 0.25)
    assert caught.value.faults[0].where == str(files.train.labels)
    assert not cache.exists()


def test_faulty_labels_are_told_as_elsewhere(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    change(files, categories=[{"id": 4, "name": "car"}])
    with pytest.raises(UsageError, match="category that is not listed: 40"):
        tuning_split(files, 0.25)


def test_missing_training_labels_are_told(tmp_path: Path) -> None:
    files = data_set(tmp_path)
    files.train.labels.unlink()
    with pytest.raises(MachineError, match="training labels cannot be read"):
        tuning_split(files, 0.25)


@pytest.mark.parametrize("part", ["train.json", "val.json", "made.json"])
def test_changed_cache_is_told_with_what_mends_it(tmp_path: Path, cache: Path, part: str) -> None:
    files = data_set(tmp_path)
    cut = tuning_split(files, 0.25)
    (cut.val.labels.parent / part).write_text("{}")
    with pytest.raises(MachineError, match="changed or removed") as caught:
        tuning_split(files, 0.25)
    assert caught.value.faults[0].fix == f"rm -r {cut.val.labels.parent}"


def test_scenes_of_digits_can_be_cut(tmp_path: Path) -> None:
    files = digits.prepare(image_px=32, train_images=20, val_images=1, max_digits=1)
    assert len(names(tuning_split(files, 0.2).val)) == 4


def test_converted_xml_can_be_cut() -> None:
    if not (root := DATA / "bccd").is_dir():
        pytest.skip("needs shared/data/bccd")
    files = voc.prepare(root=str(root), images="images", annotations="annotations", splits="splits",
                        train=("train",), val=("val",))  # fmt: skip
    cut = tuning_split(files, 0.2)
    assert names(cut.train) | names(cut.val) == names(files.train)
    assert all((cut.val.images / name).is_file() for name in names(cut.val))
    assert cut.metrics == ("coco", "voc")


def test_real_coco_labels_can_be_cut() -> None:
    if not (root := DATA / "coco-mini-cc").is_dir():
        pytest.skip("needs shared/data/coco-mini-cc")
    images = {f"{part}_images": f"images/{part}" for part in ("train", "val")}
    labels = {f"{part}_labels": f"annotations/instances_{part}.json" for part in ("train", "val")}
    files = coco.prepare(root=str(root), **images, **labels)
    cut = tuning_split(files, 0.2)
    both = [*content(cut.train)["annotations"], *content(cut.val)["annotations"]]
    assert sorted(both, key=lambda box: box["id"]) == sorted(
        coco.load_labels(files.train.labels)["annotations"], key=lambda box: box["id"]
    )


@pytest.mark.parametrize("change", [{"ignore": 1}, {"area": 0}, {"bbox": [20, 20, 2, 3]}])
def test_a_part_of_which_training_drops_every_object_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    files = data_set(tmp_path)
    taken = {image["id"] for image in content(tuning_split(files, 0.25).val)["images"]}
    boxes = content(files.train)["annotations"]
    changed = [box | change if box["image_id"] in taken else box for box in boxes]
    files.train.labels.write_text(json.dumps(content(files.train) | {"annotations": changed}))
    with pytest.raises(UsageError, match="the cut part of the tuning split holds no object"):
        tuning_split(replace(files, fingerprint="1" * 16), 0.25)
