"""Which images are measured on."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlab.drafting.splitting import cut, groups, stratified


def picture(path: Path, seed: int, shift: int = 0) -> str:
    """Coarse noise, a few values brighter where shifted."""
    cells = np.random.default_rng(seed).integers(0, 230, (9, 16), dtype=np.uint8) + np.uint8(shift)
    Image.fromarray(cells).resize((160, 90), Image.Resampling.NEAREST).save(path)
    return path.name


def test_near_duplicates_and_copies_of_an_export_belong_together(tmp_path: Path) -> None:
    names = [
        picture(tmp_path / "one.png", 1),
        picture(tmp_path / "again.png", 1, shift=4),
        picture(tmp_path / "other.png", 2),
        picture(tmp_path / "p_jpg.rf.0123456789abcdef.png", 3),
        picture(tmp_path / "p_jpg.rf.fedcba9876543210.png", 4),
    ]
    assert sorted(map(sorted, groups(names, tmp_path))) == [[0, 1], [2], [3, 4]]


def test_numbers_alone_do_not_make_frames(tmp_path: Path) -> None:
    names = [picture(tmp_path / f"photo_{number:03}.png", number) for number in range(1, 5)]
    assert len(groups(names, tmp_path)) == 4


def test_frames_that_hardly_change_stay_together(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).integers(0, 230, (9, 16), dtype=np.uint8)
    names = []
    for number in range(4):
        # a frame is unlike the first, and near the one before
        cells[number * 2] = np.random.default_rng(number + 9).integers(0, 230, 16)
        Image.fromarray(cells).resize((160, 90), Image.Resampling.NEAREST).save(
            tmp_path / f"clip_{number:03}.png"
        )
        names.append(f"clip_{number:03}.png")
    assert len(groups(names, tmp_path)) == 1


def test_an_image_that_cannot_be_read_is_like_no_other(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
    assert len(groups(["a.jpg", "b.jpg"], tmp_path)) == 2


def test_each_class_has_its_share() -> None:
    # 100 images; class 2 in ten of them, of which two are wanted
    classes = {number: Counter({1: 3, 2: int(number % 10 == 0)}) for number in range(100)}
    classes = {number: +own for number, own in classes.items()}
    for seed in range(5):
        chosen = stratified([[number] for number in range(100)], classes, seed)
        assert len(chosen) == 20
        assert sum(classes[number][2] for number in chosen) == 2
    assert stratified([[n] for n in range(100)], classes, 0) != stratified(
        [[n] for n in range(100)], classes, 1
    )


def test_groups_stay_whole() -> None:
    sets = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(40)]
    chosen = stratified(sets, {number: Counter({1: 1}) for number in range(120)}, 0)
    assert 20 <= len(chosen) <= 24
    assert all(len(chosen.intersection(group)) in (0, 3) for group in sets)


def test_few_images_give_more_of_them() -> None:
    assert len(stratified([[n] for n in range(50)], {n: Counter({1: 1}) for n in range(50)}, 0)) == 20


def labels(*roles: str) -> dict[str, Any]:
    images = [{"id": number, "file_name": f"{number}.png", "role": role} for number, role in enumerate(roles)]
    boxes = [{"id": number, "image_id": number, "category_id": 1} for number in range(len(roles))]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}


@pytest.mark.parametrize(
    ("roles", "train", "val"),
    [(["train", "val", "test", ""], [0], [1]), (["train", "test", "train"], [0, 2], [1])],
)
def test_what_folders_say_decides(tmp_path: Path, roles: list[str], train: list[int], val: list[int]) -> None:
    learned, measured, _ = cut(labels(*roles), tmp_path)
    assert [image["id"] for image in learned["images"]] == train
    assert [image["id"] for image in measured["images"]] == val
    assert [box["image_id"] for box in measured["annotations"]] == val
    assert "role" not in learned["images"][0]


def test_what_no_folder_names_is_told(tmp_path: Path) -> None:
    assert "2 labelled images in neither are left out" in cut(labels("train", "val", "", ""), tmp_path)[2]
    assert "left out" not in cut(labels("train", "val"), tmp_path)[2]


def test_a_camera_that_stands_still_is_cut_once(tmp_path: Path) -> None:
    for number in range(120):
        picture(tmp_path / f"{number}.png", 0)
    learned, measured, how = cut(labels(*[""] * 120), tmp_path)
    assert [image["id"] for image in measured["images"]] == [*range(96, 120)]
    assert len(learned["images"]) == 96
    assert "cut once in the order of names" in how


def test_photographs_of_16_bits_are_told_apart(tmp_path: Path) -> None:
    names = []
    for number in range(4):
        cells = np.random.default_rng(number).integers(0, 4096, (90, 160)).astype(np.uint16) + 30_000
        cells = cells // 2 if number == 3 else cells
        Image.fromarray(cells).save(tmp_path / f"scan{number * 5}.png")
        names.append(f"scan{number * 5}.png")
    assert len(groups(names, tmp_path)) == 4


def test_both_parts_are_all_of_it_and_the_seed_decides(tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / f"{number}.png", number)
    data = labels(*[""] * 60)
    one, again, other = (cut(data, tmp_path, seed)[1] for seed in (0, 0, 1))
    assert one == again != other
    learned, measured, how = cut(data, tmp_path)
    assert len(learned["images"]) + len(measured["images"]) == 60
    assert len(measured["images"]) == 20
    assert "seed 0" in how


def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert groups(["a.png", picture(tmp_path / "b.png", 1)], tmp_path) == [[0], [1]]
