from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kdlab import session
from kdlab.errors import MachineError
from kdlab.jobs.events import Event, JobCancelled, JobFailed, JobFinished, JobProgress, JobQueued, JobReused
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.store import newest_plan
from kdlab.running.driver import Driver
from kdlab.running.executors.inline import Inline
from kdlab.running.executors.local import Local
from kdlab.running.scheduler import Feed
from kdlab.tracking.base import Lacking
from tests.stubs import stub_job
from tests.stubs.stub_job import COMMAND, make_job, make_plan


class FakeFollower:
    """Notes what it was told, when it was closed and with which files."""

    log: list[Any]
    last_plan: Plan

    def __init__(self, plan: Plan) -> None:
        FakeFollower.log = ["opened"]
        self.plan = plan

    def __call__(self, event: Event) -> None:
        FakeFollower.last_plan = self.plan

    def close(self, until: float, files: Sequence[Path]) -> Lacking:
        FakeFollower.log.append(("closed", 0 < until - time.monotonic() <= session.TRACKING_S, list(files)))
        return Lacking("fake", 4, "slow")


@pytest.fixture(autouse=True)
def no_mlflow_and_free_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_stubs: None) -> None:
    monkeypatch.setattr(session, "followers", lambda plan, runs: [FakeFollower(plan)])
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture
def executor() -> Local:
    return Local(command=COMMAND)


def test_a_plan_runs_to_its_end(executor: Local, runs: Runs) -> None:
    plan = make_plan(make_job("a"), make_job("b", parents=("student-a",)))
    seen: list[Event] = []
    outcome = session.drive(plan, executor, runs, [seen.append])
    assert outcome.complete
    assert outcome.stopped_by is None
    assert [type(event) for event in outcome.ends.values()] == [JobFinished, JobFinished]
    assert all(event in seen for event in outcome.ends.values())
    assert any(isinstance(event, JobProgress) for event in seen)


def test_a_driven_plan_is_the_newest(executor: Local, runs: Runs) -> None:
    plan = make_plan(make_job())
    session.drive(plan, executor, runs)
    assert newest_plan(runs) == plan


def test_other_shells_see_who_drives_a_plan_and_how_to_go_on(executor: Local, runs: Runs) -> None:
    plan, seen = make_plan(make_job()), []
    session.drive(plan, executor, runs, [lambda _: seen.append(Driver.of(plan.id, runs))], command="kdlab x")
    after = Driver.of(plan.id, runs)
    assert {(driver.at_work, driver.command) for driver in seen if driver} == {(True, "kdlab x")}
    assert after is not None
    assert (after.at_work, after.command) == (False, "kdlab x")


def test_a_second_drive_reuses_everything(executor: Local, runs: Runs) -> None:
    plan = make_plan(make_job())
    session.drive(plan, executor, runs)
    outcome = session.drive(plan, executor, runs)
    assert outcome.complete
    assert [type(event) for event in outcome.ends.values()] == [JobReused]


def test_a_failure_is_kept_and_the_plan_incomplete(executor: Local, runs: Runs) -> None:
    plan = make_plan(make_job("a", end="fail"), make_job("b"))
    outcome = session.drive(plan, executor, runs)
    assert not outcome.complete
    assert [failure.job for failure in outcome.failures] == ["student-a"]
    assert isinstance(outcome.failures[0], JobFailed)


def test_files_are_published_before_trackers_get_their_last_seconds(executor: Local, runs: Runs) -> None:
    def publish(outcome: session.Outcome) -> list[Path]:
        assert FakeFollower.log == ["opened"]
        return [Path("table.md")]

    outcome = session.drive(make_plan(make_job()), executor, runs, publish=publish)
    assert FakeFollower.log[1:] == [("closed", True, [Path("table.md")])]
    assert outcome.lacking == (Lacking("fake", 4, "slow"),)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_at_a_checkpoint(number: signal.Signals, executor: Local, runs: Runs) -> None:
    asked: list[str] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, JobProgress) and not asked:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    plan = make_plan(make_job(steps=500), make_job("b", parents=("student-a",)))
    outcome = session.drive(plan, executor, runs, [interrupt], on_stop=lambda: asked.append("stop"))
    assert outcome.stopped_by == number
    assert asked == ["stop"]
    assert isinstance(outcome.ends["student-a"], JobCancelled)
    assert outcome.ends["student-a"].iteration > 0
    assert signal.getsignal(number) == before


def test_the_second_signal_kills(executor: Local, runs: Runs) -> None:
    def interrupt_twice(event: Event) -> None:
        if isinstance(event, JobProgress) and event.iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    outcome = session.drive(make_plan(make_job(steps=2000, end="deaf")), executor, runs, [interrupt_twice])
    assert isinstance(outcome.ends["student-a"], JobCancelled)
    assert not runs.job("student-a").result.exists()


def test_ctrl_c_in_an_inline_job_ends_the_plan(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    stopped.set()
    monkeypatch.setattr(stub_job, "STOP", stopped)
    plan = make_plan(make_job("a"), make_job("b"))
    outcome = session.drive(plan, Inline(module="tests.stubs.stub_job"), runs)
    assert [type(event) for event in outcome.ends.values()] == [JobCancelled]
    assert outcome.stopped_by == signal.SIGINT


def test_an_observer_that_raises_leaves_no_job_running(executor: Local, runs: Runs) -> None:
    def give_up(event: Event) -> None:
        if isinstance(event, JobProgress):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        session.drive(make_plan(make_job(steps=500)), executor, runs, [give_up])
    assert FakeFollower.log[1][0] == "closed"
    assert not runs.job("student-a").result.exists()


def test_a_runs_folder_that_cannot_be_made_is_told(executor: Local, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="KDLAB_RUNS"):
        session.drive(make_plan(make_job()), executor, Runs(tmp_path / "file" / "runs"))


class TestGrowing:
    """A plan that gets more jobs while it runs."""

    @staticmethod
    def feed(*batches: Plan) -> Feed:
        left = list(batches)
        return lambda active: left.pop(0).jobs if left else ()

    def test_saved_plan_and_that_of_trackers_hold_all_jobs_in_their_order(
        self, executor: Local, runs: Runs
    ) -> None:
        plan, more = make_plan(make_job("a")), [make_plan(make_job("b")), make_plan(make_job("c"))]
        outcome = session.drive(plan, executor, runs, feed=self.feed(*more))
        assert outcome.complete
        assert sorted(outcome.ends) == ["student-a", "student-b", "student-c"]
        saved = newest_plan(runs)
        assert [planned.job.arm for planned in saved.jobs] == ["a", "b", "c"]
        assert FakeFollower.last_plan == saved

    def test_plan_is_saved_before_a_new_job_is_told(self, executor: Local, runs: Runs) -> None:
        known: list[bool] = []

        def look(event: Event) -> None:
            known.append(event.job in [planned.job.id for planned in newest_plan(runs).jobs])

        session.drive(
            make_plan(make_job("a")), executor, runs, [look], feed=self.feed(make_plan(make_job("b")))
        )
        assert known and all(known)

    def test_job_that_is_given_again_stands_in_the_plan_once(self, executor: Local, runs: Runs) -> None:
        plan = make_plan(make_job("a", end="fail"))
        ended: list[Event] = []

        def feed(active: int) -> Sequence[PlannedJob]:
            return plan.jobs if len(ended) == 1 else ()

        def see(event: Event) -> None:
            if isinstance(event, JobFailed | JobQueued) and (ended or isinstance(event, JobFailed)):
                ended.append(event)

        outcome = session.drive(plan, executor, runs, [see], feed=feed)
        saved = newest_plan(runs)
        assert len(saved.jobs) == 1
        assert [type(event) for event in ended] == [JobFailed, JobQueued, JobFailed]
        assert not outcome.complete

    def test_plan_is_incomplete_where_a_job_that_joined_it_failed(self, executor: Local, runs: Runs) -> None:
        feed = self.feed(make_plan(make_job("b", end="fail")))
        outcome = session.drive(make_plan(make_job("a")), executor, runs, feed=feed)
        assert not outcome.complete
        assert [failure.job for failure in outcome.failures] == ["student-b"]
