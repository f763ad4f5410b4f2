from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdlab.errors import MachineError
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job, Resources, read_job
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.result import Curves, Evaluation, JobResult
from tests.stubs.jobs import make, method
from tests.stubs.stub_job import make_job, make_result


def test_job_survives_the_way_through_json() -> None:
    job = make(
        "student-1a",
        "rm",
        2,
        parents=("teacher-2b",),
        resources=Resources(2, 1, 4),
        methods={"cwd@neck": method("cwd", weight=2.0, levels=[8], temperature=4.0)},
        model={"overrides": {"model.bbox_head.reg_max": 8}},
    )
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


def test_job_is_read_from_its_folder(tmp_path: Path) -> None:
    job = make_job(parents=("teacher-2b",))
    write_json(JobPaths(tmp_path).job, job.to_dict())
    assert read_job(JobPaths(tmp_path)) == job


def test_job_of_before_there_were_several_processes_has_one() -> None:
    data = make_job().to_dict()
    del data["resources"]["ranks"]
    assert Job.from_dict(data).resources.ranks == 1


def test_several_processes_take_the_cores_of_each() -> None:
    assert Resources(threads=3, ranks=2).cores == 6


def test_folder_without_a_job_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"job\.json"):
        read_job(JobPaths(tmp_path))


def test_result_survives_the_way_through_its_file(tmp_path: Path) -> None:
    result = make_result(make_job(), attempts=3)
    result.write(JobPaths(tmp_path))
    assert JobResult.read(JobPaths(tmp_path)) == result


def test_curves_survive_the_way_through_their_file_and_are_none_of_the_results(tmp_path: Path) -> None:
    curves = Curves([Evaluation({"AP": 1.5}, {"cat": 2.5}, 1, 10)], [{"iteration": 10, "loss": 0.5}])
    curves.write(JobPaths(tmp_path))
    assert Curves.read(JobPaths(tmp_path)) == curves
    assert JobResult.read(JobPaths(tmp_path)) is None


def test_job_that_trained_nothing_has_no_curves(tmp_path: Path) -> None:
    assert Curves.read(JobPaths(tmp_path)) == Curves()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 2, "last": {}, "best": {}}', "3"])
@pytest.mark.parametrize("kind", [JobResult, Curves])
def test_a_damaged_file_is_named(tmp_path: Path, kind: type[JobResult] | type[Curves], content: str) -> None:
    paths = JobPaths(tmp_path)
    file = paths.result if kind is JobResult else paths.curves
    file.write_text(content)
    with pytest.raises(MachineError, match="damaged") as raised:
        kind.read(paths)
    assert str(file) in str(raised.value)


def test_unfinished_job_has_no_result(tmp_path: Path) -> None:
    assert JobResult.read(JobPaths(tmp_path)) is None


def test_label_names_the_seed_of_a_student_but_not_of_a_teacher() -> None:
    assert make_job("rm+pfi").label == "rm+pfi seed 0"
    assert make("teacher-2b", "teacher").label == "teacher"


def test_jobs_live_side_by_side_in_the_runs_folder(tmp_path: Path) -> None:
    assert Runs(tmp_path).job("student-1a").events == tmp_path / "jobs" / "student-1a" / "events.jsonl"


@pytest.mark.parametrize(
    ("accumulate", "gpus", "micro_batch", "images"),
    [
        (1, 1, None, None),
        (4, 1, None, 2),
        (2, 2, None, 2),
        (2, 1, 1, 1),
        (2, 1, 6, 4),
        (1, 1, 6, 6),
    ],
)
def test_a_forward_takes_its_share_of_a_step_or_what_the_gpu_holds(
    accumulate: int, gpus: int, micro_batch: int | None, images: int | None
) -> None:
    told = {"batch_size": 8, "accumulate": accumulate, "gpus": gpus}
    assert make("student-1", schedule=told, micro_batch=micro_batch).spec.images_a_forward == images


@pytest.mark.parametrize("accumulate", [3, 8])
def test_a_step_is_cut_into_equal_parts(accumulate: int) -> None:
    with pytest.raises(ValueError, match=f"accumulate: {accumulate} does not divide the 4 images of a step"):
        make("student-1", schedule={"batch_size": 8, "gpus": 2, "accumulate": accumulate})
