"""One fold: over events as they are pushed, and over the files of a folder as they are found."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlab.jobs import events
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobStarted,
    from_line,
)
from kdlab.jobs.files import write_json
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Lease, LeaseInfo, Process
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.status import JobStatus, State, of_plan, state_of
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

TEACHER = make("teacher-9c1e22ab", "teacher")
JOB = make("student-0000", "rm", parents=(TEACHER.id,))
ME, FAR = Process.of(os.getpid()), Process("node3.cluster", 77, None)
GONE = Process(ME.host, 2**22 + 1, 1.0)

QUEUED = JobQueued(job=JOB.id)
BEGAN = JobStarted(job=JOB.id, time=1000.0, device="cpu", epochs=12, iterations=1200)
AGAIN = replace(BEGAN, iteration=400, attempt=2)
AT = JobProgress(
    job=JOB.id, time=1100.0, epoch=4, epochs=12, iteration=450, iterations=1200, losses={}, lr=0.1,
    step_s=0.1, data_s=0.0, eta_s=3900.0,
)  # fmt: skip
SAVED = JobCheckpointed(job=JOB.id, iteration=400)
MEASURED = JobEvaluated(job=JOB.id, epoch=4, iteration=400, metrics={"AP": 30.2})
RETRIED = JobRetried(job=JOB.id, why="killed")
REUSED = JobReused(job=JOB.id, metrics={"AP": 38.9})
FINISHED = JobFinished(job=JOB.id, metrics={"AP": 31.8}, wall_s=60.0)
FAILED = JobFailed(job=JOB.id, what="out of luck")
CANCELLED = JobCancelled(job=JOB.id, iteration=450)
SKIPPED = JobSkipped(job=JOB.id, why="it needs teacher")


def pushed(*events: Event, **known: Any) -> JobStatus:
    status = JobStatus(JOB, **known)
    for event in events:
        status.see(event)
    return status


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ([], State.QUEUED),
        ([QUEUED], State.QUEUED),
        ([BEGAN], State.RUNNING),
        ([AT], State.RUNNING),
        ([BEGAN, AT, SAVED, MEASURED], State.RUNNING),
        ([BEGAN, AT, RETRIED], State.QUEUED),
        ([BEGAN, RETRIED, AGAIN], State.RUNNING),
        ([REUSED], State.DONE),
        ([BEGAN, FINISHED], State.DONE),
        ([BEGAN, FAILED], State.FAILED),
        ([BEGAN, FAILED, QUEUED], State.QUEUED),
        ([BEGAN, CANCELLED], State.CANCELLED),
        ([QUEUED, SKIPPED], State.SKIPPED),
    ],
)
def test_state_follows_pushed_events(told: list[Event], state: State) -> None:
    assert pushed(*told).state is state


def test_events_tell_how_far_a_job_is() -> None:
    status = pushed(BEGAN, AT, SAVED, MEASURED)
    assert (status.epoch, status.iteration, status.fraction) == ("5/12", 450, 0.375)
    assert (status.ap, status.measured, status.saved) == (30.2, 4, 400)
    assert (status.ends_at, status.left_s(1200.0)) == (5000.0, 3800.0)


def test_new_process_goes_on_from_where_it_says() -> None:
    status = pushed(BEGAN, AT, SAVED, FAILED, AGAIN)
    assert (status.iteration, status.saved, status.last, status.end) == (400, 400, None, None)


def test_job_that_a_search_has_ended_is_pruned_once_it_stops() -> None:
    assert pushed(BEGAN, AT, pruned=True).state is State.RUNNING
    assert pushed(BEGAN, AT, CANCELLED, pruned=True).state is State.PRUNED


@pytest.mark.parametrize(
    ("told", "cost_s", "left_s"),
    [
        ([], None, None),
        ([], 600.0, 600.0),
        ([AGAIN], 1200.0, 800.0),
        ([AGAIN], None, None),
        ([BEGAN, FAILED], 600.0, 0.0),
    ],
)
def test_time_left_is_told_by_the_cost_before_the_job_tells_it(
    told: list[Event], cost_s: float | None, left_s: float | None
) -> None:
    assert pushed(*told, cost_s=cost_s).left_s(2000.0) == pytest.approx(left_s)


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    paths = Runs(tmp_path).job(JOB.id)
    paths.folder.mkdir(parents=True)
    return paths


def log(paths: JobPaths, *events: Event) -> None:
    with paths.events.open("a") as file:
        file.writelines(json.dumps(event.to_dict()) + "\n" for event in events)


File = Callable[[JobPaths], object]


def result(paths: JobPaths) -> None:
    make_result(JOB).write(paths)


def failure(paths: JobPaths) -> None:
    write_json(paths.failure, {"what": "the loss is not finite", "after_s": 3.0})


def process(paths: JobPaths) -> None:
    Handle("local", ME, ("0",)).write(paths)


def dead(paths: JobPaths) -> None:
    Handle("local", GONE, ("0",)).write(paths)


def far(paths: JobPaths) -> None:
    LeaseInfo(1, FAR, time.time()).write(paths)


def far_and_silent(paths: JobPaths) -> None:
    LeaseInfo(1, FAR, time.time() - 3600).write(paths)


def in_queue(paths: JobPaths) -> None:
    Handle("slurm", ref="1234").write(paths)


def unwanted(paths: JobPaths) -> None:
    paths.stop_request.touch()


@pytest.mark.parametrize(
    ("told", "files", "state"),
    [
        ([], [], State.QUEUED),
        ([QUEUED], [], State.QUEUED),
        ([], [dead], State.INTERRUPTED),
        ([], [process], State.RUNNING),
        ([], [far], State.RUNNING),
        ([], [in_queue], State.QUEUED),
        ([], [in_queue, unwanted], State.INTERRUPTED),
        ([BEGAN, AT], [], State.INTERRUPTED),
        ([BEGAN, AT], [dead], State.INTERRUPTED),
        ([BEGAN, AT], [far_and_silent], State.INTERRUPTED),
        ([BEGAN, AT], [process], State.RUNNING),
        ([BEGAN, AT], [dead, far], State.RUNNING),
        ([BEGAN, AT], [dead, unwanted], State.INTERRUPTED),
        ([BEGAN, CANCELLED], [], State.CANCELLED),
        ([BEGAN, CANCELLED], [dead, unwanted], State.CANCELLED),
        ([BEGAN, CANCELLED], [process], State.RUNNING),
        ([BEGAN, CANCELLED], [in_queue], State.QUEUED),
        ([BEGAN, CANCELLED, AGAIN], [dead], State.INTERRUPTED),
        ([BEGAN, FAILED], [], State.FAILED),
        ([BEGAN, FAILED], [process], State.RUNNING),
        ([BEGAN, FAILED], [in_queue], State.QUEUED),
        ([BEGAN, AT], [failure, dead], State.FAILED),
        ([BEGAN, CANCELLED], [failure], State.FAILED),
        ([BEGAN, FAILED], [failure, in_queue], State.FAILED),
        ([BEGAN, FINISHED], [], State.INTERRUPTED),
        ([BEGAN, FINISHED], [result], State.DONE),
        ([BEGAN, FAILED], [result, failure], State.DONE),
        ([BEGAN, AT], [result, process], State.DONE),
    ],
)
def test_state_follows_the_files(told: list[Event], files: list[File], state: State, paths: JobPaths) -> None:
    log(paths, *told)
    for write in files:
        write(paths)
    status = JobStatus(JOB)
    status.look(paths)
    assert status.state is state
    assert state_of(JOB, paths) is state
    status.look(paths)
    assert status.state is state, "a second look finds the same"


def test_result_tells_all_and_the_log_is_not_read(paths: JobPaths) -> None:
    log(paths, BEGAN, AT)
    result(paths)
    status = JobStatus(JOB)
    status.look(paths)
    assert (status.ap, status.started, status.result is None) == (12.5, None, False)


def test_process_that_ends_while_one_looks_is_done(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    log(paths, BEGAN, AT)
    monkeypatch.setattr(JobStatus, "locate", lambda status, paths: result(paths))
    status = JobStatus(JOB)
    status.look(paths)
    assert status.state is State.DONE


def test_lock_that_loaders_of_a_killed_process_still_hold_is_nobody_at_work(paths: JobPaths) -> None:
    log(paths, BEGAN, AT)
    LeaseInfo(1, GONE, time.time()).write(paths)
    with paths.lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert state_of(JOB, paths) is State.INTERRUPTED


def test_failure_tells_its_cause_where_it_stood_and_the_end_of_the_log(paths: JobPaths) -> None:
    log(paths, BEGAN, AT)
    failure(paths)
    LeaseInfo(3, FAR, 0.0).write(paths)
    paths.log.write_text("".join(f"{line}\n" for line in range(20)))
    status = JobStatus(JOB)
    status.look(paths)
    assert isinstance(status.end, JobFailed)
    assert (status.end.what, status.end.where) == ("the loss is not finite", "iteration 450")
    assert (status.end.attempt, status.end.after_s, status.end.log) == (3, 3.0, str(paths.log))
    assert status.end.tail == tuple(map(str, range(5, 20)))


def test_new_process_that_has_not_spoken_yet_shows_nothing_of_the_last_one(paths: JobPaths) -> None:
    log(paths, BEGAN, AT)
    status = JobStatus(JOB)
    status.look(paths)
    LeaseInfo(2, FAR, time.time()).write(paths)
    status.look(paths)
    assert (status.state, status.attempt, status.started, status.epoch) == (State.RUNNING, 2, None, "")


def test_job_in_this_very_process_is_at_work_without_devices(paths: JobPaths) -> None:
    status = JobStatus(JOB)
    with Lease.acquire(paths):
        status.look(paths)
        assert (status.state, status.process, status.devices) == (State.RUNNING, ME, ())
    status.look(paths)
    assert not status.at_work


@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_log_read_in_any_pieces_gives_what_pushed_events_give(cuts: list[int], paths: JobPaths) -> None:
    history = [QUEUED, BEGAN, AT, SAVED, MEASURED, AGAIN, AT, FINISHED]
    whole = "".join(json.dumps(event.to_dict()) + "\n" for event in history).encode()
    status, told = JobStatus(JOB), list[Event]()
    for cut in (*sorted(cuts), len(whole)):
        paths.events.write_bytes(whole[:cut])
        told += status.follow(paths)
    assert told == history
    assert replace(status, offset=0) == pushed(*history)


def test_state_of_a_long_log_is_read_from_its_end(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    log(paths, BEGAN, *[AT] * 500, CANCELLED)
    parsed: list[bytes] = []
    monkeypatch.setattr(events, "from_line", lambda line: parsed.append(line) or from_line(line))
    assert state_of(JOB, paths) is State.CANCELLED
    assert len(parsed) < 400


def plan_of(*jobs: Job, **recipe: str) -> Plan:
    planned = tuple(PlannedJob(job, False, "new") for job in jobs)
    return Plan("7f3a0001", {"name": "digits/quickstart", **recipe}, planned, "cpu", {})


class TestOfPlan:
    """What follows from one job of a plan for another."""

    def test_what_needs_a_failed_job_is_skipped_until_that_goes_on(self, paths: JobPaths) -> None:
        runs, teacher = Runs(paths.folder.parents[1]), Runs(paths.folder.parents[1]).job(TEACHER.id)
        teacher.folder.mkdir()
        failure(teacher)
        _, student = of_plan(plan_of(TEACHER, JOB), runs)
        assert student.state is State.SKIPPED
        assert isinstance(student.end, JobSkipped)
        assert student.end.why == "it needs teacher, which failed"
        in_queue(paths)
        assert of_plan(plan_of(TEACHER, JOB), runs)[1].state is State.QUEUED, "a cluster has it"
        paths.handle.unlink()
        teacher.failure.unlink()
        assert [one.state for one in of_plan(plan_of(TEACHER, JOB), runs)] == [State.QUEUED, State.QUEUED]

    def test_parent_of_another_plan_is_nobody_s_matter(self, paths: JobPaths) -> None:
        (student,) = of_plan(plan_of(JOB), Runs(paths.folder.parents[1]))
        assert student.state is State.QUEUED

    @pytest.mark.parametrize(("expected", "state"), [(12.0, State.DONE), (40.0, State.FAILED)])
    def test_teacher_that_misses_what_the_recipe_expects_has_failed(
        self, expected: float, state: State, paths: JobPaths
    ) -> None:
        result(paths)
        (teacher,) = of_plan(
            plan_of(make(JOB.id, "rm", inputs={"expect_ap": expected})), Runs(paths.folder.parents[1])
        )
        assert teacher.state is state
        assert teacher.result is not None

    def test_trial_that_was_stopped_and_lost_its_checkpoints_is_pruned(self, paths: JobPaths) -> None:
        log(paths, BEGAN, MEASURED, CANCELLED)
        unwanted(paths)
        runs, search = Runs(paths.folder.parents[1]), plan_of(JOB, study="digits/gfl-3fa2c1")
        assert [one.state for one in of_plan(search, runs)] == [State.PRUNED]
        assert [one.state for one in of_plan(plan_of(JOB), runs)] == [State.CANCELLED]
        paths.checkpoints.mkdir()
        (paths.checkpoints / "400-ab.pth").touch()
        assert [one.state for one in of_plan(search, runs)] == [State.CANCELLED]
