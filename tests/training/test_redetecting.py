"""Detections of finished jobs: kept by the job itself, or made anew and the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdlab import detectors
from kdlab.errors import JobError, UsageError
from kdlab.jobs.detections import Detections
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.training import checkpoints
from kdlab.training.job import run_job
from kdlab.training.redetecting import redetect
from tests.stubs.jobs import make


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, model_settings: Any, digits: Any) -> Job:
    """The evaluation of a model that finds something."""
    torch.manual_seed(3)
    model = detectors.build(model_settings("gfl"), len(digits.classes))
    torch.nn.init.normal_(model.bbox_head.gfl_cls.weight, std=1.0)
    path: Path = tmp_path_factory.mktemp("outside") / "teacher.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    return make(
        "evaluate-1",
        "teacher",
        inputs={"dataset": digits, "checkpoint": str(path)},
        model=model_settings("gfl").model_dump(mode="json"),
        checkpoint=checkpoints.sha256(path),
        batch_size=3,
    )


@pytest.fixture
def done(tmp_path: Path, job: Job) -> JobPaths:
    paths = JobPaths(tmp_path / job.id)
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    assert run_job(paths) is not None
    return paths


def whole(paths: JobPaths) -> dict[str, Any]:
    found = Detections.read(paths.detections)
    assert found is not None
    return vars(found)


def test_a_job_keeps_its_detections_and_they_are_found_again(done: JobPaths) -> None:
    first = whole(done)
    assert len(first["score"]) > 8
    others = {
        path: path.read_bytes()
        for path in done.folder.rglob("*")
        if path.is_file() and path != done.detections
    }
    done.detections.unlink()
    result = JobResult.read(done)
    assert result is not None
    assert redetect(done.folder) == result.metrics["AP"]
    for name, values in whole(done).items():
        np.testing.assert_array_equal(values, first[name], err_msg=name)
    # no other file of the job is new or changed
    assert {path: path.read_bytes() for path in others} == others
    assert {*filter(Path.is_file, done.folder.rglob("*"))} == {*others, done.detections}


def test_a_student_keeps_the_detections_of_its_last_evaluation(
    tmp_path: Path, digits: Any, model_settings: Any
) -> None:
    model = model_settings("gfl").model_dump(mode="json")
    job = make("student-1", inputs={"dataset": digits}, model=model, schedule={"epochs": 2, "eval_every": 1})
    paths = JobPaths(tmp_path / job.id)
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    result = run_job(paths)
    assert result is not None
    first = whole(paths)
    paths.detections.unlink()
    assert redetect(paths.folder) == result.metrics["AP"]
    np.testing.assert_array_equal(whole(paths)["box"], first["box"])


def test_weights_that_do_not_give_the_ap_of_the_job_keep_nothing(done: JobPaths) -> None:
    result = JobResult.read(done)
    assert result is not None
    done.detections.unlink()
    last = replace(result.last, metrics={"AP": result.metrics["AP"] + 0.6})
    replace(result, last=last).write(done)
    with pytest.raises(JobError, match="do not give the AP"):
        redetect(done.folder)
    assert not done.detections.exists()


def test_an_unfinished_job_is_refused(tmp_path: Path, job: Job) -> None:
    paths = JobPaths(tmp_path / job.id)
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    with pytest.raises(UsageError, match="has not finished"):
        redetect(paths.folder)


def test_labels_that_are_gone_are_told(done: JobPaths, job: Job, tmp_path: Path) -> None:
    files = job.inputs.dataset
    gone = replace(files, val=replace(files.val, labels=tmp_path / "gone.json"))
    write_json(done.job, replace(job, inputs=replace(job.inputs, dataset=gone)).to_dict())
    with pytest.raises(UsageError, match="labels are not there"):
        redetect(done.folder)
