"""What a method learns of a teacher beforehand: a job like others, a parent of the students that use it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab import detectors
from kdlab.errors import JobError
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import Curves, JobResult
from kdlab.methods.maskd import MaskedDistillation, TokenLearning
from kdlab.planning.jobs import PREPARING
from kdlab.training import checkpoints
from kdlab.training.attempt import Attempt
from kdlab.training.job import run_job
from kdlab.training.loop import Stopped
from kdlab.training.preparing import Preparer, TeacherWith
from tests.stubs.jobs import changed, make, method
from tests.stubs.stub_job import make_result

ITERATIONS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jobs' folder of all tests."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def teacher(folder: Path, model_settings: Any, digits: Any) -> str:
    """A finished teacher among the jobs; its id."""
    torch.manual_seed(3)
    paths = JobPaths(folder / "teacher-1")
    paths.folder.mkdir()
    model = detectors.build(model_settings("gfl"), len(digits.classes))
    paths.checkpoints.mkdir()
    digest = checkpoints.save_model(paths.weights, model, digits.classes)
    replace(make_result(make("teacher-1")), model={"weights_sha256": digest}).write(paths)
    return "teacher-1"


@pytest.fixture(scope="module")
def job(teacher: str, model_settings: Any, digits: Any) -> Job:
    return make(
        "prepare-1",
        "prepare maskd",
        parents=(teacher,),
        inputs={"dataset": digits},
        model=model_settings("gfl").model_dump(mode="json"),
        schedule=PREPARING,
        dataset={"flip": 0.0},
        options={"tokens": 2, "prepare_iters": ITERATIONS},
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


def tokens_of(paths: JobPaths) -> dict[str, torch.Tensor]:
    learned = TokenLearning(channels=16, levels=3, tokens=2)
    checkpoints.load_finished(learned, paths)
    return learned.state_dict()


def test_it_ends_after_its_iterations_and_leaves_what_was_learned(
    finished: tuple[JobPaths, JobResult],
) -> None:
    paths, result = finished
    assert result == JobResult.read(paths)
    # 24 images in batches of 4 are 6 steps an epoch
    losses = Curves.read(paths).losses
    assert losses[-1]["iteration"] == ITERATIONS
    assert losses[-1]["loss_diversity"] < losses[0]["loss_diversity"]
    assert result.metrics == {}
    assert tokens_of(paths)["levels.0.tokens"].abs().max() > 0.05


def test_a_number_of_steps_that_ends_within_an_epoch_is_kept(folder: Path, job: Job) -> None:
    paths = lay(folder, replace(job, id="prepare-3", spec=changed(job, iterations=2)))
    assert run_job(paths) is not None
    assert Curves.read(paths).losses[-1]["iteration"] == 2


def test_a_stopped_one_goes_on_to_the_same_tokens(
    folder: Path, job: Job, finished: tuple[JobPaths, JobResult]
) -> None:
    parts = lay(folder, replace(job, id="prepare-2"))
    asked = iter([False] * 7 + [True])
    work = Preparer(Attempt(job, parts, should_stop=lambda: next(asked)))
    with pytest.raises(Stopped):
        work.run()
    assert work.iteration == 8
    run_job(parts)
    first, second = tokens_of(finished[0]), tokens_of(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_teacher_stays_as_it_is(build: Callable[..., Any], raw_batch: Callable[..., Any]) -> None:
    teacher = build("fcos", 5)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = TeacherWith(teacher, TokenLearning(16, 3, 2)).train()
    losses, _ = model.parse_losses(model(**model.data_preprocessor(raw_batch(), True), mode="loss"))
    losses.backward()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert not teacher.neck._forward_hooks


def test_what_is_prepared_is_computed_in_fp32_under_autocast(
    build: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    model, seen = TeacherWith(build("fcos", 5), TokenLearning(16, 3, 2)).train(), []
    model.preparation.register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(**model.data_preprocessor(raw_batch(), True), mode="loss")
    assert {value.dtype for value in [*seen, losses["loss_diversity"]]} == {torch.float32}


def test_tokens_learn_on_the_maps_that_students_will_see(
    build: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    # its backbone drops paths at random in training
    teacher, seen = build("retinanet", 5, backbone="swin_t", width=32), []
    model = TeacherWith(teacher, TokenLearning(16, 3, 2)).train()
    model.preparation.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    data = model.data_preprocessor(raw_batch(), True)
    for _ in range(2):
        model(**data, mode="loss")
    assert all(torch.equal(first, second) for first, second in zip(*seen, strict=True))
    assert teacher.bbox_head.training


def test_a_two_stage_teacher_learns_from_both_stages(
    build: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    model = TeacherWith(build("faster_rcnn", 5), TokenLearning(16, 3, 2)).train()
    losses = model(**model.data_preprocessor(raw_batch(), True), mode="loss")
    assert {"loss_rpn_cls", "loss_cls", "loss_diversity"} <= losses.keys()
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_students_job_takes_the_tokens_of_its_parent(
    tmp_path: Path, job: Job, finished: tuple[JobPaths, JobResult], model_settings: Any, digits: Any
) -> None:
    from kdlab.training.trainer import Trainer

    paths = copy_of(finished[0], tmp_path)
    student = student_of(job, model_settings, digits)
    trainer = Trainer(Attempt(student, lay(tmp_path, student)))
    method = trainer.distiller.terms["maskd"].method
    assert isinstance(method, MaskedDistillation)
    learned = tokens_of(paths)
    assert all(torch.equal(value, learned[name]) for name, value in method.prepared.state_dict().items())


def test_a_student_refuses_tokens_that_were_changed_since(
    tmp_path: Path, job: Job, finished: tuple[JobPaths, JobResult], model_settings: Any, digits: Any
) -> None:
    from kdlab.training.trainer import Trainer

    paths = copy_of(finished[0], tmp_path)
    paths.weights.write_bytes(b"other")
    student = student_of(job, model_settings, digits)
    with pytest.raises(JobError, match="not the ones that the job's result names"):
        Trainer(Attempt(student, lay(tmp_path, student)))


def copy_of(finished: JobPaths, folder: Path) -> JobPaths:
    """The finished job and its teacher in a folder of a test."""
    shutil.copytree(finished.folder.parent, folder, dirs_exist_ok=True)
    return JobPaths(folder / finished.folder.name)


def student_of(job: Job, model_settings: Any, digits: Any) -> Job:
    return make(
        "student-1",
        "maskd",
        parents=(*job.parents, job.id),
        inputs={"dataset": digits},
        model=model_settings("gfl", width=4).model_dump(mode="json"),
        teacher=model_settings("gfl").model_dump(mode="json"),
        methods={"maskd": method("maskd", weight=7.0, tokens=2, prepare_iters=ITERATIONS, narrow_after=1000)},
        prepared={"maskd": job.id},
        schedule=PREPARING,
        dataset={"flip": 0.0},
    )
