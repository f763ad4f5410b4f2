"""What every tracker owes: each step once, whatever is killed, and nothing lost."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab import catalog
from kdlab.jobs.events import JobCheckpointed, JobEvaluated, JobFinished, JobProgress, JobStarted, from_line
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.tracking import base
from kdlab.tracking.base import Follower, Lacking
from tests.reporting.conftest import Workbench

Curve = list[tuple[int, float, float]]
EVERY = sorted(catalog.trackers())
LOSSES, METRICS = "train/cls", "val/AP"


def in_mlflow(runs: Runs, plan: Plan, job: Job, name: str) -> Curve:
    query = (
        "select step, m.timestamp / 1000.0, m.value from metrics m join tags t using (run_uuid) "
        "where t.key = 'kdlab.job' and t.value = ? and m.key = ? order by step, m.timestamp"
    )
    with closing(sqlite3.connect(runs.folder / "mlflow.db")) as database:
        return list(database.execute(query, (job.id, name)))


def in_csv(runs: Runs, plan: Plan, job: Job, name: str) -> Curve:
    file = {"train": "training", "val": "evaluation"}[name.partition("/")[0]]
    path = runs.folder / "csv" / plan.id / job.id / f"{file}.csv"
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [(int(row["iteration"]), float(row["time"]), float(row[name])) for row in rows]


READ: dict[str, Callable[[Runs, Plan, Job, str], Curve]] = {"mlflow": in_mlflow, "csv": in_csv}


class World:
    """A plan of two jobs whose logs grow, and commands that drive it."""

    def __init__(self, key: str, bench: Workbench) -> None:
        self.key, self.bench, self.runs = key, bench, bench.runs
        self.job, self.other = bench.job("rm"), bench.job("pfi")
        self.plan = self.planned("7f3a0001", self.job, self.other)

    def planned(self, plan_id: str, *jobs: Job) -> Plan:
        plan = self.bench.plan(jobs, id=plan_id)
        return replace(plan, recipe=plan.recipe | {"resources": {"trackers": [self.key]}})

    def command(self) -> Follower:
        """A command at work that looks when it is told to."""
        [tracker] = base.followers(self.plan, self.runs)
        tracker._every_s = 1000.0
        return tracker

    def catch_up(self) -> Lacking | None:
        return self.command().close()

    def curve(self, name: str = LOSSES, job: Job | None = None) -> Curve:
        return READ[self.key](self.runs, self.plan, job or self.job, name)

    def steps(self, name: str = LOSSES, job: Job | None = None) -> list[int]:
        return [step for step, _, _ in self.curve(name, job)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow; making one takes seconds."""
    from kdlab.tracking.mlflow import Mlflow

    runs = Runs(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Mlflow(runs)
        assert tracker.client
    return tracker.database


@pytest.fixture(params=EVERY)
def world(
    request: pytest.FixtureRequest, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    bench = Workbench(tmp_path / "runs")
    bench.runs.folder.mkdir()
    shutil.copy(database, bench.runs.folder)
    return World(request.param, bench)


def started(job: Job, time: float, iteration: int = 0) -> JobStarted:
    told = {"device": "cpu", "epochs": 2, "iterations": 20, "evaluated": 0}
    return JobStarted(job=job.id, time=time, iteration=iteration, **told)


def progress(job: Job, time: float, iteration: int, **losses: float) -> JobProgress:
    return JobProgress(
        job=job.id, time=time, epoch=1, epochs=2, iteration=iteration, iterations=20,
        losses=losses or {"cls": 1 / iteration}, lr=0.01, step_s=0.3, data_s=0.1, eta_s=9.0,
    )  # fmt: skip


def saved(job: Job, time: float, iteration: int) -> JobCheckpointed:
    return JobCheckpointed(job=job.id, time=time, iteration=iteration)


def test_points_carry_the_time_and_step_of_their_events(world: World) -> None:
    world.bench.train(world.job, start=1000.0, ap=31.0)
    assert world.catch_up() is None
    assert world.curve(METRICS) == [(10, 1010.0, 31.0), (20, 1020.0, 31.0)]
    assert (4, 1004.0, 0.25) in world.curve()


def test_points_beyond_the_last_checkpoint_are_withheld_until_the_job_has_finished(world: World) -> None:
    job = world.job
    world.bench.log(job, started(job, 1000.0), progress(job, 1010.0, 5), saved(job, 1011.0, 6))
    world.bench.log(job, progress(job, 1020.0, 9))
    world.catch_up()
    assert world.steps() == [5]
    world.bench.finish(job)
    world.catch_up()
    assert world.steps() == [5, 9]


@pytest.mark.parametrize("anew", [False, True], ids=["one command", "a command each"])
def test_a_job_killed_and_resumed_shows_every_step_once(world: World, anew: bool) -> None:
    job, command = world.job, world.command()
    for at, first in ((1000.0, 0), (2000.0, 6), (3000.0, 12)):
        world.bench.log(job, start := started(job, at, first))
        for iteration in range(first + 1, first + 9):
            world.bench.log(job, progress(job, at + 10 * iteration, iteration))
            if iteration % 6 == 0:
                world.bench.log(job, saved(job, at + 10 * iteration, iteration))
            command(start)
            command._turn()
        if anew:
            command.close()
            command = world.command()
    world.bench.finish(job)
    command(JobFinished(job=job.id, metrics={}, wall_s=1.0))
    assert command.close() is None
    assert world.steps() == list(range(1, 21))
    assert [time for step, time, _ in world.curve() if step > 12] == [3000.0 + 10 * i for i in range(13, 21)]


def test_an_evaluation_repeated_after_a_kill_shows_once(world: World) -> None:
    job = world.job
    world.bench.log(job, started(job, 1000.0), saved(job, 1010.0, 10))
    for moment in (1012.0, 2012.0):
        if moment > 2000.0:
            world.bench.log(job, started(job, 2000.0, iteration=10))
        world.bench.log(
            job, JobEvaluated(job=job.id, time=moment, epoch=1, iteration=10, metrics={"AP": 30.0})
        )
        world.catch_up()
    world.bench.log(job, saved(job, 2020.0, 20))
    world.catch_up()
    assert world.curve(METRICS) == [(10, 2012.0, 30.0)]


def test_told_after_every_event_it_has_what_it_has_told_once(world: World) -> None:
    world.bench.train(world.other)
    log = world.runs.job(world.other.id).events.read_text().replace(world.other.id, world.job.id)
    paths, command = world.runs.job(world.job.id), world.command()
    paths.folder.mkdir(parents=True)
    for line in log.splitlines(keepends=True):
        with paths.events.open("a") as file:
            file.write(line)
        event = from_line(line.encode())
        assert event is not None
        command(event)
        command._turn()
    world.bench.finish(world.job)
    command(JobFinished(job=world.job.id, metrics={}, wall_s=1.0))
    assert command.close() is None
    for name in (LOSSES, METRICS, "lr" if world.key == "mlflow" else LOSSES):
        assert world.curve(name) == world.curve(name, world.other) != []


def test_the_plan_of_a_second_command_finds_nothing_to_do(world: World) -> None:
    world.bench.train(world.job)
    world.bench.train(world.other)
    world.catch_up()
    before = {path: path.stat().st_mtime_ns for path in (world.runs.folder / "csv").rglob("settings.csv")}
    again = world.command()
    assert again.close() is None
    assert not again._offsets
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_jobs_told_in_any_order_are_known_to_a_second_command(world: World) -> None:
    first = world.command()
    for job in (world.other, world.job):
        world.bench.train(job)
        first(JobFinished(job=job.id, metrics={}, wall_s=1.0))
        first._turn()
    first.close()
    again = world.command()
    marks = set(again._tracker.sent(world.plan))
    assert again.close() is None
    assert not again._offsets
    if world.key == "mlflow":
        assert any(mark.startswith(world.plan.id) for mark in marks)
        assert "client" not in vars(again._tracker)


def test_a_plan_that_grows_is_told_with_its_new_jobs(world: World) -> None:
    command = world.command()
    world.bench.train(world.job)
    late = world.bench.job("late")
    command.plan = replace(world.plan, jobs=(*world.plan.jobs, PlannedJob(late, False, "new")))
    command._turn()
    assert command._why == ""
    world.bench.train(late)
    command(JobFinished(job=late.id, metrics={}, wall_s=1.0))
    assert command.close() is None
    assert world.steps(METRICS, late) == [10, 20]


def test_a_job_run_afresh_begins_a_curve_of_its_own(world: World) -> None:
    world.bench.train(world.job, start=1000.0)
    world.catch_up()
    shutil.rmtree(world.runs.job(world.job.id).folder)
    world.bench.train(world.job, start=5000.0)
    assert world.catch_up() is None
    assert (20, 5020.0, 30.0) in world.curve(METRICS)


def test_of_two_commands_at_once_one_tells_and_the_other_takes_over(world: World) -> None:
    first, second = world.command(), world.command()
    world.bench.log(
        world.job, started(world.job, 1000.0), progress(world.job, 1010.0, 5), saved(world.job, 1011.0, 6)
    )
    first._turn()
    second._turn()
    assert (bool(first._offsets), bool(second._offsets)) == (True, False)
    assert second.close() is None
    third = world.command()
    first.close()
    world.bench.log(world.job, progress(world.job, 1020.0, 9), end := saved(world.job, 1021.0, 10))
    third(end)
    assert third.close() is None
    assert world.steps() == [5, 9]


def test_two_plans_that_share_a_job_send_it_at_the_same_time(world: World) -> None:
    other = world.planned("7f3a0002", world.job)
    world.bench.train(world.job)
    commands = [world.command(), *base.followers(other, world.runs)]
    threads = [threading.Thread(target=command.close) for command in commands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [command._why for command in commands] == ["", ""]
    assert world.steps() == sorted(set(world.steps())) != []


MOMENT = os.environ.get("KDLAB_KILL_MOMENT", "120")
KILLED = """
import os, sys
from pathlib import Path
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.tracking import base
import json
runs, number = Runs(Path(sys.argv[1])), int(sys.argv[3])
plan = Plan.from_dict(json.loads((runs.plans / f"{sys.argv[2]}.json").read_text()))
count = 0
def counted(frame, event, _):
    global count
    count += event == "call" and "kdlab/tracking" in frame.f_code.co_filename.replace(os.sep, "/")
    if count == number:
        os.kill(os.getpid(), 9)
import threading
threading.setprofile(counted)
[command] = base.followers(plan, runs)
command.close()
"""


def test_a_command_killed_while_it_tells_doubles_and_loses_nothing(world: World) -> None:
    for job in (world.job, world.other):
        world.bench.train(job)
    world.plan.save(world.runs)
    argv = [sys.executable, "-c", KILLED, str(world.runs.folder), world.plan.id, MOMENT]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    killed = subprocess.run(argv, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert world.catch_up() is None
    wanted = [4, 8, 10, 14, 18, 20] if world.key == "mlflow" else list(range(2, 21, 2))
    for job in (world.job, world.other):
        assert world.steps(job=job) == wanted
        assert world.steps(METRICS, job) == [10, 20]


def test_a_command_ends_in_time_where_the_tracker_is_slow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bench.train(world.job)
    command, go_on = world.command(), threading.Event()
    monkeypatch.setattr(type(command._tracker), "sent", lambda *_: go_on.wait() and set())
    lacking = command.close(until=0.0)
    go_on.set()
    assert (lacking and (lacking.tracker, lacking.jobs, lacking.why)) == (world.key, 1, "slow to answer")
    command._thread.join()
    assert world.steps(METRICS) == [10, 20]


def test_a_command_sends_while_the_plan_runs(world: World) -> None:
    world.bench.train(world.job)
    command = Follower(world.key, world.command()._tracker, world.plan, world.runs, every_s=0.01)
    while command._behind or command._touched:
        with suppress(TimeoutError):
            threading.Event().wait(0.01)
    assert world.steps(METRICS) == [10, 20]
    assert command.close() is None


def test_a_lock_that_cannot_be_made_is_told_and_not_raised(world: World) -> None:
    world.bench.train(world.job)
    (world.runs.plans / f"{world.plan.id}.{world.key}.lock").mkdir()
    lacking: Any = world.catch_up()
    assert f"{world.key}.lock" in lacking.why
