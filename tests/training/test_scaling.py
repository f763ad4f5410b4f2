"""A few steps of a student that tell how large the terms of its methods are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab import detectors
from kdlab.jobs.events import JobEvaluated, JobFinished, JobStarted, read_from
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Curves, Evaluation, JobResult
from kdlab.training import checkpoints
from kdlab.training.attempt import Attempt
from kdlab.training.job import run_job
from kdlab.training.loop import Stopped
from kdlab.training.scaling import Scale
from kdlab.training.trainer import Trainer
from tests.stubs.jobs import changed, make, method
from tests.stubs.stub_job import make_result

# 24 images in batches of 4 are 6 steps an epoch
ITERATIONS = 8
SCHEDULE = {"warmup_iters": 4, "keep_best": True}
FGD = ("fgd.foreground", "fgd.background", "fgd.attention", "fgd.relation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jobs' folder of all tests."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def job(folder: Path, model_settings: Any, digits: Any) -> Job:
    """A scale job of two methods, one of several terms, and beside it a finished teacher."""
    torch.manual_seed(3)
    teacher = JobPaths(folder / "teacher-1")
    teacher.folder.mkdir()
    model = detectors.build(model_settings("gfl"), len(digits.classes))
    teacher.checkpoints.mkdir()
    digest = checkpoints.save_model(teacher.weights, model, digits.classes)
    replace(make_result(make("teacher-1")), model={"weights_sha256": digest}).write(teacher)
    return make(
        "scale-1",
        "scale mgd+fgd",
        parents=("teacher-1",),
        inputs={"dataset": digits},
        model=model_settings("gfl", width=4).model_dump(mode="json"),
        teacher=model_settings("gfl").model_dump(mode="json"),
        methods={"mgd": method("mgd", weight=1e-3), "fgd": method("fgd", weight=2.0, warmup_iters=5)},
        schedule=SCHEDULE,
        iterations=ITERATIONS,
    )


def lay(folder: Path, job: Job) -> JobPaths:
    paths = JobPaths(folder / job.id)
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    return paths


@pytest.fixture(scope="module")
def finished(folder: Path, job: Job) -> tuple[JobPaths, JobResult]:
    """The job after its run."""
    paths = lay(folder, job)
    result = run_job(paths)
    assert result is not None
    return paths, result


@pytest.fixture
def losses(finished: tuple[JobPaths, JobResult]) -> list[dict[str, float]]:
    return Curves.read(finished[0]).losses


def detection(losses: dict[str, float]) -> float:
    terms = [name.removeprefix("raw_") for name in losses if name.startswith("raw_")]
    return losses["loss"] - sum(losses[f"loss_{name}"] for name in terms)


def test_it_tells_each_term_of_each_step_beside_the_loss_of_detection(losses: list[dict[str, float]]) -> None:
    assert [entry["iteration"] for entry in losses] == list(range(1, ITERATIONS + 1))
    for entry in losses:
        own = sum(entry[name] for name in ("loss_cls", "loss_bbox", "loss_dfl"))
        assert detection(entry) == pytest.approx(own, rel=1e-4)
        for name in ("mgd", *FGD):
            assert math.isfinite(entry[f"raw_{name}"] / own)
        assert entry["loss_mgd"] == pytest.approx(1e-3 * entry["raw_mgd"], rel=1e-4)


def test_raw_terms_know_no_warm_up(losses: list[dict[str, float]]) -> None:
    first, *_, last = losses
    assert first["loss_fgd.foreground"] == pytest.approx(2.0 * first["raw_fgd.foreground"] / 6, rel=1e-4)
    assert last["loss_fgd.foreground"] == pytest.approx(2.0 * last["raw_fgd.foreground"], rel=1e-4)


def test_first_step_is_that_of_the_student_itself(
    folder: Path, job: Job, losses: list[dict[str, float]]
) -> None:
    schedule = job.spec.schedule.model_copy(update={"eval_every": 0, "keep_best": False})
    spec = changed(job, kind="student", iterations=None, schedule=schedule.model_dump(mode="json"))
    whole = replace(job, id="student-1", spec=spec)
    student = Trainer(Attempt(whole, lay(folder, whole), should_stop=lambda: True))
    with pytest.raises(Stopped):
        student.run()
    assert student.loop.progress.losses == losses[:1]


def test_it_measures_nothing_and_keeps_no_weights(finished: tuple[JobPaths, JobResult]) -> None:
    paths, result = finished
    assert result.last == result.best == Evaluation()
    assert Curves.read(paths).evaluations == []
    assert not list(paths.checkpoints.iterdir())
    assert not paths.resampled.exists()
    assert result.model["weights_sha256"] == ""
    kinds = [type(event) for event in read_from(paths.events).events]
    assert (kinds[0], kinds[-1]) == (JobStarted, JobFinished)
    assert JobEvaluated not in kinds


def test_it_tells_what_the_student_costs(finished: tuple[JobPaths, JobResult]) -> None:
    paths, result = finished
    assert result == JobResult.read(paths)
    assert set(result.timing) == {"step_s", "data_s", "latency_s", "teacher_latency_s"}
    assert all(seconds > 0 for seconds in result.timing.values())
    assert result.model["params"] > 0
    assert result.model["trained_parts"].keys() == {"mgd", "fgd"}
    assert result.data["images"] == 24
    assert paths.config.exists()


def test_a_stopped_one_goes_on_to_the_same_losses(
    folder: Path, job: Job, finished: tuple[JobPaths, JobResult]
) -> None:
    parts = lay(folder, replace(job, id="scale-2"))
    asked = iter([False] * 4 + [True])
    work = Scale(Attempt(job, parts, should_stop=lambda: next(asked)))
    with pytest.raises(Stopped):
        work.run()
    assert work.iteration == 5
    assert run_job(parts) is not None
    assert Curves.read(parts) == Curves.read(finished[0])
    assert not list(parts.checkpoints.iterdir())
