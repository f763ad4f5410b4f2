"""A batch is a function of (seed, epoch, place), whatever the workers, the resumes and the ranks."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdlab.datasets.base import DatasetFiles, Split
from kdlab.errors import JobError
from kdlab.training.data import (
    EpochBatches,
    batches_of,
    evaluation_loader,
    mmdet_dataset,
    reading_report,
    training_loader,
)

pytestmark = pytest.mark.usefixtures("torch_")


@pytest.fixture(scope="module")
def dataset(digits: DatasetFiles, torch_: Any) -> Any:
    return mmdet_dataset(digits, digits.train, None, flip=0.5)


def read(loader: Any, epoch: int = 0, batch: int = 0) -> list[tuple[Any, ...]]:
    """Pixels, boxes and labels of the rest of an epoch."""
    loader.batch_sampler.start_at(epoch, batch)
    return [
        (image, sample.gt_instances.bboxes.tensor, sample.gt_instances.labels, sample.img_id, sample.flip)
        for data in loader
        for image, sample in zip(data["inputs"], data["data_samples"], strict=True)
    ]


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))
        for rows in zip(one, other, strict=True)
        for mine, theirs in zip(*rows, strict=True)
    )


def test_workers_change_no_pixel(dataset: Any) -> None:
    alone, shared = (training_loader(dataset, 5, 0, workers) for workers in (0, 2))
    for epoch in (0, 1):
        assert same(read(alone, epoch), read(shared, epoch))


def test_some_images_are_flipped_and_some_are_not(dataset: Any) -> None:
    flipped = [sample[-1] for sample in read(training_loader(dataset, 6, 0, 0))]
    assert 0 < sum(flipped) < len(flipped)


def test_going_on_at_a_batch_gives_what_would_have_come(dataset: Any) -> None:
    whole = read(training_loader(dataset, 5, 3, 0), epoch=2)
    rest = read(training_loader(dataset, 5, 3, 0), epoch=2, batch=3)
    assert same(whole[3 * 5 :], rest)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_differ_in_order_and_flips(dataset: Any, change: dict[str, int]) -> None:
    first = read(training_loader(dataset, 24, 0, 0))
    other = read(training_loader(dataset, 24, change.get("seed", 0), 0), change.get("epoch", 0))
    assert [sample[3] for sample in first] != [sample[3] for sample in other]
    flips = [{sample[3]: sample[4] for sample in samples} for samples in (first, other)]
    assert flips[0] != flips[1]


def test_an_epoch_shows_every_image_once_and_leaves_out_what_fills_no_batch() -> None:
    sampler = EpochBatches(images=10, batch_size=4, seed=0)
    seen = [index for batch in sampler for _, index in batch]
    assert len(sampler) == 2
    assert len(seen) == len(set(seen)) == 8


def test_a_batch_larger_than_the_data_set_takes_all_of_it() -> None:
    sampler = EpochBatches(images=3, batch_size=8, seed=0)
    assert [sorted(batch) for batch in sampler] == [[(0, 0), (0, 1), (0, 2)]]


def test_ranks_share_each_batch() -> None:
    whole = list(EpochBatches(images=12, batch_size=6, seed=1))
    parts = [list(EpochBatches(images=12, batch_size=6, seed=1, rank=rank, ranks=2)) for rank in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share) for share in shares] == [3, 3]
        assert sorted(shares[0] + shares[1]) == sorted(batch)


def test_reading_leaves_the_global_generators_alone(dataset: Any, digits: DatasetFiles) -> None:
    val = mmdet_dataset(digits, digits.val, None, None)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    expected = draw()
    for workers in (0, 1):
        seed()
        read(training_loader(dataset, 5, 0, workers))
        list(evaluation_loader(val, 8, workers))
        assert draw() == expected


def test_global_generators_change_nothing_that_is_read(dataset: Any) -> None:
    np.random.seed(1)
    first = read(training_loader(dataset, 6, 0, 0))
    np.random.seed(2)
    assert same(first, read(training_loader(dataset, 6, 0, 0)))


def test_evaluation_reads_all_images_in_order_and_unflipped(digits: DatasetFiles) -> None:
    loader = evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 3, 0)
    samples = [sample for data in loader for sample in data["data_samples"]]
    expected = [image["id"] for image in json.loads(digits.val.labels.read_text())["images"]]
    assert [sample.img_id for sample in samples] == expected
    assert not any("flip" in sample.metainfo for sample in samples)


def test_images_are_resized_to_fit_the_scale(digits: DatasetFiles) -> None:
    sample = mmdet_dataset(digits, digits.train, [96, 48], None)[0]
    assert sample["inputs"].shape == (3, 48, 48)
    assert sample["data_samples"].scale_factor == (0.75, 0.75)


@pytest.fixture
def written(tmp_path: Path, digits: DatasetFiles) -> DatasetFiles:
    """The training images with labels of our own: ids out of order, and boxes that are none."""
    image = json.loads(digits.train.labels.read_text())["images"]
    boxes = [
        {"image_id": image[0]["id"], "category_id": 3, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0},
        {"image_id": image[0]["id"], "category_id": 9, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0},
        {"image_id": image[0]["id"], "category_id": 3, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 1},
        {"image_id": image[0]["id"], "category_id": 3, "bbox": [8, 8, 0.5, 9], "area": 4, "iscrowd": 0},
    ]
    content = {
        "images": image[:2],
        "categories": [{"id": 9, "name": "late"}, {"id": 3, "name": "early"}],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes)],
    }
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(content))
    return replace(digits, classes=("early", "late"), train=Split(digits.train.images, labels))


def test_label_k_is_the_kth_lowest_category_id(written: DatasetFiles) -> None:
    sample = mmdet_dataset(written, written.train, None, flip=0.0)[0]["data_samples"]
    by_corner = dict(
        zip(
            sample.gt_instances.bboxes.tensor[:, 0].tolist(), sample.gt_instances.labels.tolist(), strict=True
        )
    )
    assert by_corner == {5.0: 0, 8.0: 1}


def test_crowds_are_ignored_by_the_loss(written: DatasetFiles) -> None:
    sample = mmdet_dataset(written, written.train, None, flip=0.0)[0]["data_samples"]
    assert len(sample.ignored_instances) == 1


def test_images_without_objects_are_left_out_of_training_only(written: DatasetFiles) -> None:
    assert len(mmdet_dataset(written, written.train, None, flip=0.0)) == 1
    assert len(mmdet_dataset(written, written.train, None, flip=None)) == 2


def test_report_counts_what_was_read_and_what_was_not(written: DatasetFiles) -> None:
    report = reading_report(mmdet_dataset(written, written.train, None, flip=0.0))
    assert report == {
        "images": 1, "objects": 2, "images_dropped": 1, "crowds_ignored": 1, "boxes_dropped": 1,
        "boxes_without_area": 1, "boxes_outside": 0, "boxes_marked": 0,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_named(tmp_path: Path, written: DatasetFiles, workers: int) -> None:
    moved = replace(written, train=Split(tmp_path, written.train.labels))
    images = mmdet_dataset(moved, moved.train, None, flip=0.0)
    with pytest.raises(JobError, match="cannot be read") as raised:
        next(batches_of(training_loader(images, 1, 0, workers)))
    assert raised.value.faults[0].where.startswith(str(tmp_path))


def test_labels_without_any_object_are_refused(tmp_path: Path) -> None:
    labels = tmp_path / "train.json"
    image = {"id": 1, "file_name": "a.png", "height": 64, "width": 64}
    labels.write_text(
        json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    )
    split = Split(tmp_path, labels)
    with pytest.raises(JobError, match="no image of the labels has an object"):
        mmdet_dataset(DatasetFiles("x", ("a",), split, split, ""), split, None, 0.0)
