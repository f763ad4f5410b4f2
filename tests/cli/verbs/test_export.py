from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from kdlab import children
from kdlab.cli import app
from kdlab.cli.verbs import export
from kdlab.errors import JobError, MachineError, UsageError
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

IDS = {"baseline": "student-aa11", "rm": "student-ab22", "teacher": "teacher-ac33"}


def add(runs: Runs, job: Job, *, done: bool = True) -> Job:
    paths = runs.job(job.id)
    paths.folder.mkdir(parents=True)
    write_json(paths.job, job.to_dict())
    if done:
        make_result(job).write(paths)
    return job


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A plan of a teacher, a baseline and an arm `rm` of two seeds, whose second is not done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))
    runs = Runs(tmp_path / "runs")
    jobs = [add(runs, make(job_id, arm)) for arm, job_id in IDS.items()]
    jobs.append(add(runs, make("student-ab99", "rm", 1), done=False))
    recipe = {"name": "digits/quickstart", "path": "recipes/digits/quickstart.yaml"}
    Plan("7f3a", recipe, tuple(PlannedJob(job, False, "new") for job in jobs), "cpu", {}).save(runs)
    return runs


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the process with torch was asked; it answers without writing anything."""
    requests: list[dict[str, Any]] = []

    def told(_module: str, request: dict[str, Any], _cut_off: str) -> dict[str, Any]:
        requests.append(request)
        files = [{"name": f"student.{ending}", "bytes": 1_000_000} for ending in ("safetensors", "pth", "py")]
        return {"job": Path(request["job"]).name, "folder": request["to"], "files": files, "checks": []}

    monkeypatch.setattr(children, "told", told)
    return requests


@pytest.mark.parametrize(
    ("name", "seed", "job_id"),
    [
        ("rm", None, "student-ab22"),
        ("rm", 1, "student-ab99"),
        ("rm seed 1", None, "student-ab99"),
        ("teacher", None, "teacher-ac33"),
        ("student-aa11", None, "student-aa11"),
        ("student-aa", None, "student-aa11"),
    ],
)
def test_a_job_is_found_by_arm_and_seed_or_by_id(
    name: str, seed: int | None, job_id: str, runs: Runs
) -> None:
    assert export.find(runs, name, seed).id == job_id


@pytest.mark.parametrize(
    ("name", "seed", "said"),
    [
        ("student-a", None, "fits 3 jobs"),
        ("rm", 7, "no seed 7"),
        ("basline", None, "did you mean baseline"),
        ("", None, "there is no job"),
    ],
)
def test_what_names_no_single_job_is_told(name: str, seed: int | None, said: str, runs: Runs) -> None:
    with pytest.raises(UsageError, match=said):
        export.find(runs, name, seed)


def test_where_nothing_was_run_the_quickstart_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kdlab run digits/quickstart"):
        export.find(Runs(tmp_path), "rm")


def test_an_unfinished_job_names_the_command_that_finishes_it(
    runs: Runs, asked: Sequence[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["export", "rm", "--seed", "1"]) == 2
    err = capfd.readouterr().err
    assert "rm seed 1 is queued" in err
    assert "fix    kdlab run digits/quickstart" in err
    assert not asked


@pytest.mark.parametrize(
    ("kind", "arm", "told"),
    [
        ("prepare", "prepare maskd", "prepare maskd trains no detector, so there is nothing to export"),
        (
            "scale",
            "scale rm",
            "the losses are and keeps no weights, so there is nothing to export",
        ),
    ],
)
def test_a_job_that_makes_no_detector_is_refused(
    runs: Runs, asked: Sequence[Any], capfd: pytest.CaptureFixture[str], kind: Any, arm: str, told: str
) -> None:
    add(runs, make(f"{kind}-ad44", arm))
    assert app.main(["export", f"{kind}-ad"]) == 2
    assert told in capfd.readouterr().err
    assert not asked


def test_files_go_to_a_folder_of_the_job(
    runs: Runs, asked: Sequence[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["export", "rm"]) == 0
    out = capfd.readouterr().out
    assert asked[0]["to"] == "exports/student-ab22"
    assert asked[0]["onnx"] is None
    assert 'init_detector("exports/student-ab22/student.py", "exports/student-ab22/student.pth"' in out


def test_json_is_what_was_written(
    runs: Runs, asked: Sequence[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["export", "rm", "--json", "--to", "deploy"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["schema"], said["job"], said["folder"]) == (1, "student-ab22", "deploy")


def test_size_and_nms_reach_the_process(
    runs: Runs, asked: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: name)
    assert app.main(["export", "rm", "--onnx", "--size", "64x96", "--nms", "-q"]) == 0
    assert asked[0]["onnx"] == {"size": [64, 96], "nms": True}


@pytest.mark.parametrize("words", [["--size", "64x96"], ["--nms"], ["--onnx", "--size", "64"]])
def test_a_size_that_is_none_or_for_nothing_is_refused(
    words: list[str], runs: Runs, asked: Sequence[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: name)
    assert app.main(["export", "rm", *words]) == 2
    assert not asked


def test_without_the_extra_it_says_what_to_install(
    runs: Runs, asked: Sequence[Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert app.main(["export", "rm", "--onnx"]) == 3
    err = capfd.readouterr().err
    assert "needs onnxruntime" in err
    assert "fix    pip install 'kdlab[onnx]'" in err


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ('import sys; print(\'{"faults": [{"what": "full"}]}\'); sys.exit(3)', MachineError),
        ('import sys; print(\'{"faults": [{"what": "broken"}]}\'); sys.exit(1)', JobError),
        ("import sys; sys.exit('Killed')", MachineError),
    ],
)
def test_an_error_of_the_process_comes_back_as_itself(
    script: str,
    kind: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "answering.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(kind):
        children.told("answering", {"job": "student-1"}, "it was cut off")
