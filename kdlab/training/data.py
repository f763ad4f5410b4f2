"""Batches of a job: mmdet's COCO dataset, in an order and with augmentation that depend on nothing else.

The batch of (seed, epoch, place) holds the same pixels whatever the workers, the resumes and the machine.
"""

from __future__ import annotations

import errno
import io
import math
import os
import pickle
import random
import resource
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, get_worker_info

from kdlab.datasets._coco_objects import fate
from kdlab.datasets._images import UnreadableError, elsewhere
from kdlab.datasets._images import broken as fault_of
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.datasets.coco import load_labels
from kdlab.errors import JobError
from kdlab.jobs.augment import AnyStep
from kdlab.training import augmenting, ranks
from kdlab.training.images import BrokenImage, BrokenImages, ImageCache, LoadImage

SHARED = Path("/dev/shm")
"""Where loader workers leave their batches."""
META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


class CheckedLabels(COCO):
    """A checked label file; its categories count in the order of their ids, as in `DatasetFiles.classes`."""

    def __init__(self, annotation_file: str) -> None:
        super().__init__()
        self.dataset = load_labels(Path(annotation_file))
        for box in self.dataset["annotations"]:
            # outlines take ten times the memory of boxes, in every loader process
            box.pop("segmentation", None)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(self, *args: Any, **kwargs: Any) -> list[int]:
        """Ascending, where pycocotools keeps the order of the file."""
        return sorted(super().get_cat_ids(*args, **kwargs))


class CocoImages(CocoDataset):
    """mmdet's dataset with label k for the k-th lowest category id.

    Where `unmixed` is a pipeline, it takes the place of the other while `mixing` is off.

    Args:
        broken: takes down the images that cannot be read and are left out; None stops at the first one.
        kwargs: of mmdet's dataset.

    Raises:
        UsageError: something is wrong with the labels.
    """

    COCOAPI = CheckedLabels

    def __init__(self, *, broken: BrokenImages | None, **kwargs: Any) -> None:
        self.broken = broken
        self.images_listed = 0
        self.fates: Counter[str] = Counter()
        self.mixing, self.unmixed = True, None
        super().__init__(**kwargs)

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        """One image and its objects; counts what becomes of each annotation."""
        image = raw_data_info["raw_img_info"]
        self.images_listed += 1
        self.fates.update(fate(box, image["width"], image["height"]) for box in raw_data_info["raw_ann_info"])
        return super().parse_data_info(raw_data_info)

    def prepare_data(self, idx: int) -> Any:
        """One sample, or a `BrokenImage` where it cannot be read."""
        pipeline = self.pipeline if self.mixing or self.unmixed is None else self.unmixed
        try:
            return pipeline(self.get_data_info(idx))
        except UnreadableError as error:
            # that of a mix can be another one
            path, folder = error.path or self.get_data_info(idx)["img_path"], self.data_prefix["img"]
            why = elsewhere(Path(folder), path.removeprefix(f"{folder}/")) or str(error)
            return BrokenImage(path, why)


class _Sharing(pickle.Pickler):
    """Moves all tensors of what it pickles into shared memory."""

    def persistent_id(self, value: Any) -> str | None:
        """Pickle no tensor."""
        if not isinstance(value, torch.Tensor):
            return None
        value.share_memory_()
        return ""


def collate(samples: list[Any]) -> dict[str, Any]:
    """`joined`; in a loader worker in shared memory, or "too_small" where that does not hold it."""
    batch = joined(samples)
    if get_worker_info() is not None:
        # torch would do it in a thread, whose failure leaves the main process waiting for ever
        try:
            _Sharing(io.BytesIO()).dump(batch)
        except (RuntimeError, OSError) as error:
            return {"too_small": str(error)}
    return batch


def joined(samples: list[Any]) -> dict[str, list[Any]]:
    """mmengine's batch of the samples that could be read, and the broken images of all under "broken"."""
    batch: dict[str, list[Any]] = {"inputs": [], "data_samples": [], "broken": []}
    for sample in samples:
        if isinstance(sample, BrokenImage):
            batch["broken"].append(sample)
            continue
        batch["broken"] += sample.pop("broken", [])
        for name, value in sample.items():
            batch[name].append(value)
    return batch


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader; broken images among them are noted here, in the main process.

    Raises:
        JobError: an image cannot be read, or shared memory does not hold a batch; raised here, because a
            worker's errors come as tracebacks.
    """
    for data in _from_workers(loader):
        if "too_small" in data:
            raise too_small(data["too_small"])
        broken = data.pop("broken")
        for image in broken:
            if loader.dataset.broken is None:
                raise JobError(faults=[fault_of(image.path, image.why)])
            loader.dataset.broken.note(image)
        if data["data_samples"]:
            yield data
        elif isinstance(loader.dataset, SeededSamples):
            raise JobError(
                "no training image can be read",
                where=broken[0].path,
                got=broken[0].why,
                fix="set dataset.root to where the images are",
            )


def _from_workers(loader: DataLoader) -> Iterator[Any]:
    try:
        yield from loader
    except (RuntimeError, OSError) as error:
        # the kernel kills a process that writes where the rest of shared memory was promised to others
        starved = "Bus error" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        if not (loader.num_workers and starved):
            raise
        raise too_small(str(error)) from error


def too_small(why: str) -> JobError:
    """The fault of a machine whose shared memory does not hold the batches of loader workers."""
    if os.strerror(errno.EMFILE) in why:
        return JobError(
            "loader workers may not open as many files as a batch has tensors",
            got=f"{why.splitlines()[0][:200]}; {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files",
            fix="raise it (ulimit -n 65536), or --set resources.workers=0",
        )
    free = f"{shutil.disk_usage(SHARED).free / 1e6:.1f} MB free; " if SHARED.is_dir() else ""
    return JobError(
        f"{SHARED} is too small for the batches of loader workers",
        got=f"{free}{why.splitlines()[0][:200] if why else ''}",
        fix="enlarge it (docker run --shm-size=2g), or --set resources.workers=0",
    )


def mmdet_dataset(
    files: DatasetFiles,
    split: Split,
    scale: Sequence[int] | None,
    flip: float | None,
    broken: BrokenImages | None = None,
    *,
    cached: bool = False,
    augment: Sequence[AnyStep] = (),
) -> CocoImages:
    """mmdet's view of a split; `flip` None is for evaluation, where no image is dropped.

    `augment` is done before the flip; what mixes images in it only while the dataset is `mixing`.

    Raises:
        JobError: decoded images are to be kept and do not fit into memory.
    """
    loading = LoadImage()
    reading = [loading, TRANSFORMS.build({"type": "LoadAnnotations", "with_bbox": True})]
    keys, last = META_KEYS, []
    if flip is not None:
        last.append({"type": "RandomFlip", "prob": flip})
        keys = (*META_KEYS, "flip", "flip_direction")
    if augment:
        # what crops and mixes has no single one
        keys = tuple(key for key in keys if key != "scale_factor")
    last.append({"type": "PackDetInputs", "meta_keys": keys})
    mixed, unmixed = (
        [*reading, *augmenting.stages(augment, scale, reading, mixing=mixing), *last]
        for mixing in (True, False)
    )
    images = CocoImages(
        broken=broken,
        ann_file=str(split.labels),
        data_prefix={"img": str(split.images)},
        metainfo={"classes": files.classes},
        # in this mode nothing is filtered
        test_mode=flip is None,
        filter_cfg={"filter_empty_gt": True, "min_size": 1},
        pipeline=mixed,
    )
    if any(step.mixes for step in augment):
        images.unmixed = Compose(unmixed)
        for stage in mixed:
            if isinstance(stage, augmenting.Mixed):
                stage.dataset = images
    if cached:
        infos = map(images.get_data_info, range(len(images)))
        loading.cache = ImageCache([(info["height"], info["width"]) for info in infos])
    return images


class SeededSamples(Dataset):
    """Samples asked for by (epoch, index), each augmented with random numbers of its own.

    Where an image is broken and left out, the next one that can be read stands in for it.
    """

    def __init__(self, dataset: CocoImages, seed: int, mixed_epochs: float) -> None:
        self.dataset, self.seed, self.broken = dataset, seed, dataset.broken
        self.mixed_epochs = mixed_epochs

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        self.dataset.mixing = epoch < self.mixed_epochs
        broken: list[BrokenImage] = []
        tries = 1 if self.broken is None else len(self)
        for step in range(tries):
            with drawing_from(np.random.SeedSequence([self.seed, epoch, index])):
                sample = self.dataset[(index + step) % len(self)]
            if not isinstance(sample, BrokenImage):
                return {**sample, "broken": broken}
            broken.append(sample)
        return {"broken": broken}

    def __len__(self) -> int:
        return len(self.dataset)


@contextmanager
def drawing_from(seeds: np.random.SeedSequence) -> Iterator[None]:
    """Inside, all global generators draw from `seeds`; afterwards they resume as if nothing had happened."""
    python, array = random.getstate(), np.random.get_state()
    one, two, three = (int(word) for word in seeds.generate_state(3))
    with torch.random.fork_rng(devices=()):
        random.seed(one)
        np.random.seed(two)
        torch.default_generator.manual_seed(three)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


class EpochBatches(Sampler):
    """The batches of one epoch from a given one on: a pure function of (seed, epoch), split over ranks.

    Each batch takes `batch_size` images over all ranks; the last few that fill no batch wait for an epoch
    with another order.

    Raises:
        JobError: there are fewer images than ranks.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.images, self.seed = images, seed
        # equal shares also of a dataset that is smaller than a batch
        self.batch_size = min(batch_size, images) // ranks * ranks
        if not self.batch_size:
            raise JobError("there are fewer images than processes", got=f"{images} images, {ranks} processes")
        self.rank, self.ranks = rank, ranks
        self.start_at(epoch=0, batch=0)

    def start_at(self, epoch: int, batch: int) -> None:
        """Resume with this batch of this epoch, without reading those before it."""
        self.epoch, self.first = epoch, batch

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        for batch in range(self.first, len(self)):
            members = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.ranks]
            yield [(self.epoch, int(index)) for index in members]


def training_loader(
    dataset: CocoImages,
    batch_size: int,
    seed: int,
    workers: int,
    *,
    pinned: bool = False,
    mixed_epochs: float = math.inf,
) -> DataLoader:
    """This process's share of the batches; `loader.batch_sampler.start_at` chooses where to begin.

    Where they are `pinned`, their copies to a GPU can go beside what it computes. Images are mixed in the
    first `mixed_epochs` only.
    """
    return DataLoader(
        SeededSamples(dataset, seed, mixed_epochs),
        batch_sampler=EpochBatches(len(dataset), batch_size, seed, ranks.rank(), ranks.count()),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        pin_memory=pinned,
        # otherwise each new iterator would draw its workers' seed from the global generator
        generator=torch.Generator(),
    )


def evaluation_loader(
    dataset: CocoImages, batch_size: int, workers: int, rank: int = 0, ranks: int = 1, *, pinned: bool = False
) -> DataLoader:
    """All images in order, or of the same batches those that fall to this rank."""
    # whole batches, because an image is padded as its batch is, which a convolution sees
    batches = list(BatchSampler(range(len(dataset)), batch_size, drop_last=False))
    return DataLoader(
        dataset,
        batch_sampler=batches[rank::ranks],
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_one_thread,
        pin_memory=pinned,
        generator=torch.Generator(),
    )


def _one_thread(_worker: int) -> None:
    """Keep a worker to its core: OpenCV takes all of them."""
    cv2.setNumThreads(0)


def reading_report(dataset: CocoImages) -> dict[str, int]:
    """Counts of what training reads of its labels, and of what it drops or ignores."""
    dropped = {f"boxes_{why}": dataset.fates[why] for why in ("without_area", "outside", "marked")}
    return {
        "images": len(dataset),
        "objects": dataset.fates["object"],
        "images_dropped": dataset.images_listed - len(dataset),
        "crowds_ignored": dataset.fates["crowd"],
        "boxes_dropped": sum(dropped.values()),
        **dropped,
    }


def reading_words(report: dict[str, int]) -> str:
    """A report as one line of the log."""
    names = {
        "images_dropped": "images without objects",
        "boxes_without_area": "boxes smaller than a pixel or of area 0",
        "boxes_outside": "boxes outside their image",
        "boxes_marked": "boxes marked `ignore`",
        "crowds_ignored": "crowds and difficult objects",
    }
    words = f"training on {report['images']} images with {report['objects']} objects"
    left_out = [f"{name} {report[key]}" for key, name in names.items() if report[key]]
    if left_out:
        words += f"; left out: {', '.join(left_out)}"
    return words
