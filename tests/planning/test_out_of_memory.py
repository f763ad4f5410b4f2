from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs import store
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.paths import Runs
from kdlab.planning import out_of_memory as memory
from kdlab.planning.ids import with_id
from tests.stubs.jobs import MODEL, changed, make
from tests.stubs.stub_job import prepared

FULL: dict[str, Any] = {
    "kind": "oom", "peak_gb": 23.0, "total_gb": 24.0, "micro_batch": 8, "batchnorm": False,
}  # fmt: skip


def job(name: str = "a", parents: tuple[str, ...] = (), **settings: Any) -> Job:
    schedule = {"epochs": 12, "batch_size": 16}
    resources = Resources(gpus=2, ranks=2)
    made = make(f"student-{name}", name, parents=parents, resources=resources, schedule=schedule, **settings)
    # two names are two jobs
    return with_id(replace(made, spec=changed(made, model={**MODEL, "width": 8 * len(name) + ord(name[0])})))


def fitting(*jobs: Job, gpu_gb: float | None = 24.0, **failed: dict[str, Any]) -> list[Job]:
    names = {one.arm: one.id for one in jobs}
    return list(memory.fitting(jobs, {names[name]: why for name, why in failed.items()}, gpu_gb))


def test_job_that_filled_its_gpu_gets_half_the_images_and_its_own_id() -> None:
    (now,) = fitting(job(), a=FULL)
    assert now.spec.micro_batch == 4
    assert now.id != job().id
    assert now.spec.schedule == job().spec.schedule


def test_job_that_filled_it_again_is_halved_again() -> None:
    half = memory.smaller(job(), FULL)
    assert half is not None
    failed = {job().id: FULL, half.id: {**FULL, "micro_batch": 4}}
    (now,) = memory.fitting([job()], failed, 24.0)
    assert now.spec.micro_batch == 2


def test_other_jobs_stay_as_they_were() -> None:
    assert fitting(job(), job("b"), b=FULL)[0] == job()


def test_what_needs_the_job_needs_the_smaller_one_and_gets_another_id() -> None:
    teacher = job("t")
    student = job("s", (teacher.id,), prepared={"maskd": teacher.id})
    small, now = fitting(teacher, student, t=FULL)
    assert now.parents == (small.id,)
    assert now.spec.prepared == {"maskd": small.id}
    assert now.id != student.id


def test_larger_gpu_trains_the_job_whole() -> None:
    assert fitting(job(), gpu_gb=80.0, a=FULL) == [job()]


@pytest.mark.parametrize("why", [{"batchnorm": True}, {"micro_batch": 1}])
def test_job_that_cannot_be_cut_stays_failed(why: dict[str, Any]) -> None:
    assert fitting(job(), a=FULL | why) == [job()]


def test_few_steps_of_a_student_fit_like_the_student_and_those_of_a_teacher_stay_whole() -> None:
    scale, prepare = make("scale-1", iterations=30), make("prepare-1")
    less = memory.smaller(scale, FULL)
    assert less is not None
    assert less.id.startswith("scale-")
    assert less.spec == changed(scale, micro_batch=4)
    assert memory.smaller(prepare, FULL) is None


def test_job_with_batchnorm_is_told_the_two_settings_that_fit() -> None:
    told = memory.advice(job(), {**FULL, "batchnorm": True, "peak_gb": 24.0})
    assert told == "--set schedule.batch_size=14   or --set schedule.gpus=4, which keeps the batch"


def test_job_that_can_be_cut_is_told_what_comes() -> None:
    assert memory.advice(job(), FULL) == "it is queued again with 4 images per forward pass"


def test_single_image_that_is_too_large_is_told_so() -> None:
    assert "dataset.scale" in memory.advice(job(), FULL | {"micro_batch": 1})


def test_failures_are_those_of_memory_alone(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    write_json(prepared(runs, make("student-a")).failure, FULL)
    write_json(prepared(runs, make("student-b")).failure, {"what": "the loss is not finite"})
    assert store.shortages(runs) == {"student-a": FULL}
