"""Plans on disk, their jobs as hand-written files or as stubs at work, and verbs to look at them."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdlab.cli import app
from kdlab.jobs.events import Event, EventLog, JobProgress, JobStarted
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import LeaseInfo, Process
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.running.executors.local import Local
from tests.stubs.jobs import make, steering
from tests.stubs.stub_job import COMMAND, make_result, prepared

TEACHER = "teacher-9c1e22ab"
FAR = Process("node3.cluster", 77, None)


class Lab:
    """The newest plan of `runs/`: a teacher, a baseline of two seeds, and rm, which needs the teacher."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.runs, self._capfd = Runs(folder / "runs"), capfd
        self.local = Local(command=COMMAND)
        self._handles: dict[str, Handle] = {}
        self.jobs = {
            "teacher": self.job(TEACHER, "teacher"),
            "b0": self.job("student-b0000000", "baseline"),
            "b1": self.job("student-b0000001", "baseline", 1),
            "rm": self.job("student-aa000000", "rm", parents=(TEACHER,)),
        }

    @staticmethod
    def job(name: str, arm: str, seed: int = 0, parents: tuple[str, ...] = (), **settings: Any) -> Job:
        return make(name, arm, seed, parents=parents, stub={}, **settings)

    def save(self, plan_id: str = "7f3a0001", recipe: str = "digits/quickstart", **more: str) -> Plan:
        planned = tuple(PlannedJob(job, False, "new", 60.0) for job in self.jobs.values())
        plan = Plan(plan_id, {"name": recipe, "seeds": [0, 1], **more}, planned, "cpu", {})
        plan.save(self.runs)
        return plan

    def paths(self, key: str) -> JobPaths:
        return self.runs.job(self.jobs[key].id)

    def said(self, key: str, *events: tuple[type[Event], dict[str, Any]], attempt: int = 1) -> JobPaths:
        """A job's folder with events of an attempt whose process is gone."""
        paths = prepared(self.runs, self.jobs[key])
        log = EventLog(paths.events, self.jobs[key].id, attempt)
        for kind, fields in events:
            log.write(kind, **fields)
        log.close()
        LeaseInfo(attempt, FAR, 0.0).write(paths)
        return paths

    def at_work(self, key: str, attempt: int = 1) -> JobPaths:
        """A job on another host, in epoch 5 of 12."""
        paths = self.said(key, BEGAN, at(450), attempt=attempt)
        LeaseInfo(attempt, FAR, time.time()).write(paths)
        return paths

    def done(self, key: str) -> None:
        make_result(self.jobs[key]).write(prepared(self.runs, self.jobs[key]))

    def start(self, key: str, **settings: Any) -> JobPaths:
        """A stub at work on a job, in a process of its own."""
        job = self.jobs[key]
        steering(job).update({"steps": 2000, "step_s": 0.02} | settings)
        paths = prepared(self.runs, job)
        handle = self.local.start(job, paths)
        assert handle is not None
        self._handles[job.id] = handle
        wait_for(paths.events.exists)
        return paths

    def end(self) -> None:
        for handle in self._handles.values():
            self.local.cancel(handle, 0.0)
        wait_for(lambda: self.local.poll(self._handles).keys() == self._handles.keys())

    def __call__(self, line: str) -> tuple[int, str, str]:
        """Run a command line; exit code, stdout, stderr."""
        code = app.main(shlex.split(line))
        out, err = self._capfd.readouterr()
        return code, out, err


BEGAN = (JobStarted, {"device": "cpu", "epochs": 12, "iterations": 1200})


def at(iteration: int, eta_s: float = 3900.0) -> tuple[type[Event], dict[str, Any]]:
    """Progress of a job of 12 epochs."""
    told = {"epoch": 1, "epochs": 12, "iteration": iteration, "iterations": 1200, "losses": {"loss": 1.0}}
    return JobProgress, told | {"lr": 0.1, "step_s": 0.1, "data_s": 0.0, "eta_s": eta_s}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


@pytest.fixture
def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], quick_stubs: None
) -> Iterator[Lab]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    made = Lab(tmp_path, capfd)
    yield made
    made.end()
