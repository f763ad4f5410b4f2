"""What a job reads follows from its settings, and its report from what was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs.job import Job, JobPaths
from kdlab.training.reading import Reading


@pytest.fixture
def reading(torch_: Any, digits: Any, tmp_path: Path) -> Reading:
    settings = {
        "dataset": {"scale": None, "flip": 0.5, "broken_images": "stop"},
        "schedule": {"batch_size": 4},
    }
    job = Job("student-1", "student", "rm", 0, settings, inputs={"dataset": digits.to_dict()})
    return Reading(job, JobPaths(tmp_path))


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
