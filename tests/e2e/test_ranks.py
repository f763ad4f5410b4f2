"""A job of two processes, stopped and killed on purpose: the same files, the same numbers."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdlab.datasets import digits
from kdlab.datasets.base import DatasetFiles
from kdlab.jobs.events import JobCancelled, JobFailed, JobProgress, JobRetried, read_from
from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.paths import JobPaths
from kdlab.running.executors.base import Executor, Keepers
from kdlab.running.executors.local import Local
from kdlab.running.task import Task
from kdlab.training.job import run_job
from tests.stubs.jobs import MODEL, make, method

pytestmark = pytest.mark.e2e

LONG = {"epochs": 5, "gpus": 2, "eval_every": 2}
# one with masks of its own, which a resume has to go on with on both processes
METHODS = {"rm": method("rm", weight=4.0), "mgd": method("mgd", weight=1e-3)}
TWO = Resources(ranks=2, checkpoint_minutes=0.002)


class World:
    """A folder of jobs whose teacher is trained, and the executor of this machine."""

    def __init__(self, folder: Path, files: DatasetFiles) -> None:
        self.folder, self.executor = folder, Local(gpus=None)
        inputs = {"dataset": files}
        teacher = make("teacher-1", "teacher", inputs=inputs, schedule=LONG | {"epochs": 1})
        self.job = make(
            "student-1", "rm", parents=(teacher.id,), resources=TWO, inputs=inputs,
            schedule=LONG, methods=METHODS, teacher=MODEL,
        )  # fmt: skip
        paths = JobPaths(folder / teacher.id)
        paths.folder.mkdir()
        write_json(paths.job, teacher.to_dict())
        run_job(paths)

    def task(self, job: Job) -> Task:
        task = Task(job, JobPaths(self.folder / job.id))
        task.prepare()
        assert task.begin(self.executor, Keepers(self.executor)) == []
        return task


def end_of(task: Task, executor: Executor) -> int | None:
    assert task.handle is not None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if ended := executor.poll({task.job.id: task.handle}):
            task.follow()
            return ended[task.job.id]
        time.sleep(0.02)
    raise AssertionError(task.paths.log.read_text())


def wait_for(task: Task, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        reports = [event for event in read_from(task.paths.events).events if isinstance(event, JobProgress)]
        if any(report.iteration >= iteration for report in reports):
            return
        time.sleep(0.005)
    raise AssertionError(task.paths.log.read_text())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    cache = str(tmp_path_factory.mktemp("cache"))
    return digits.prepare(image_px=64, train_images=24, val_images=10, cache=cache)


@pytest.fixture
def world(tmp_path: Path, files: DatasetFiles, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return World(tmp_path, files)


def test_a_stop_and_a_kill_of_two_processes_change_no_number(world: World) -> None:
    undisturbed = world.task(replace(world.job, id="student-0"))
    assert end_of(undisturbed, world.executor) == 0, undisturbed.paths.log.read_text()

    stopped = world.task(world.job)
    wait_for(stopped, 8)
    assert stopped.handle is not None
    world.executor.cancel(stopped.handle, grace_s=60)
    code = end_of(stopped, world.executor)
    assert isinstance(stopped.outcome(code, 0), JobCancelled)
    assert isinstance(read_from(stopped.paths.events).events[-1], JobCancelled)

    killed = world.task(world.job)
    wait_for(killed, 16)
    os.kill(json.loads(killed.paths.lease.read_text())["process"]["pid"], signal.SIGKILL)
    code = end_of(killed, world.executor)
    assert code == -signal.SIGKILL
    assert not killed.paths.failure.exists()
    assert isinstance(killed.outcome(code, 1), JobRetried)

    assert end_of(world.task(world.job), world.executor) == 0
    results = [read_json(task.paths.result) or {} for task in (undisturbed, killed)]
    assert results[1]["attempts"] == 3
    for key in ("metrics", "history", "losses", "per_class"):
        assert results[0][key] == results[1][key]
    assert len({result["model"]["weights_sha256"] for result in results}) == 1


def test_an_error_of_the_second_process_is_the_jobs_and_told_once(world: World) -> None:
    files = world.job.inputs.dataset
    labels = json.loads(files.train.labels.read_text())
    # the second image of the first batch, which the second process reads
    number = int(np.random.default_rng([0, 0]).permutation(len(labels["images"]))[1])
    labels["images"][number]["file_name"] = "gone.png"
    write_json(world.folder / "labels.json", labels)
    train = replace(files.train, labels=world.folder / "labels.json")
    inputs = replace(world.job.inputs, dataset=replace(files, train=train))
    task = world.task(replace(world.job, inputs=inputs))
    assert end_of(task, world.executor) == 1
    failure = read_json(task.paths.failure)
    assert failure is not None
    assert failure["where"].endswith("gone.png")
    told = [event for event in read_from(task.paths.events).events if isinstance(event, JobFailed)]
    assert [event.what for event in told] == ["an image cannot be read"]
