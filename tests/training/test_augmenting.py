"""Augmented images: mmdet's steps, drawn from the sample's own generators, also where they mix images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab.datasets.base import DatasetFiles
from kdlab.errors import JobError, UsageError
from kdlab.jobs.augment import PRESETS, STEPS, AnyStep
from kdlab.jobs.spec import ImageSettings
from kdlab.recipe import loader as recipes
from kdlab.training import augmenting, data
from kdlab.training.distiller import Distiller
from kdlab.training.images import BrokenImages

pytestmark = pytest.mark.usefixtures("torch_")

SCALE = (64, 48)
EACH: dict[str, dict[str, Any]] = {
    **{name: {} for name in STEPS},
    "multi_scale": {"ratio": [0.5, 2.0]},
    "random_crop": {"size": [40, 32]},
}
MIXED = [
    "mosaic",
    {"random_affine": {"scaling": [0.5, 1.5]}},
    {"mixup": {"ratio": [0.8, 1.6]}},
    "hsv",
    "erase",
]


def steps(augment: Any) -> tuple[AnyStep, ...]:
    return ImageSettings.model_validate({"scale": list(SCALE), "augment": augment}).augment


def augmented(digits: DatasetFiles, augment: Any, **options: Any) -> data.CocoImages:
    return data.mmdet_dataset(digits, digits.train, SCALE, 0.5, augment=steps(augment), **options)


def read(loader: Any, epoch: int = 0, batch: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """Pixels, boxes and labels of the rest of an epoch."""
    loader.batch_sampler.start_at(epoch, batch)
    return [
        (image, sample.gt_instances.bboxes.tensor, sample.gt_instances.labels)
        for found in data.batches_of(loader)
        for image, sample in zip(found["inputs"], found["data_samples"], strict=True)
    ]


def same(one: Sequence[tuple[torch.Tensor, ...]], other: Sequence[tuple[torch.Tensor, ...]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(mine, theirs)
        for rows in zip(one, other, strict=True)
        for mine, theirs in zip(*rows, strict=True)
    )


@pytest.mark.parametrize("augment", [*PRESETS, *([{name: options}] for name, options in EACH.items())])
def test_what_comes_out_fits_its_size_and_every_box_lies_inside(digits: DatasetFiles, augment: Any) -> None:
    largest = {"coco_ms": (1333, 800), "multi_scale": (128, 96)}
    name = augment if isinstance(augment, str) else next(iter(augment[0]))
    for image, boxes, labels in read(data.training_loader(augmented(digits, augment), 4, 0, 0)):
        height, width = image.shape[1:]
        assert width <= largest.get(name, SCALE)[0]
        assert height <= largest.get(name, SCALE)[1]
        assert 1 <= len(boxes) == len(labels)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_images_depend_on_seed_epoch_and_place_alone(
    digits: DatasetFiles, workers: int, cached: bool
) -> None:
    whole = data.training_loader(augmented(digits, MIXED), 4, 0, 0)
    other = data.training_loader(augmented(digits, MIXED, cached=cached), 4, 0, workers)
    torch.manual_seed(77)
    for epoch in (0, 1):
        assert same(read(other, epoch), read(whole, epoch))
    assert same(read(other, 1, batch=1), read(whole, 1)[4:])
    assert not same(read(whole, 0), read(whole, 1))
    assert not same(read(data.training_loader(augmented(digits, MIXED), 4, 1, 0)), read(whole, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_epochs_mix_nothing(digits: DatasetFiles, workers: int) -> None:
    stopping = data.training_loader(augmented(digits, MIXED), 4, 0, workers, mixed_epochs=1)
    mixing = data.training_loader(augmented(digits, MIXED), 4, 0, 0)
    unmixed = data.training_loader(augmented(digits, ["hsv", "erase"]), 4, 0, 0)
    assert same(read(stopping, 0), read(mixing, 0))
    assert same(read(stopping, 1), read(unmixed, 1))


@pytest.mark.parametrize(
    "augment",
    [
        # of scenes that are mostly ground
        [{"random_crop": {"size": [8, 8]}}],
        [{"random_affine": {"shift": 1, "scaling": [2, 3]}}],
        ["mosaic", {"random_affine": {"shift": 1, "scaling": [3, 4]}}],
        [{"erase": {"patches": [3, 5], "ratio": [0.6, 0.9]}}],
    ],
)
def test_an_image_that_no_box_is_left_in_is_drawn_again(digits: DatasetFiles, augment: Any) -> None:
    loader = data.training_loader(augmented(digits, augment), 4, 0, 0)
    found = [one for epoch in range(4) for one in read(loader, epoch)]
    assert len(found) == 4 * 4 * len(loader.batch_sampler)
    assert all(len(boxes) for _, boxes, _ in found)


def test_pixels_are_whole_numbers_again_behind_the_photometric_step(digits: DatasetFiles) -> None:
    loader = data.training_loader(augmented(digits, ["photometric", "hsv", "mixup"]), 4, 0, 0)
    assert all(image.dtype == torch.uint8 for image, _, _ in read(loader))


@pytest.mark.parametrize("setting", ["schedule.epochs=3", "tune.epochs=3"])
def test_a_plan_without_an_epoch_that_mixes_is_refused(setting: str) -> None:
    mixing = ["dataset.scale=[64, 64]", "dataset.augment=[mosaic]", "schedule.epochs=4"]
    mixing.append("dataset.augment_stop=3")
    assert recipes.load("digits/quickstart", mixing)
    with pytest.raises(UsageError, match=r"augment_stop: none of . .*epochs is left that mixes images"):
        recipes.load("digits/quickstart", [*mixing, setting])


@pytest.mark.parametrize("section", ["schedule", "teacher.schedule"])
def test_epochs_that_mix_nothing_need_a_schedule_of_epochs(section: str) -> None:
    mixing = ["dataset.scale=[64, 64]", "dataset.augment=[mosaic]", "dataset.augment_stop=1"]
    mixing.append("teacher.checkpoint=null")
    length = [f"{section}.iterations=9", f"{section}.epochs=null"]
    with pytest.raises(UsageError, match=rf"augment_stop counts epochs: give {section}\.epochs"):
        recipes.load("digits/quickstart", [*mixing, *length])


def test_a_mosaic_of_odd_sides_cannot_be_cut_in_half() -> None:
    with pytest.raises(UsageError, match="scale needs even sides"):
        recipes.load("digits/quickstart", ["dataset.scale=[65, 64]", "dataset.augment=yolox"])


def test_a_mosaic_and_a_mixup_of_a_single_image_are_of_itself(digits: DatasetFiles) -> None:
    one = augmented(digits, ["mosaic", "mixup"]).get_subset(1)
    ((image, boxes, labels),) = read(data.training_loader(one, 1, 0, 0))
    known = {box["bbox_label"] for box in one.get_data_info(0)["instances"]}
    assert image.shape == (3, 48, 64)
    assert len(boxes)
    assert set(labels.tolist()) <= known


@pytest.fixture
def damaged(digits: DatasetFiles, tmp_path: Path) -> tuple[DatasetFiles, str]:
    """The digits with a first image that cannot be read, and its name."""
    folder = tmp_path / "images"
    folder.mkdir()
    for image in digits.train.images.iterdir():
        (folder / image.name).write_bytes(image.read_bytes())
    name = Path(augmented(digits, []).get_data_info(0)["img_path"]).name
    (folder / name).write_bytes(b"no image")
    return replace(digits, train=replace(digits.train, images=folder)), name


def test_a_broken_image_that_is_mixed_into_another_is_named(damaged: tuple[DatasetFiles, str]) -> None:
    files, name = damaged
    mixed = augmented(files, ["mosaic"])
    with pytest.raises(JobError, match="not an image") as caught:
        # the second image, into which the first is mixed sooner or later
        for epoch in range(100):
            sample = data.SeededSamples(mixed, 0, 100)[epoch, 1]
            next(data.batches_of(Loader([data.joined([sample])], mixed)))
    assert name in str(caught.value)


class Loader(list[Any]):
    """Batches that lie in memory."""

    num_workers = 0

    def __init__(self, batches: list[Any], dataset: Any) -> None:
        super().__init__(batches)
        self.dataset = dataset


def test_where_broken_images_are_left_out_the_next_is_mixed_in_its_place(
    damaged: tuple[DatasetFiles, str],
) -> None:
    files, name = damaged
    loader = data.training_loader(augmented(files, MIXED, broken=BrokenImages()), 4, 0, 0)
    assert len(read(loader, 0)) == len(loader.batch_sampler) * 4
    assert [Path(path).name for path in loader.dataset.broken.images] == [name]


def test_an_image_far_smaller_than_the_largest_stride_is_trained_on(
    digits: DatasetFiles, build: Callable[..., Any], term: Callable[..., Any]
) -> None:
    tiny = augmented(digits, [{"multi_scale": {"ratio": [0.1, 0.1]}}])
    batch = next(data.batches_of(data.training_loader(tiny, 4, 0, 0)))
    assert all(max(image.shape[1:]) <= 6 for image in batch["inputs"])
    models = [build("gfl", seed, classes=10) for seed in (0, 1)]
    distiller = Distiller(models[0], {"rm": term("rm"), "pfi": term("pfi")}, models[1]).train()
    losses = distiller(**distiller.data_preprocessor(batch, True), mode="loss")
    assert distiller.parse_losses(losses)[0].isfinite()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "augment=yolo",
            "yolo is no preset of augmentation; known: coco, coco_ms, rtmdet, yolox, small_data",
        ),
        ("augment=[mosiac]", "mosiac is no step of augmentation"),
        ("augment=[mosiac]", "did you mean mosaic?"),
        ("augment=[3]", "a step is a name, or a name with options"),
        ("augment=7", "must be a list of steps, or a preset"),
        ("augment=[{hsv: 5}]", "a step is a name, or a name with options"),
        ("augment=[{mosaic: {p: 1}}]", "dataset.augment.0.mosaic.p"),
        ("augment=[{step: mosiac}]", "mosiac is no step of augmentation"),
        ("augment=[{random_affine: {shift: 2}}]", "less than or equal to 1"),
        ("augment=[{erase: {patches: [3, 3]}}]", "patches must ascend: 3 is not below 3"),
        ("augment=[{erase: {patches: [0, 2]}}]", "must be greater than 0"),
        ("augment=[{erase: {ratio: [0.2, 1.0]}}]", "must be less than 1"),
        ("augment=[{mixup: {ratio: [2, 1]}}]", "must ascend: 2 is above 1"),
        ("augment=[{multi_scale: {}}]", "needs either scales, two sizes, or ratio"),
        ("augment=[mosaic]", "mosaic needs dataset.scale, the size that it makes"),
        ("augment_stop=2", "augment_stop has no effect: no step of augment mixes images"),
    ],
)
def test_a_wrong_word_about_augmentation_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipes.load("digits/quickstart", [f"dataset.{setting}"])
    assert message in " ".join(str(caught.value).split())


def test_a_preset_and_its_steps_are_one_recipe() -> None:
    scale = "dataset.scale=[64, 64]"
    by_name = recipes.load("digits/quickstart", [scale, "dataset.augment=yolox"]).dataset
    named = "[mosaic, {random_affine: {scaling: [0.1, 2]}}, {mixup: {ratio: [0.8, 1.6]}}, hsv]"
    assert recipes.load("digits/quickstart", [scale, f"dataset.augment={named}"]).dataset == by_name


def test_drawn_scales_behind_a_mosaic_stay() -> None:
    drawn = augmenting.configs(steps(["mosaic", {"multi_scale": {"ratio": [0.5, 1.5]}}]), SCALE, mixing=True)
    assert [config["type"] for config in drawn] == ["Mosaic", "RandomResize", "FilterAnnotations"]
