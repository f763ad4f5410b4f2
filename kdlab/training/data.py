"""What a model reads: mmdet's COCO data set, in an order and with augmentation that depend on nothing else.

The batch of (seed, epoch, place) holds the same pixels whatever the workers, the resumes and the machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader, Dataset, Sampler

from kdlab.datasets.base import DatasetFiles, Split
from kdlab.errors import JobError


class CategoriesById(COCO):
    """A label file whose categories count in the order of their ids, as `DatasetFiles.classes` does."""

    def get_cat_ids(self, *args: Any, **kwargs: Any) -> list[int]:
        """Ascending, where pycocotools keeps the order of the file."""
        return sorted(super().get_cat_ids(*args, **kwargs))


class CocoImages(CocoDataset):
    """mmdet's data set with label k for the k-th lowest category id."""

    COCOAPI = CategoriesById

    def filter_data(self) -> list[dict[str, Any]]:
        """The images that are read.

        Raises:
            JobError: none is left.
        """
        kept: list[dict[str, Any]] = super().filter_data()
        if not kept:
            raise JobError(
                "no image of the labels has an object", where=self.ann_file, fix="use other labels"
            )
        return kept

    def prepare_data(self, idx: int) -> Any:
        """One sample; a `JobError` where its image is missing or broken, for `batches_of` to raise."""
        try:
            return super().prepare_data(idx)
        except (OSError, AssertionError, cv2.error) as error:
            return JobError(
                "an image cannot be read",
                where=self.get_data_info(idx)["img_path"],
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                fix="mend the file, or take it out of the labels",
            )


def collate(samples: list[Any]) -> Any:
    """mmengine's batch of the samples, or the error among them."""
    errors = [sample for sample in samples if isinstance(sample, JobError)]
    return errors[0] if errors else pseudo_collate(samples)


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader.

    Raises:
        JobError: an image cannot be read; raised here, because a worker's errors come as tracebacks.
    """
    for data in loader:
        if isinstance(data, JobError):
            raise data
        yield data


def mmdet_dataset(
    files: DatasetFiles, split: Split, scale: list[int] | None, flip: float | None
) -> CocoDataset:
    """mmdet's view of a split; `flip` None is for evaluation, where no image is dropped."""
    resize = (
        {"scale": tuple(scale), "keep_ratio": True} if scale else {"scale_factor": 1.0, "keep_ratio": True}
    )
    augment = [] if flip is None else [{"type": "RandomFlip", "prob": flip}]
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
    return CocoImages(
        ann_file=str(split.labels),
        data_prefix={"img": str(split.images)},
        metainfo={"classes": files.classes},
        test_mode=flip is None,
        filter_cfg=None if flip is None else {"filter_empty_gt": True, "min_size": 1},
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True},
            {"type": "Resize", **resize},
            *augment,
            {"type": "PackDetInputs", "meta_keys": keys if augment else keys[:5]},
        ],
    )


class SeededSamples(Dataset):
    """Samples asked for by (epoch, index), each augmented with random numbers of its own."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        with drawing_from(np.random.SeedSequence([self.seed, epoch, index])):
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


@contextmanager
def drawing_from(seeds: np.random.SeedSequence) -> Iterator[None]:
    """Inside, all global generators draw from `seeds`; afterwards they go on as if nothing had happened."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    one, two, three = (int(word) for word in seeds.generate_state(3))
    random.seed(one), np.random.seed(two), torch.default_generator.manual_seed(three)
    try:
        yield
    finally:
        random.setstate(before[0]), np.random.set_state(before[1]), torch.set_rng_state(before[2])


class EpochBatches(Sampler):
    """The batches of one epoch from a given one on: a pure function of (seed, epoch), split over ranks.

    Each batch takes `batch_size` images over all ranks; the last few that fill no batch wait for an epoch
    with another order.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.images, self.batch_size, self.seed = images, min(batch_size, images), seed
        self.rank, self.ranks = rank, ranks
        self.epoch, self.first = 0, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Go on with this batch of this epoch, without reading those before it."""
        self.epoch, self.first = epoch, batch

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        for batch in range(self.first, len(self)):
            members = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.ranks]
            yield [(self.epoch, int(index)) for index in members]


def training_loader(dataset: Any, batch_size: int, seed: int, workers: int) -> DataLoader:
    """Batches for training; `loader.batch_sampler.start_at` chooses where to begin."""
    return DataLoader(
        SeededSamples(dataset, seed),
        batch_sampler=EpochBatches(len(dataset), batch_size, seed),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # otherwise each new iterator would draw its workers' seed from the global generator
        generator=torch.Generator(),
    )


def evaluation_loader(dataset: Any, batch_size: int, workers: int) -> DataLoader:
    """All images in order."""
    return DataLoader(
        dataset, batch_size, collate_fn=collate, num_workers=workers, generator=torch.Generator()
    )


def reading_report(files: DatasetFiles, dataset: Any) -> dict[str, int]:
    """What training reads of its labels and what it drops: images without objects, boxes that are none."""
    labels = json.loads(files.train.labels.read_text())
    crowds = sum(1 for box in labels["annotations"] if box.get("iscrowd"))
    instances = [box for index in range(len(dataset)) for box in dataset.get_data_info(index)["instances"]]
    kept = sum(1 for box in instances if not box["ignore_flag"])
    return {
        "images": len(dataset),
        "objects": kept,
        "images_dropped": len(labels["images"]) - len(dataset),
        "crowds_ignored": crowds,
        "boxes_dropped": len(labels["annotations"]) - kept - crowds,
    }
