from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest
from PIL import Image

from kdlab.datasets import digits
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.errors import MachineError, UsageError

FEW: dict[str, Any] = {"train_images": 6, "val_images": 3}
CROWDED: dict[str, Any] = {"image_px": 128, "max_digits": 5, "background": "busy"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    return digits.prepare(cache=str(tmp_path_factory.mktemp("cache")), **FEW)


def folder_of(files: DatasetFiles) -> Path:
    return files.train.labels.parent


def contents(files: DatasetFiles) -> dict[str, bytes]:
    folder = folder_of(files)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def images_of(split: Split) -> list[bytes]:
    return [path.read_bytes() for path in sorted(split.images.iterdir())]


def labels_of(split: Split) -> dict[str, Any]:
    labels: dict[str, Any] = json.loads(split.labels.read_text())
    return labels


def layouts(scenes: int, **options: Any) -> list[list[digits._Glyph]]:
    """Glyphs of scenes drawn from ten plain bars; bar k is k + 1 cells wide, up to 8."""
    sources = np.zeros((8, 8, 8))
    for k in range(8):
        sources[k, :, : k + 1] = 1.0
    filled = digits._Options(
        **{"image_px": 80, "train_images": 1, "val_images": 1, "seed": 0, "min_digits": 1, "max_digits": 3,
           "min_size": 0.25, "max_size": 0.5, "background": "calm", "overlap": 0.2, **options}
    )  # fmt: skip
    rng = np.random.default_rng(0)
    return [digits._layout(rng, filled, sources, np.arange(8)) for _ in range(scenes)]


def test_same_options_give_the_same_bytes(files: DatasetFiles, tmp_path: Path) -> None:
    again = digits.prepare(cache=str(tmp_path), **FEW)
    assert contents(again) == contents(files)
    assert again.fingerprint == files.fingerprint


def test_labels_are_those_of_this_version(files: DatasetFiles) -> None:
    # Changed on purpose? Then raise digits.VERSION in the same commit.
    found = [hashlib.sha256(split.labels.read_bytes()).hexdigest()[:16] for split in (files.train, files.val)]
    assert (digits.VERSION, found) == (1, ["72c0f0ce90a540fd", "ab0be039b96c4a29"])


def test_pixels_are_those_of_this_version(files: DatasetFiles) -> None:
    # Changed on purpose? Then raise digits.VERSION in the same commit.
    with Image.open(files.train.images / "000000.png") as image:
        pixels = np.asarray(image).astype(int)
    found = [*pixels[::40, ::40].reshape(-1), *pixels.std(axis=(0, 1)).round()]
    assert digits.VERSION == 1
    pinned = [166, 212, 78, 141, 209, 79, 153, 184, 71, 158, 213, 81, 27, 43, 10]
    assert found == pytest.approx(pinned, abs=1)


def test_fingerprint_is_the_same_on_every_machine(files: DatasetFiles) -> None:
    assert files.fingerprint == "2b69aceabb2826d4"


def test_scenes_are_found_again_without_making_them(
    files: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(digits, "_build", never)
    assert digits.prepare(cache=str(folder_of(files).parents[1]), **FEW) == files


def test_user_cache_is_used_where_none_is_named(
    files: DatasetFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    assert folder_of(digits.prepare(**FEW)).parent == tmp_path / "digits"


def test_scene_does_not_depend_on_how_many_there_are(files: DatasetFiles, tmp_path: Path) -> None:
    more = digits.prepare(cache=str(tmp_path), train_images=8, val_images=2)
    assert images_of(more.train)[:6] == images_of(files.train)
    assert images_of(more.val) == images_of(files.val)[:2]


def test_another_seed_gives_other_scenes(files: DatasetFiles, tmp_path: Path) -> None:
    other = digits.prepare(cache=str(tmp_path), seed=1, **FEW)
    assert not set(images_of(other.train)) & set(images_of(files.train))


def test_another_version_of_the_generator_has_its_own_folder_and_fingerprint(
    files: DatasetFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "VERSION", digits.VERSION + 1)
    other = digits.prepare(cache=str(tmp_path), **FEW)
    assert folder_of(other).name != folder_of(files).name
    assert other.fingerprint != files.fingerprint


def test_background_changes_the_fingerprint_though_not_the_boxes(files: DatasetFiles, tmp_path: Path) -> None:
    busy = digits.prepare(cache=str(tmp_path), background="busy", **FEW)
    assert labels_of(busy.train)["annotations"] == labels_of(files.train)["annotations"]
    assert busy.fingerprint != files.fingerprint


def test_train_and_val_share_no_handwriting_and_the_seed_moves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bytes]] = {"train": set(), "val": set()}
    write_split = digits._write_split

    def recorded(options: Any, folder: Path, name: str, scenes: int, sources: Any, digits_: Any) -> None:
        seen[name] |= {source.tobytes() for source in sources}
        write_split(options, folder, name, scenes, sources, digits_)

    monkeypatch.setattr(digits, "_write_split", recorded)
    for seed in (0, 1):
        digits.prepare(cache=str(tmp_path), seed=seed, train_images=1, val_images=1)
    assert (len(seen["train"]), len(seen["val"])) == (1437, 360)
    assert not seen["train"] & seen["val"]


def test_each_split_has_all_ten_digits(tmp_path: Path) -> None:
    made = digits.prepare(cache=str(tmp_path), train_images=60, val_images=60)
    for split in (made.train, made.val):
        drawn = Counter(note["category_id"] for note in labels_of(split)["annotations"])
        assert sorted(drawn) == list(range(1, 11))


def test_every_image_is_rgb_of_the_asked_size(files: DatasetFiles) -> None:
    for split, count in ((files.train, 6), (files.val, 3)):
        listed = [image["file_name"] for image in labels_of(split)["images"]]
        assert listed == sorted(path.name for path in split.images.iterdir())
        assert len(listed) == count
        for name in listed:
            with Image.open(split.images / name) as image:
                assert (image.mode, image.size) == ("RGB", (80, 80))


@pytest.mark.parametrize("shape", [(3, 5, 3), (200, 201, 3)])
def test_png_holds_the_pixels(shape: tuple[int, int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "image.png").write_bytes(digits._png(pixels))
    with Image.open(tmp_path / "image.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("options", [{}, CROWDED, {"min_digits": 0, "max_digits": 1}])
def test_labels_keep_what_the_options_promise(options: dict[str, Any], tmp_path: Path) -> None:
    made = digits.prepare(cache=str(tmp_path), train_images=25, val_images=1, **options)
    labels, px = labels_of(made.train), options.get("image_px", 80)
    boxes: dict[int, list[tuple[int, int, int, int]]] = {image["id"]: [] for image in labels["images"]}
    for note in labels["annotations"]:
        x, y, width, height = note["bbox"]
        boxes[note["image_id"]].append((x, y, width, height))
        assert 0 <= x < x + width <= px
        assert 0 <= y < y + height <= px
        assert (note["area"], note["iscrowd"]) == (width * height, 0)
    allowed = set(range(options.get("min_digits", 1), options.get("max_digits", 3) + 1))
    assert {len(of_one) for of_one in boxes.values()} == allowed
    assert all(digits._iou(a, b) <= 0.2 for of_one in boxes.values() for a, b in combinations(of_one, 2))
    assert [category["name"] for category in labels["categories"]] == list(made.classes)


def test_metrics_library_loads_the_labels(files: DatasetFiles) -> None:
    loaded = hotcoco.COCO(str(files.train.labels))
    assert len(loaded.get_ann_ids()) == len(labels_of(files.train)["annotations"])


def test_label_is_that_of_the_drawn_source() -> None:
    for glyph in (glyph for scene in layouts(30) for glyph in scene):
        _, _, width, height = glyph.box
        assert width / height == pytest.approx((glyph.digit + 1) / 8, abs=0.06)


def test_smaller_digits_are_drawn_on_top() -> None:
    for scene in layouts(20, min_digits=3):
        heights = [glyph.box[3] for glyph in scene]
        assert heights == sorted(heights, reverse=True)


def test_each_side_of_a_box_touches_ink_that_can_be_seen() -> None:
    for glyph in (glyph for scene in layouts(20) for glyph in scene):
        ink = glyph.ink
        assert min(side.max() for side in (ink[0], ink[-1], ink[:, 0], ink[:, -1])) >= 0.25


def test_heights_fill_the_asked_range() -> None:
    heights = [glyph.box[3] / 80 for scene in layouts(100, max_digits=1) for glyph in scene]
    assert min(heights) == pytest.approx(0.25, abs=0.03)
    assert max(heights) == pytest.approx(0.5, abs=0.03)


def test_iou_of_boxes_by_hand() -> None:
    assert digits._iou((0, 0, 4, 4), (2, 2, 4, 4)) == pytest.approx(4 / 28)
    assert digits._iou((0, 0, 4, 4), (4, 0, 4, 4)) == 0
    assert digits._iou((0, 0, 4, 4), (5, 5, 4, 4)) == 0


@pytest.mark.parametrize("background", ["calm", "busy"])
def test_box_holds_all_that_a_digit_changes_and_no_more(background: str) -> None:
    options = digits._Options(80, 1, 1, 0, 1, 1, 0.25, 0.5, background, 0.2)
    for glyphs in layouts(10, max_digits=1):
        with_digit = digits._draw(np.random.default_rng(7), options, glyphs)
        without = digits._draw(np.random.default_rng(7), options, [])
        rows, columns = np.nonzero((with_digit != without).any(axis=2))
        x, y = columns.min(), rows.min()
        assert (x, y, columns.max() - x + 1, rows.max() - y + 1) == glyphs[0].box


def test_digit_stands_out_from_its_ground() -> None:
    options = digits._Options(80, 1, 1, 0, 1, 1, 0.25, 0.5, "busy", 0.2)
    for seed, glyphs in enumerate(layouts(10, max_digits=1)):
        pair = [digits._draw(np.random.default_rng(seed), options, drawn) for drawn in (glyphs, [])]
        x, y, width, height = glyphs[0].box
        ink, ground = (scene[y : y + height, x : x + width].mean(axis=2) for scene in pair)
        assert abs(ink - ground)[glyphs[0].ink == 1].mean() > 30


def test_busy_ground_has_more_texture_than_calm_and_calm_has_some() -> None:
    spread = {}
    for background in ("calm", "busy"):
        options = digits._Options(80, 1, 1, 0, 1, 1, 0.25, 0.5, background, 0.2)
        spread[background] = digits._draw(np.random.default_rng(0), options, []).std(axis=(0, 1)).mean()
    assert 3 < spread["calm"] < spread["busy"] / 1.5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_px": 16}, "image_px"),
        ({"image_px": "80"}, "image_px"),
        ({"train_images": 0}, "train_images"),
        ({"val_images": 1.5}, "val_images"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_size": 2.0}, "max_size"),
        ({"overlap": float("nan")}, "overlap"),
        ({"background": "buzy"}, "did you mean busy"),
        ({"min_digits": 4}, "min_digits exceeds dataset.max_digits"),
        ({"min_size": 0.4, "max_size": 0.3}, "min_size exceeds dataset.max_size"),
        ({"image_px": 64, "min_size": 0.1}, "set dataset.min_size to 0.125 or more"),
    ],
)
def test_bad_option_is_named(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        digits.prepare(cache=str(tmp_path), **options)


def test_all_bad_options_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        digits.prepare(cache=str(tmp_path), image_px=1, seed=-1, overlap=0.9)
    assert len(caught.value.faults) == 3


def test_digits_that_find_no_room_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="find no room"):
        digits.prepare(cache=str(tmp_path), min_digits=20, max_digits=20, min_size=0.5, **FEW)
    assert list((tmp_path / "digits").iterdir()) == []


def test_two_jobs_may_ask_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(digits.prepare, cache=str(tmp_path), **FEW) for _ in range(2)]
    assert asked[0].result() == asked[1].result()
    assert len(list((tmp_path / "digits").iterdir())) == 1


def test_half_made_folder_of_a_killed_process_is_not_used(files: DatasetFiles, tmp_path: Path) -> None:
    half = tmp_path / "digits" / f".{folder_of(files).name}-killed" / "made" / "train"
    half.mkdir(parents=True)
    (half / "000000.png").write_bytes(b"half")
    assert contents(digits.prepare(cache=str(tmp_path), **FEW)) == contents(files)


@pytest.mark.parametrize("lost", ["train/000003.png", "val.json", "made.json"])
def test_cache_that_lost_a_file_is_refused_with_the_fix(lost: str, tmp_path: Path) -> None:
    made = digits.prepare(cache=str(tmp_path), **FEW)
    (folder_of(made) / lost).unlink()
    with pytest.raises(MachineError, match=f"rm -r {folder_of(made)}"):
        digits.prepare(cache=str(tmp_path), **FEW)


@pytest.mark.parametrize("torn", ["train/000003.png", "val.json", "made.json"])
def test_cache_with_a_torn_file_is_refused(torn: str, tmp_path: Path) -> None:
    made = digits.prepare(cache=str(tmp_path), **FEW)
    path = folder_of(made) / torn
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(MachineError, match="changed or removed"):
        digits.prepare(cache=str(tmp_path), **FEW)


def test_cache_that_cannot_be_written_names_folder_and_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="set KDLAB_CACHE") as caught:
        digits.prepare(cache=str(tmp_path / "file" / "cache"), **FEW)
    assert caught.value.faults[0].where.startswith(str(tmp_path / "file" / "cache"))


def test_full_disk_is_a_machine_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineError, match="No space left on device"):
        digits.prepare(cache=str(tmp_path), **FEW)
    assert list((tmp_path / "digits").iterdir()) == []
