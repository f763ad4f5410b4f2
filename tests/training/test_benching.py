"""The job that times a student's steps: what it tells, and that it leaves no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab.datasets.base import DatasetFiles
from kdlab.jobs.files import write_json
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import plain, read_spec
from kdlab.training.job import run_job
from tests.stubs.jobs import make, method


@pytest.mark.parametrize("learns", [False, True])
def test_every_part_of_a_step_is_timed_and_nothing_is_kept(
    torch_: Any, digits: DatasetFiles, tmp_path: Path, learns: bool
) -> None:
    schedule = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "optimizer": "adamw"}
    small = {"detector": "gfl", "head_convs": 1, "strides": (8, 16, 32)}
    student = make("student-1", inputs={"dataset": digits}, schedule=schedule, model=small)
    told = {**plain(student.spec), "kind": "bench", "asked": "2026-12-01 10:00:00", "rounds": 3}
    if learns:
        told |= {"methods": {"rm": method("rm"), "maskd": method("maskd")}, "teacher": told["model"]}
    # no parent: neither a teacher nor what maskd prepares was trained
    job = replace(student, spec=read_spec(told), parents=())
    paths = JobPaths(tmp_path / "bench-1")
    paths.folder.mkdir()
    write_json(paths.job, job.to_dict())
    result = run_job(paths)
    assert result is not None
    parts = {"data_s", "student_step_s", "batch_image_s", "latency_s"}
    if learns:
        parts |= {"teacher_forward_s", "distill_step_s", "teacher_latency_s"}
    assert set(result.timing) == {f"{part}{end}" for part in parts for end in ("", ".low", ".high")}
    for part in parts:
        assert 0 < result.timing[f"{part}.low"] <= result.timing[part] <= result.timing[f"{part}.high"]
    assert result.model["params"] > 0
    assert result.peak_memory_gb > 0
    assert not result.metrics
    assert not list(paths.checkpoints.glob("*"))
