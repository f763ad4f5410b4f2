"""What a job reads follows from its settings, and its report from what was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets import coco, voc
from kdlab.datasets._tuning_split import tuning_split
from kdlab.datasets.base import DatasetFiles
from kdlab.jobs.paths import JobPaths
from kdlab.training.reading import Reading
from tests.stubs.jobs import make

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def reading_of(files: DatasetFiles, folder: Path, batch_size: int = 4) -> Reading:
    job = make("student-1", inputs={"dataset": files}, schedule={"batch_size": batch_size})
    return Reading(job, JobPaths(folder))


@pytest.fixture
def reading(torch_: Any, digits: Any, tmp_path: Path) -> Reading:
    return reading_of(digits, tmp_path)


def test_training_images_are_told_in_the_log_and_in_the_report(
    reading: Reading, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "images" not in reading.report()
    loader = reading.training()
    assert "training on 24 images" in capsys.readouterr().out
    assert reading.report()["images"] == 24
    assert next(iter(loader))["inputs"][0].shape == (3, 64, 64)


def test_validation_images_come_in_order_and_are_no_part_of_the_report(reading: Reading) -> None:
    ids = [sample.img_id for batch in reading.validation() for sample in batch["data_samples"]]
    assert len(ids) == 8
    assert ids == sorted(ids)
    assert "images" not in reading.report()


def real_set(name: str) -> DatasetFiles:
    if name == "bccd":
        folders = {folder: folder for folder in ("images", "annotations", "splits")}
        return voc.prepare(root=str(DATA / name), train=("train",), val=("val",), **folders)
    images = {f"{part}_images": f"images/{part}" for part in ("train", "val")}
    labels = {f"{part}_labels": f"annotations/instances_{part}.json" for part in ("train", "val")}
    return coco.prepare(root=str(DATA / name), **images, **labels)


@pytest.mark.parametrize(("name", "metrics"), [("coco-mini-cc", {"AP"}), ("bccd", {"AP", "VOC07", "VOC12"})])
def test_tuning_split_of_a_real_set_is_read_and_measured(
    torch_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, metrics: set[str]
) -> None:
    if not (DATA / name).is_dir():
        pytest.skip("the real data is not here")
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    reading = reading_of(tuning_split(real_set(name), 0.1), tmp_path, batch_size=1)
    metric, measured = reading.metric(), set()
    for batch in reading.validation():
        (sample,) = batch["data_samples"]
        truth = sample.gt_instances
        found = {
            "bboxes": truth.bboxes.tensor,
            "labels": truth.labels,
            "scores": torch_.ones(len(truth)),
        }
        metric.process([{"img_id": sample.img_id, "pred_instances": found}])
        measured.add(sample.img_path)
    told = metric.of_all([metric.results]).metrics
    assert {key: told[key] for key in metrics} == dict.fromkeys(metrics, pytest.approx(100, abs=0.5))
    trained = reading.training().dataset.dataset
    learned = {trained.get_data_info(place)["img_path"] for place in range(len(trained))}
    assert learned
    assert not learned & measured
    assert metric.matches().right.any()
