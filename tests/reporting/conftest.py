from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs.events import Event, JobCheckpointed, JobEvaluated, JobFinished, JobProgress, JobStarted
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.result import Evaluation, JobResult
from tests.stubs.jobs import FILES, make, method

ENVIRONMENT = {
    "commit": "0a1b2c3",
    "kdlab": "0.1.0",
    "torch": "2.14.1",
    "mmdet": "3.3.0",
    "device": "cpu: EPYC",
    "cores": 2,
    "threads": 1,
}
DATA = {"dataset": replace(FILES, fingerprint="0123456789abcdef")}
CWD = {"methods": {"cwd@neck": method("cwd", weight=2.0)}, "schedule": {"lr": 0.01}}


class Workbench:
    """Makes plans and the files of their jobs as planning and training would."""

    def __init__(self, folder: Path) -> None:
        self.runs = Runs(folder)

    def job(
        self, arm: str, seed: int = 0, kind: str = "", settings: dict[str, Any] | None = None, **changes: Any
    ) -> Job:
        kind = kind or ("teacher" if arm == "teacher" else "student")
        if settings is None:
            settings = CWD if kind == "student" else {}
        return replace(make(f"{kind}-{arm}{seed}", arm, seed, inputs=DATA, **settings), **changes)

    def plan(self, jobs: Sequence[Job], arms: dict[str, Any] | None = None, **changes: Any) -> Plan:
        names = dict.fromkeys(job.arm for job in jobs if job.kind == "student")
        recipe = {
            "name": "digits/quickstart",
            "title": "RetinaNet R18 -> R9, digits",
            "arms": arms or {name: {} if name == "baseline" else {name: {}} for name in names},
        }
        planned = tuple(PlannedJob(job, False, "new") for job in jobs)
        plan = replace(Plan("7f3a0001", recipe, planned, "cpu", {}), **changes)
        plan.save(self.runs)
        return plan

    def finish(self, job: Job, ap: float = 30.0, **changes: Any) -> JobResult:
        paths = self.runs.job(job.id)
        paths.folder.mkdir(parents=True, exist_ok=True)
        metrics = {"AP": ap, "AP50": ap + 20, "AP75": ap + 2}
        last = Evaluation(metrics, {"seven": 41.0}, epoch=2, iteration=20)
        result = JobResult(
            id=job.id,
            kind=job.kind,
            arm=job.arm,
            seed=job.seed,
            last=last,
            best=last,
            timing={"student_step_s": 0.2},
            environment=ENVIRONMENT,
            wall_s=60.0,
            peak_memory_gb=1.0,
        )
        result = replace(result, **changes)
        result.write(paths)
        return result

    def log(self, job: Job, *events: Event) -> Path:
        """Append events to the job's log."""
        paths = self.runs.job(job.id)
        paths.folder.mkdir(parents=True, exist_ok=True)
        with paths.events.open("a") as file:
            file.writelines(json.dumps(event.to_dict()) + "\n" for event in events)
        return paths.events

    def train(self, job: Job, start: float = 1000.0, epochs: int = 2, ap: float = 30.0) -> None:
        """A whole training: ten iterations an epoch, a report every two, one second each; then the result."""
        events: list[Event] = [started(job, start)]
        for epoch in range(1, epochs + 1):
            first = 10 * (epoch - 1)
            events += [progress(job, start + i, i) for i in range(first + 2, first + 11, 2)]
            events += [evaluated(job, start + first + 10, first + 10, ap)]
            events += [JobCheckpointed(job=job.id, time=start + first + 10, iteration=first + 10)]
        self.log(
            job, *events, JobFinished(job=job.id, time=start + 10 * epochs, metrics={"AP": ap}, wall_s=20.0)
        )
        paths = self.runs.job(job.id)
        paths.config.write_text("model = {}\n")
        paths.log.write_text("done\n")
        self.finish(job, ap)


def started(job: Job, time: float, iteration: int = 0) -> JobStarted:
    return JobStarted(job=job.id, time=time, device="cpu", epochs=2, iterations=20, iteration=iteration)


def progress(job: Job, time: float, iteration: int) -> JobProgress:
    return JobProgress(
        job=job.id,
        time=time,
        epoch=1,
        epochs=2,
        iteration=iteration,
        iterations=20,
        losses={"cls": 1 / iteration, "cwd@neck": 0.5},
        lr=0.01,
        step_s=0.3,
        data_s=0.1,
        eta_s=9.0,
    )


def evaluated(job: Job, time: float, iteration: int, ap: float = 30.0) -> JobEvaluated:
    return JobEvaluated(job=job.id, time=time, epoch=iteration // 10, iteration=iteration, metrics={"AP": ap})


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path / "runs")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlflow makes folders where it stands."""
    monkeypatch.chdir(tmp_path)
