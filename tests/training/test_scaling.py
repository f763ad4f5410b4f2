"""A few steps of a student that tell how large the terms of its methods are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab import detectors
from kdlab.jobs.events import JobEvaluated, JobFinished, JobStarted, read_from
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Inputs, Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Curves, Evaluation, JobResult
from kdlab.training import checkpoints
from kdlab.training.attempt import Attempt
from kdlab.training.job import run_job
from kdlab.training.loop import Stopped
from kdlab.training.scaling import Scale
from tests.stubs.jobs import changed, make, method

# 24 images in batches of 4 are 6 steps an epoch
ITERATIONS = 8
SCHEDULE = {"warmup_iters": 4, "keep_best": True}
FGD = ("fgd.foreground", "fgd.background", "fgd.attention", "fgd.relation")


@pytest.fixture
def job(tmp_path: Path, model_settings: Any, digits: Any) -> Job:
    """A scale job of two methods, one of several terms, and beside it a finished teacher."""
    torch.manual_seed(3)
    teacher = JobPaths(tmp_path / "teacher-1")
    teacher.folder.mkdir()
    model = detectors.build(model_settings("gfl"), len(digits.classes))
    teacher.checkpoints.mkdir()
    digest = checkpoints.save_model(teacher.weights, model, digits.classes)
    write_json(teacher.result, {"model": {"weights_sha256": digest}})
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


def curves(folder: Path, job: Job) -> Curves:
    paths = lay(folder, job)
    assert run_job(paths) is not None
    return Curves.read(paths)


def detection(losses: dict[str, float]) -> float:
    terms = [name.removeprefix("raw_") for name in losses if name.startswith("raw_")]
    return losses["loss"] - sum(losses[f"loss_{name}"] for name in terms)


def test_it_tells_each_term_of_each_step_beside_the_loss_of_detection(tmp_path: Path, job: Job) -> None:
    losses = curves(tmp_path, job).losses
    assert [entry["iteration"] for entry in losses] == list(range(1, ITERATIONS + 1))
    for entry in losses:
        own = sum(entry[name] for name in ("loss_cls", "loss_bbox", "loss_dfl"))
        assert detection(entry) == pytest.approx(own, rel=1e-4)
        for name in ("mgd", *FGD):
            assert math.isfinite(entry[f"raw_{name}"] / own)
        assert entry["loss_mgd"] == pytest.approx(1e-3 * entry["raw_mgd"], rel=1e-4)


def test_raw_terms_know_no_warm_up(tmp_path: Path, job: Job) -> None:
    first, *_, last = curves(tmp_path, job).losses
    assert first["loss_fgd.foreground"] == pytest.approx(2.0 * first["raw_fgd.foreground"] / 6, rel=1e-4)
    assert last["loss_fgd.foreground"] == pytest.approx(2.0 * last["raw_fgd.foreground"], rel=1e-4)


def test_first_step_is_that_of_the_student_itself(tmp_path: Path, job: Job) -> None:
    schedule = job.spec.schedule.model_copy(update={"eval_every": 0, "keep_best": False})
    spec = changed(job, kind="student", iterations=None, schedule=schedule.model_dump(mode="json"))
    whole = replace(job, id="student-1", spec=spec)
    assert curves(tmp_path, job).losses[0] == curves(tmp_path, whole).losses[0]


def test_it_measures_nothing_and_keeps_no_weights(tmp_path: Path, job: Job) -> None:
    paths = lay(tmp_path, job)
    result = run_job(paths)
    assert result is not None
    assert result.last == result.best == Evaluation()
    assert Curves.read(paths).evaluations == []
    assert not list(paths.checkpoints.iterdir())
    assert not paths.resampled.exists()
    assert result.model["weights_sha256"] == ""
    kinds = [type(event) for event in read_from(paths.events).events]
    assert (kinds[0], kinds[-1]) == (JobStarted, JobFinished)
    assert JobEvaluated not in kinds


def test_it_tells_what_the_student_costs(tmp_path: Path, job: Job) -> None:
    paths = lay(tmp_path, job)
    result = run_job(paths)
    assert result == JobResult.read(paths)
    assert result is not None
    assert set(result.timing) == {"step_s", "data_s", "latency_s"}
    assert all(seconds > 0 for seconds in result.timing.values())
    assert result.model["params"] > 0
    assert result.model["trained_parts"].keys() == {"mgd", "fgd"}
    assert result.data["images"] == 24
    assert paths.config.exists()


def test_a_stopped_one_goes_on_to_the_same_losses(tmp_path: Path, job: Job) -> None:
    whole = curves(tmp_path, job)
    parts = lay(tmp_path, replace(job, id="scale-2"))
    asked = iter([False] * 4 + [True])
    work = Scale(Attempt(job, parts, should_stop=lambda: next(asked)))
    with pytest.raises(Stopped):
        work.run()
    assert work.iteration == 5
    assert run_job(parts) is not None
    assert Curves.read(parts) == whole
    assert not list(parts.checkpoints.iterdir())


def test_images_without_objects_suffice_for_the_latency(tmp_path: Path, job: Job) -> None:
    files = job.inputs.dataset
    labels = json.loads(files.val.labels.read_text()) | {"annotations": []}
    (tmp_path / "val.json").write_text(json.dumps(labels))
    files = replace(files, val=replace(files.val, labels=tmp_path / "val.json"))
    result = run_job(lay(tmp_path, replace(job, inputs=Inputs(files))))
    assert result is not None
    assert result.timing["latency_s"] > 0
