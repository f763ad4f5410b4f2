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
from PIL import Image

from kdlab.datasets import coco, voc
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.errors import JobError, UsageError
from kdlab.training import images as image_files
from kdlab.training.data import (
    EpochBatches,
    batches_of,
    evaluation_loader,
    mmdet_dataset,
    reading_report,
    reading_words,
    too_small,
    training_loader,
)
from kdlab.training.evaluation import CocoMetric, evaluate
from kdlab.training.images import BrokenImages, ImageCache

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

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


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_images_are_read_once_and_change_no_pixel(
    digits: DatasetFiles, dataset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    read = image_files.content_of

    def noted(path: Path) -> bytes:
        with (tmp_path / "read").open("a") as file:
            file.write(f"{path.name}\n")
        return read(path)

    monkeypatch.setattr(image_files, "content_of", noted)
    kept = mmdet_dataset(digits, digits.train, None, flip=0.5, cached=True)
    loaders = training_loader(dataset, 5, 0, 0), training_loader(kept, 5, 0, workers)
    for epoch in (0, 1):
        if epoch:
            (tmp_path / "read").unlink()
        for loader in loaders:
            loader.batch_sampler.start_at(epoch, 0)
        for plain, cached in zip(*map(batches_of, loaders), strict=True):
            assert all(map(torch.equal, plain["inputs"], cached["inputs"]))
    # 20 of the 24 images for the plain loader; 4 had no turn in the first epoch
    assert 20 <= len((tmp_path / "read").read_text().split()) <= 20 + 4


def test_images_of_another_size_than_their_labels_say_are_not_kept() -> None:
    cache, wide = ImageCache([(2, 3), (2, 2)]), np.ones((4, 4, 3), np.uint8)
    assert cache.image(0, lambda: wide) is wide
    small = np.full((2, 2, 3), 7, np.uint8)
    cache.image(1, lambda: small)[:] = 0
    assert (cache.image(1, lambda: pytest.fail("read again")) == 7).all()


def test_images_that_do_not_fit_into_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=r"do not fit into memory\n +got +30000.0 GB"):
        ImageCache([(100_000, 100_000)] * 1000)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    stat = tmp_path / "memory.stat"
    stat.write_text("anon 400000\ninactive_file 0\n")
    monkeypatch.setattr(image_files, "_CGROUP", tmp_path)
    with pytest.raises(JobError, match=r"0.0 GB, 0.0 GB free"):
        ImageCache([(200, 200)])
    # files that were read give way
    stat.write_text("anon 400000\ninactive_file 500000\n")
    ImageCache([(200, 200)])
    monkeypatch.setattr(image_files.ranks, "count", lambda: 5)
    with pytest.raises(JobError, match=r"0.0 GB, 0.0 GB free"):
        ImageCache([(200, 200)])


def test_a_batch_of_more_tensors_than_open_files_says_so() -> None:
    error = too_small("Could not get fd: Too many open files (24)")
    assert "open" in str(error)
    assert "/dev/shm" not in str(error)
    assert "ulimit -n" in str(error)


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


def test_ranks_have_equal_shares_of_a_data_set_smaller_than_a_batch() -> None:
    shares = [list(EpochBatches(images=5, batch_size=8, seed=0, rank=rank, ranks=2)) for rank in (0, 1)]
    assert [len(batch) for share in shares for batch in share] == [2, 2]


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(JobError, match="fewer images than processes"):
        EpochBatches(images=1, batch_size=8, seed=0, ranks=2)


def test_ranks_evaluate_the_batches_of_one_process_between_them(digits: DatasetFiles) -> None:
    val = mmdet_dataset(digits, digits.val, None, None)

    def batches(rank: int, ranks: int) -> list[list[int]]:
        loader = evaluation_loader(val, 3, 0, rank, ranks)
        return [[sample.img_id for sample in data["data_samples"]] for data in loader]

    whole, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert first == whole[::2]
    assert second == whole[1::2]


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


class TestBrokenImages:
    """Of four training images, number 1 is cut short and number 2 is not there."""

    @pytest.fixture
    def damaged(self, tmp_path: Path) -> DatasetFiles:
        listed, boxes = [], []
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
            listed.append({"id": number, "file_name": f"{number}.jpg", "width": 48, "height": 32})
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [number, 2, 20, 20]})
        content = (tmp_path / "1.jpg").read_bytes()
        (tmp_path / "1.jpg").write_bytes(content[: len(content) // 2])
        (tmp_path / "2.jpg").unlink()
        labels = tmp_path / "labels.json"
        categories = [{"id": 1, "name": "a"}]
        labels.write_text(json.dumps({"images": listed, "annotations": boxes, "categories": categories}))
        split = Split(tmp_path, labels)
        return DatasetFiles("x", ("a",), split, split, "")

    def names(self, broken: BrokenImages) -> list[str]:
        return sorted(Path(path).name for path in broken.images)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_stop_names_the_file_and_the_way_on(self, damaged: DatasetFiles, workers: int) -> None:
        images = mmdet_dataset(damaged, damaged.train, None, flip=0.0)
        with pytest.raises(JobError, match="cannot be read") as raised:
            list(batches_of(training_loader(images, 1, 0, workers)))
        assert Path(raised.value.faults[0].where).name in ("1.jpg", "2.jpg")
        assert "dataset.broken_images=skip" in raised.value.faults[0].fix

    @pytest.mark.parametrize("workers", [0, 2])
    def test_skip_trains_on_the_next_one_instead_and_tells(self, damaged: DatasetFiles, workers: int) -> None:
        broken = BrokenImages()
        images = mmdet_dataset(damaged, damaged.train, None, 0.5, broken)
        loader = training_loader(images, 2, 0, workers)
        seen = [sample.img_id for data in batches_of(loader) for sample in data["data_samples"]]
        order = [{1: 3, 2: 3}.get(index, index) for batch in EpochBatches(4, 2, 0) for _, index in batch]
        assert seen == order
        assert self.names(broken) == ["1.jpg", "2.jpg"]

    def test_after_the_last_image_comes_the_first(self, damaged: DatasetFiles) -> None:
        (damaged.train.images / "3.jpg").unlink()
        images = mmdet_dataset(damaged, damaged.train, None, 0.5, BrokenImages())
        (data,) = batches_of(training_loader(images, 4, 0, 0))
        assert {sample.img_id for sample in data["data_samples"]} == {0}
        assert len(data["data_samples"]) == 4

    def test_skip_gives_the_same_batches_with_workers_and_without(self, damaged: DatasetFiles) -> None:
        images = mmdet_dataset(damaged, damaged.train, None, 0.5, BrokenImages())
        alone, shared = (training_loader(images, 2, 0, workers) for workers in (0, 2))
        assert same(read(alone), read(shared))

    def test_no_image_at_all_stops_also_with_skip(self, damaged: DatasetFiles) -> None:
        for name in ("0.jpg", "3.jpg"):
            (damaged.train.images / name).unlink()
        images = mmdet_dataset(damaged, damaged.train, None, 0.5, BrokenImages())
        with pytest.raises(JobError, match="no training image can be read"):
            list(batches_of(training_loader(images, 2, 0, 0)))

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_evaluation_leaves_them_out(self, damaged: DatasetFiles, workers: int, batch: int) -> None:
        broken = BrokenImages()
        loader = evaluation_loader(mmdet_dataset(damaged, damaged.val, None, None, broken), batch, workers)
        seen = [sample.img_id for data in batches_of(loader) for sample in data["data_samples"]]
        assert seen == [0, 3]
        assert self.names(broken) == ["1.jpg", "2.jpg"]

    def test_the_objects_of_what_is_left_out_are_left_out_of_ap(self, damaged: DatasetFiles) -> None:
        loader = evaluation_loader(mmdet_dataset(damaged, damaged.val, None, None, BrokenImages()), 2, 0)
        metric = CocoMetric(damaged.val.labels, damaged.classes, ("coco", "voc"))
        found = evaluate(Oracle(), loader, metric)
        assert [found.metrics[name] for name in ("AP", "VOC07", "VOC12")] == pytest.approx([100, 100, 100])


class Oracle(torch.nn.Module):
    """Finds each object where it is."""

    def val_step(self, data: Any) -> Any:
        for sample in data["data_samples"]:
            found = sample.gt_instances
            found.bboxes = found.bboxes.tensor
            found.scores = torch.ones(len(found))
            sample.pred_instances = found
        return data["data_samples"]


def drop_report(folder: Path, boxes: list[dict[str, Any]]) -> tuple[dict[str, int], Any]:
    """The report over one image of 100 x 80 px with these boxes and one without any, and mmdet's objects."""
    size = {"width": 100, "height": 80}
    content = {
        "images": [{"id": 0, "file_name": "0.png", **size}, {"id": 1, "file_name": "1.png", **size}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": 1, **box} for number, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "a"}],
    }
    labels = folder / "labels.json"
    labels.write_text(json.dumps(content))
    split = Split(folder, labels)
    images = mmdet_dataset(DatasetFiles("x", ("a",), split, split, ""), split, None, 0.0)
    return reading_report(images), images.get_data_info(0)["instances"]


WHOLE = {"bbox": [5, 5, 20, 20]}


@pytest.mark.parametrize(
    ("box", "counted"),
    [
        ({"bbox": [5, 5, 0, 0]}, "boxes_without_area"),
        ({"bbox": [5, 5, 0.5, 9]}, "boxes_without_area"),
        ({"bbox": [5, 5, 9, 9], "area": 0}, "boxes_without_area"),
        ({"bbox": [100, 5, 9, 9]}, "boxes_outside"),
        ({"bbox": [5, -20, 9, 9]}, "boxes_outside"),
        ({"bbox": [5, 5, 9, 9], "ignore": 1}, "boxes_marked"),
        ({"bbox": [5, 5, 9, 9], "iscrowd": 1}, "crowds_ignored"),
        ({"bbox": [-5, -5, 9, 9]}, "objects"),
        ({"bbox": [95, 75, 90, 90]}, "objects"),
    ],
)
def test_what_mmdet_makes_of_a_box_is_what_is_counted(
    tmp_path: Path, box: dict[str, Any], counted: str
) -> None:
    report, instances = drop_report(tmp_path, [WHOLE, box])
    assert sum(1 for instance in instances if not instance["ignore_flag"]) == report["objects"]
    assert report["objects"] == (2 if counted == "objects" else 1)
    assert report[counted] == (2 if counted == "objects" else 1)
    assert report["boxes_dropped"] == 2 - len(instances)
    assert report["images_dropped"] == 1


def test_what_is_left_out_is_told_in_words(tmp_path: Path) -> None:
    report, _ = drop_report(tmp_path, [WHOLE, {"bbox": [5, 5, 0, 0]}, {"bbox": [1, 1, 9, 9], "iscrowd": 1}])
    assert reading_words(report) == (
        "training on 1 images with 1 objects; left out: images without objects 1, "
        "boxes smaller than a pixel or of area 0 1, crowds and difficult objects 1"
    )


def test_images_lie_in_subfolders(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    Image.new("RGB", (48, 32)).save(tmp_path / "deep/er/0.png")
    image = {"id": 0, "file_name": "deep/er/0.png", "width": 48, "height": 32}
    box = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 2, 20, 20]}
    labels = tmp_path / "labels.json"
    content = {"images": [image], "annotations": [box], "categories": [{"id": 0, "name": "a"}]}
    labels.write_text(json.dumps(content))
    split = Split(tmp_path, labels)
    sample = mmdet_dataset(DatasetFiles("x", ("a",), split, split, ""), split, None, 0.0)[0]
    assert sample["data_samples"].gt_instances.bboxes.tensor.tolist() == [[1, 2, 21, 22]]


def test_bad_labels_stop_the_job_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a category that is not listed"):
        drop_report(tmp_path, [WHOLE | {"category_id": 9}])


@pytest.mark.parametrize(("split", "name"), [("train", "instances_train"), ("val", "instances_val")])
def test_real_coco_labels_with_crowds_are_read(split: str, name: str) -> None:
    root = DATA / "coco-mini-cc"
    if not root.is_dir():
        pytest.skip("the real data is not here")
    files = coco.prepare(
        root=str(root), train_images="images/train", val_images="images/val",
        train_labels="annotations/instances_train.json", val_labels="annotations/instances_val.json",
    )  # fmt: skip
    images = mmdet_dataset(files, getattr(files, split), None, 0.0)
    report = reading_report(images)
    content = json.loads(getattr(files, split).labels.read_text())
    assert report["objects"] + report["crowds_ignored"] == len(content["annotations"])
    assert report["crowds_ignored"] == {"train": 6, "val": 8}[split]
    assert report["images_dropped"] == {"train": 0, "val": 2}[split]
    assert images[0]["inputs"].ndim == 3


def test_voc_and_coco_labels_of_the_same_boxes_drop_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = DATA / "bccd"
    if not root.is_dir():
        pytest.skip("the real data is not here")
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    options = {"images": "images", "annotations": "annotations", "splits": "splits"}
    as_voc = voc.prepare(root=str(root), train=("train",), val=("val",), **options)
    (tmp_path / "coco").mkdir()
    for part in ("train", "val"):
        content = json.loads(getattr(as_voc, part).labels.read_text())
        for image in content["images"]:
            image["file_name"] = image["file_name"].removeprefix("images/")
        for box in content["annotations"]:
            del box["area"], box["iscrowd"]
        (tmp_path / "coco" / f"{part}.json").write_text(json.dumps(content))
    folders = {"train_images": str(root / "images"), "val_images": str(root / "images")}
    as_coco = coco.prepare(
        root=str(tmp_path / "coco"), train_labels="train.json", val_labels="val.json", **folders
    )
    sets = [mmdet_dataset(files, files.train, None, 0.0) for files in (as_voc, as_coco)]
    reports = [reading_report(images) for images in sets]
    assert reports[0] == reports[1]
    assert (reports[0]["images"], reports[0]["boxes_without_area"]) == (205, 1)
    for index in range(205):
        mine, theirs = (images.get_data_info(index)["instances"] for images in sets)
        assert mine == theirs


def test_hand_written_voc_and_coco_labels_drop_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # corners of VOC count from 1: a whole box, one without area, one outside, one difficult; then no object
    corners = [(6, 6, 26, 26, 0), (6, 6, 6, 6, 0), (101, 6, 110, 15, 0), (2, 2, 11, 11, 1)]
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    size = "<size><width>100</width><height>80</height></size>"
    objects = "".join(
        f"<object><name>a</name><difficult>{hard}</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for x, y, right, bottom, hard in corners
    )
    for stem, content in (("0", objects), ("1", "")):
        (tmp_path / "JPEGImages" / f"{stem}.jpg").touch()
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{content}</annotation>")
    for part in ("train", "val"):
        (tmp_path / "ImageSets/Main" / f"{part}.txt").write_text("0\n1\n")
    files = voc.prepare(root=str(tmp_path))
    boxes = [
        {"bbox": [x - 1, y - 1, right - x, bottom - y], "iscrowd": hard}
        for x, y, right, bottom, hard in corners
    ]
    as_coco, instances = drop_report(tmp_path, boxes)
    as_voc = mmdet_dataset(files, files.train, None, 0.0)
    assert reading_report(as_voc) == as_coco
    assert as_voc.get_data_info(0)["instances"] == instances
    assert [as_coco[key] for key in ("objects", "boxes_without_area", "boxes_outside", "crowds_ignored",
                                     "images_dropped")] == [1, 1, 1, 1, 1]  # fmt: skip


@pytest.mark.parametrize("box", [None, {"area": 0}, {"iscrowd": 1}, {"ignore": 1}, {"bbox": [100, 5, 9, 9]}])
def test_labels_of_which_no_object_is_left_are_refused(box: dict[str, Any] | None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no object is left"):
        drop_report(tmp_path, [] if box is None else [{"bbox": [5, 5, 9, 9], **box}])


class TestSharedMemory:
    @pytest.fixture
    def loader(self, tmp_path: Path) -> Any:
        """One batch from a loader worker."""
        Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
        drop_report(tmp_path, [WHOLE])
        split = Split(tmp_path, tmp_path / "labels.json")
        images = mmdet_dataset(DatasetFiles("x", ("a",), split, split, ""), split, None, 0.0)
        return training_loader(images, 1, 0, workers=1)

    def test_all_tensors_of_a_batch_are_shared_by_the_worker(self, loader: Any) -> None:
        (data,) = batches_of(loader)
        assert data["inputs"][0].is_shared()
        assert data["data_samples"][0].gt_instances.labels.is_shared()

    def test_too_little_of_it_ends_the_job_with_cause_and_fix(
        self, loader: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(tensor: Any) -> None:
            raise RuntimeError("unable to allocate shared memory: No space left on device (28)")

        # workers are forked and have it too
        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
        with pytest.raises(JobError, match="/dev/shm is too small") as caught:
            next(batches_of(loader))
        (fault,) = caught.value.faults
        assert "No space left on device" in fault.got
        assert "--shm-size" in fault.fix
        assert "resources.workers=0" in fault.fix

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"),
            OSError(28, "No space left on device"),
        ],
    )
    def test_a_worker_that_the_kernel_kills_for_it_is_told_the_same(
        self, error: Exception, loader: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(_: Any) -> Any:
            raise error

        monkeypatch.setattr(type(loader), "__iter__", killed)
        with pytest.raises(JobError, match="/dev/shm is too small"):
            next(batches_of(loader))

    def test_another_error_of_a_worker_stays_what_it_is(
        self, loader: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: Any) -> Any:
            raise RuntimeError("shapes differ")

        monkeypatch.setattr(type(loader), "__iter__", broken)
        with pytest.raises(RuntimeError, match="shapes differ"):
            next(batches_of(loader))
