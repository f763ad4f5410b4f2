"""A checkpoint as a teacher: measured as its students are, and a parent like a trained one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab import detectors
from kdlab.errors import JobError
from kdlab.jobs.events import JobCancelled, JobEvaluated, JobFinished, JobProgress, JobStarted, read_from
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.training import checkpoints
from kdlab.training.checkpoints import load_finished
from kdlab.training.distiller import Distiller
from kdlab.training.job import run_job
from tests.stubs.jobs import make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model_settings: Any, digits: Any) -> Path:
    """A model that finds something, wrapped as mmrazor does."""
    torch.manual_seed(3)
    model = detectors.build(model_settings("gfl"), len(digits.classes))
    torch.nn.init.normal_(model.bbox_head.gfl_cls.weight, std=1.0)
    state = {f"architecture.{name}": value for name, value in model.state_dict().items()}
    path: Path = tmp_path_factory.mktemp("outside") / "teacher.pth"
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def job(model_settings: Any, digits: Any, checkpoint: Path) -> Job:
    return make(
        "evaluate-1",
        "teacher",
        inputs={"dataset": digits, "checkpoint": str(checkpoint)},
        model=model_settings("gfl").model_dump(mode="json"),
        checkpoint=checkpoints.sha256(checkpoint),
        batch_size=3,
    )


def lay(folder: Path, job: Job) -> JobPaths:
    paths = JobPaths(folder / job.id)
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    return paths


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, job: Job) -> tuple[JobPaths, JobResult]:
    """The job after its run."""
    paths = lay(tmp_path_factory.mktemp("jobs"), job)
    result = run_job(paths)
    assert result is not None
    return paths, result


def test_it_leaves_a_result_and_weights_that_a_student_loads(
    finished: tuple[JobPaths, JobResult], job: Job, checkpoint: Path, digits: Any
) -> None:
    paths, result = finished
    assert result == JobResult.read(paths)
    assert result.kind == "evaluate"
    assert result.model["checkpoint"]["file"] == "teacher.pth"
    assert result.model["checkpoint"]["keys"]["whole"]
    model = detectors.build(job.spec.model, len(digits.classes))
    load_finished(model, paths)
    saved = torch.load(checkpoint)["state_dict"]
    assert all(
        torch.equal(value, saved[f"architecture.{name}"]) for name, value in model.state_dict().items()
    )


def test_metrics_are_those_of_the_distillers_evaluation(
    finished: tuple[JobPaths, JobResult], job: Job, digits: Any
) -> None:
    from kdlab.training.data import evaluation_loader, mmdet_dataset
    from kdlab.training.evaluation import CocoMetric, evaluate

    paths, result = finished
    model = detectors.build(job.spec.model, len(digits.classes))
    load_finished(model, paths)
    loader = evaluation_loader(mmdet_dataset(digits, digits.val, None, None), 3, 0)
    found = evaluate(Distiller(model), loader, CocoMetric(digits.val.labels, digits.classes))
    assert (result.last.metrics, result.last.per_class) == (found.metrics, found.per_class)
    assert result.best.metrics == result.last.metrics


def test_progress_counts_images(finished: tuple[JobPaths, JobResult]) -> None:
    events = read_from(finished[0].events).events
    kinds = [type(event) for event in events]
    assert kinds == [JobStarted, JobProgress, JobProgress, JobProgress, JobEvaluated, JobFinished]
    assert [event.iteration for event in events if isinstance(event, JobProgress)] == [3, 6, 8]


def test_a_replaced_file_is_refused(tmp_path: Path, job: Job, checkpoint: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(checkpoint.read_bytes() + b"more")
    paths = lay(tmp_path, replace(job, inputs=replace(job.inputs, checkpoint=str(other))))
    with pytest.raises(JobError, match="not the one that was planned with"):
        run_job(paths)


def test_part_of_a_model_is_refused_unless_asked_for(tmp_path: Path, job: Job) -> None:
    model = job.spec.model.model_copy(update={"head_convs": 3})
    wider = replace(job, spec=job.spec.model_copy(update={"model": model}))
    with pytest.raises(JobError, match="does not load whole"):
        run_job(lay(tmp_path, wider))
    partial = replace(wider, id="evaluate-2", inputs=replace(job.inputs, partial=True))
    result = run_job(lay(tmp_path, partial))
    assert result is not None
    assert len(result.model["checkpoint"]["keys"]["missing"]) == 6


def test_a_request_to_stop_is_heeded(tmp_path: Path, job: Job) -> None:
    paths = lay(tmp_path, job)
    paths.stop_request.touch()
    assert run_job(paths) is None
    assert isinstance(read_from(paths.events).events[-1], JobCancelled)
    assert not paths.result.exists()
