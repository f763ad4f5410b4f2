"""Facts of data: what a job would stop at, told before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlab.devices import Gpu, Machine
from kdlab.errors import UsageError
from kdlab.planning import facts
from kdlab.planning.facts import Facts
from kdlab.recipe import loader as recipes

RECIPE = """
dataset: {name: coco, root: ROOT, train_images: train, val_images: val, train_labels: train.json,
          val_labels: val.json}
student: {detector: gfl, backbone: resnet18, width: 8, neck_channels: 16, head_convs: 1, strides: [8, 16, 32]}
schedule: {preset: custom, epochs: 1, batch_size: 1, lr: 1e-3, optimizer: adamw}
arms: {baseline: {}}
"""
GREY = np.linspace(0, 255, 64 * 64).reshape(64, 64)


@pytest.fixture
def gather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Facts]:
    """`gather("a.png", pixels)`: the facts of a set whose training images begin with this one."""
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(facts, "_probe", lambda requests, _: [{"input": one["input"]} for one in requests])
    (tmp_path / "r.yaml").write_text(RECIPE.replace("ROOT", str(tmp_path)))

    def gathered(
        name: str, pixels: Any, *overrides: str, machine: Machine | None = None, **box: Any
    ) -> Facts:
        for split, file, content in (("train", name, pixels), ("val", "v.png", GREY.astype(np.uint8))):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / split / Path(file.replace("\\", "/")).name)
            entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], **box}
            labels = {
                "images": [{"id": 1, "file_name": file, "width": 64, "height": 64}],
                "categories": [{"id": 1, "name": "a"}],
                "annotations": [entry],
            }
            (tmp_path / f"{split}.json").write_text(json.dumps(labels))
        return facts.gather(recipes.load(str(tmp_path / "r.yaml"), overrides), machine or Machine((0,)))

    return gathered


def test_sound_data_has_no_notes_and_its_first_image_gives_the_size(gather: Any) -> None:
    found = gather("a.png", GREY.astype(np.uint8))
    assert found.student["input"] == [64, 64]
    assert all("to measure on" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "pixels", "why"),
    [
        ("a.tif", GREY.astype(np.float32), "its pixels are 32-bit floats"),
        ("train\\a.png", GREY.astype(np.uint8), "a backslash is no separator here"),
    ],
)
def test_an_image_at_which_a_job_would_stop_is_refused(name: str, pixels: Any, why: str, gather: Any) -> None:
    with pytest.raises(UsageError, match="an image cannot be read") as caught:
        gather(name, pixels)
    assert why in caught.value.faults[0].got


def test_an_image_that_a_job_would_skip_is_not(gather: Any) -> None:
    gather("a.tif", GREY.astype(np.float32), "dataset.broken_images=skip")


def test_pixels_that_arrive_dark_are_noted(gather: Any) -> None:
    note, *_ = gather("a.png", (GREY * 16).astype(np.uint16)).notes
    assert note.startswith("a.png: pixels arrive as 0..15 of 0..255")


def test_a_small_validation_set_and_classes_with_few_objects_are_noted(gather: Any) -> None:
    images, objects = gather("a.png", GREY.astype(np.uint8)).notes
    assert images.startswith("1 image to measure on: ")
    assert objects.startswith("classes with fewer than 10 objects to measure on: a 1; ")


def thin(path: Path, images: int, objects: dict[str, int], crowds: int = 0) -> list[str]:
    """What is noted of so many images with so many objects of each class."""
    classes = {name: number for number, name in enumerate(objects, 1)}
    data = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": number, "name": name} for name, number in classes.items()],
        "annotations": [
            *({"category_id": classes[name]} for name in objects for _ in range(objects[name])),
            *({"category_id": 1, "iscrowd": 1} for _ in range(crowds)),
        ],
    }
    path.write_text(json.dumps(data))
    return [*facts._thin(path)]


def test_enough_images_and_objects_are_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "val.json"
    assert thin(path, 100, {"a": 10, "b": 300}) == []
    (told,) = thin(path, 100, {"a": 9, "b": 300}, crowds=5)
    assert told.startswith("classes with fewer than 10 objects to measure on: a 9; ")
    (told,) = thin(path, 100, dict.fromkeys("abcdefgh", 0))
    assert ": a 0, b 0, c 0, d 0, e 0, f 0 and 2 more; " in told
    monkeypatch.setattr(facts, "SMALL_BYTES", 10)
    assert thin(path, 1, {"a": 1}) == []


def test_labels_of_which_no_object_is_left_are_refused(gather: Any) -> None:
    with pytest.raises(UsageError, match="no object is left"):
        gather("a.png", GREY.astype(np.uint8), area=0)


@pytest.mark.parametrize(("cores", "gpus", "workers"), [(2, 0, 0), (16, 1, 8), (12, 2, 5), (3, 4, 0)])
def test_loader_processes_are_a_gpu_s_share_of_the_cores(
    gather: Callable[..., Facts], cores: int, gpus: int, workers: int
) -> None:
    devices = tuple(Gpu(number, f"GPU-{number}", 80.0) for number in range(gpus))
    machine = Machine(tuple(range(cores)), devices)
    assert gather("a.png", GREY.astype(np.uint8), machine=machine).workers == workers
