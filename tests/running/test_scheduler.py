from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab.devices import Machine
from kdlab.errors import MachineError
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobCheckpointed,
    JobFailed,
    JobFinished,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobStarted,
    read_from,
)
from kdlab.jobs.files import DISK_FULL
from kdlab.jobs.handle import PREEMPTED, Handle
from kdlab.jobs.job import Job, Resources, read_job
from kdlab.jobs.lease import LeaseInfo, Process, holder
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.running import scheduler
from kdlab.running.executors.inline import Inline
from kdlab.running.executors.local import Local
from kdlab.running.scheduler import Feed
from tests.stubs.jobs import make, steering
from tests.stubs.stub_job import COMMAND, METRICS, make_job, make_plan, make_result, prepared

SCHEDULER = """
import sys
from pathlib import Path
from kdlab.jobs.paths import Runs
from kdlab.running import scheduler
from kdlab.running.executors.local import Local
from tests.stubs.stub_job import COMMAND, make_job, make_plan
plan = make_plan(make_job(steps=150), make_job("b", parents=("student-a",)))
for event in scheduler.run(plan, Local(command=COMMAND), Runs(Path(sys.argv[1])), poll_s=0.02):
    print(type(event).__name__, flush=True)
"""
TWENTY = """
import sys
from pathlib import Path
from kdlab.jobs.paths import Runs
from kdlab.running import scheduler
from kdlab.running.executors import local
from tests.running.test_scheduler import twenty
from tests.stubs.stub_server import SUBPROCESS
local.subprocess = SUBPROCESS
for event in scheduler.run(twenty(), local.Local(command=sys.argv[2:]), Runs(Path(sys.argv[1])), poll_s=0.02):
    print(type(event).__name__, event.job, flush=True)
"""
ROOT = Path(__file__).resolve().parents[2]
ENDS = (JobFinished, JobFailed, JobCancelled, JobSkipped)


@pytest.fixture(autouse=True)
def four_free_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_stubs: None) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def events_of(plan: Plan, runs: Runs, **options: Any) -> Generator[Event, None, None]:
    return scheduler.run(plan, Local(command=COMMAND), runs, poll_s=0.02, **options)


def outcomes(events: Iterable[Event]) -> dict[str, str]:
    """The last word on each job."""
    return {event.job: type(event).__name__ for event in events if isinstance(event, ENDS)}


def only(events: Iterable[Event], kind: type[Event]) -> Any:
    (event,) = [event for event in events if isinstance(event, kind)]
    return event


def kinds(events: Iterable[Event], job: str = "student-a") -> list[str]:
    return [type(event).__name__ for event in events if event.job == job]


def until(events: Iterator[Event], kind: type[Event], job: str = "student-a") -> None:
    """Follow a run up to an event; fails the test where it never comes."""
    next(event for event in events if isinstance(event, kind) and event.job == job)


class Instant:
    """An executor without processes: a job ends, with a result, at the first look after its start."""

    def __init__(self, runs: Runs, room: int = 99) -> None:
        self.runs, self.room = runs, room
        self.started: list[str] = []
        self.most = 0
        self._alive: set[str] = set()

    @property
    def machine(self) -> Machine:
        return Machine(tuple(range(self.room)))

    def slots(self, job: Job) -> int:
        return self.room

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        if len(self._alive) == self.room:
            return None
        self._alive.add(job.id)
        self.started.append(job.arm)
        self.most = max(self.most, len(self._alive))
        return Handle("instant", Process.of(os.getpid()))

    def waits_for(self, job: Job) -> str:
        return ""

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        for job in handles:
            paths = self.runs.job(job)
            make_result(read_job(paths)).write(paths)
        self._alive -= set(handles)
        return dict.fromkeys(handles, 0)

    def cancel(self, handle: Handle, grace_s: float) -> None:
        pytest.fail("nothing to cancel")


def test_job_tells_its_life_from_queued_to_finished(runs: Runs) -> None:
    events = list(events_of(make_plan(make_job(steps=1)), runs))
    assert kinds(events) == ["JobQueued", "JobStarted", "JobProgress", "JobCheckpointed", "JobFinished"]
    assert only(events, JobFinished).metrics == METRICS


def test_job_is_written_down_before_it_runs(runs: Runs) -> None:
    job = make_job()
    next(run := events_of(make_plan(job), runs))
    run.close()
    assert read_job(runs.job(job.id)) == job


def test_finished_job_is_reused_and_all_jobs_are_told_first(runs: Runs) -> None:
    plan = make_plan(make_job(), make_job("b", parents=("student-a",)))
    list(events_of(make_plan(plan.jobs[0].job), runs))
    events = list(events_of(plan, runs))
    assert [type(event) for event in events[:2]] == [JobReused, JobQueued]
    assert only(events, JobReused).metrics == METRICS
    assert kinds(events) == ["JobReused"]
    assert outcomes(events) == {"student-b": "JobFinished"}


def test_child_starts_after_its_parent_finished(runs: Runs) -> None:
    plan = make_plan(make_job(), make_job("b", parents=("student-a",)))
    events = list(events_of(plan, runs))
    finished = next(i for i, e in enumerate(events) if isinstance(e, JobFinished) and e.job == "student-a")
    started = next(i for i, e in enumerate(events) if isinstance(e, JobStarted) and e.job == "student-b")
    assert finished < started


def test_longest_chain_starts_first(runs: Runs) -> None:
    jobs = [
        make_job("short"),
        make_job("long"),
        make_job("root"),
        make("prepare-leaf", "leaf", parents=("student-root",)),
    ]
    executor = Instant(runs, room=1)
    plan = make_plan(*jobs, short=1, long=5, root=2, leaf=4)
    list(scheduler.run(plan, executor, runs, poll_s=0))
    assert executor.started == ["root", "long", "leaf", "short"]


def test_the_baseline_starts_before_the_arms_that_are_measured_against_it(runs: Runs) -> None:
    """It costs least, so it came last, and a run that was stopped had no gain to show."""
    teacher = make("teacher-t", "teacher")
    arms = [make(f"student-{arm}", arm, parents=("teacher-t",)) for arm in ("rm", "both")]
    executor = Instant(runs, room=1)
    plan = make_plan(teacher, make_job("baseline"), *arms, teacher=3, baseline=1, rm=2, both=4)
    list(scheduler.run(plan, executor, runs, poll_s=0))
    assert executor.started == ["teacher", "baseline", "both", "rm"]


def test_no_more_jobs_run_at_once_than_asked_for(runs: Runs) -> None:
    executor = Instant(runs)
    list(scheduler.run(make_plan(*map(make_job, "abcde")), executor, runs, poll_s=0, jobs_at_once=2))
    assert len(executor.started) == 5
    assert executor.most == 2


def test_inline_job_is_told_before_the_next_one_runs(runs: Runs) -> None:
    executor = Inline(module="tests.stubs.stub_job")
    plan = make_plan(make_job(end="fail"), make_job("b"))
    assert outcomes(scheduler.run(plan, executor, runs, poll_s=0.02, fail_fast=True)) == {
        "student-a": "JobFailed",
        "student-b": "JobSkipped",
    }


def test_jobs_wait_for_free_devices(runs: Runs) -> None:
    two = Resources(threads=2)
    plan = make_plan(*(make_job(name, resources=two, steps=5) for name in "abc"))
    events = list(events_of(plan, runs))
    assert outcomes(events) == dict.fromkeys(["student-a", "student-b", "student-c"], "JobFinished")
    running = most = 0
    for event in events:
        running += isinstance(event, JobStarted) - isinstance(event, JobFinished)
        most = max(most, running)
    assert most == 2


def test_job_that_never_fits_is_refused_before_anything_starts(runs: Runs) -> None:
    plan = make_plan(make_job(), make_job("b", resources=Resources(gpus=999)))
    with pytest.raises(MachineError, match=r"b seed 0 \(student-b\)"):
        list(events_of(plan, runs))
    assert not runs.job("student-a").log.exists()


def test_plan_that_lacks_a_parent_is_refused(runs: Runs) -> None:
    with pytest.raises(ValueError, match="student-z"):
        list(events_of(make_plan(make_job(parents=("student-z",))), runs))


def test_what_is_done_needs_no_parent_in_the_plan(runs: Runs) -> None:
    """A diagnosis has the finished students alone, not what their methods prepared."""
    done = make_job(parents=("student-z",))
    list(events_of(make_plan(make_job()), runs))
    made = make_plan(done)
    made = replace(made, jobs=(replace(made.jobs[0], done=True),))
    assert [type(event) for event in events_of(made, runs)] == [JobReused]


def test_failed_job_tells_its_fault_and_the_end_of_its_log(runs: Runs) -> None:
    failed = only(events_of(make_plan(make_job(end="fail")), runs), JobFailed)
    assert (failed.what, failed.got) == ("the loss is not finite", "nan")
    assert failed.fix == "lower schedule.lr"
    assert failed.where == "iteration 2"
    assert failed.after_s == 0.5
    assert failed.log == str(runs.job("student-a").log)
    assert "step 1" in failed.tail
    assert len(failed.tail) <= 15


def test_failure_skips_what_needs_it_and_nothing_else(runs: Runs) -> None:
    plan = make_plan(
        make_job(end="fail"),
        make_job("b", parents=("student-a",)),
        make_job("c", parents=("student-b",)),
        make_job("d"),
    )
    events = list(events_of(plan, runs))
    ends = {"a": "JobFailed", "b": "JobSkipped", "c": "JobSkipped", "d": "JobFinished"}
    assert outcomes(events) == {f"student-{name}": end for name, end in ends.items()}
    skipped = [event.why for event in events if isinstance(event, JobSkipped)]
    assert skipped == ["it needs a seed 0 (student-a), which failed"] * 2


def test_fail_fast_ends_everything(runs: Runs) -> None:
    plan = make_plan(make_job(end="fail", step_s=0.2), make_job("b", steps=1000), make_job("c"))
    events = list(events_of(plan, runs, fail_fast=True, jobs_at_once=2))
    ends = {"a": "JobFailed", "b": "JobCancelled", "c": "JobSkipped"}
    assert outcomes(events) == {f"student-{name}": end for name, end in ends.items()}
    assert only(events, JobSkipped).why == "a seed 0 (student-a) failed, and --fail-fast is on"


def test_failure_of_an_earlier_run_is_forgotten(runs: Runs) -> None:
    list(events_of(make_plan(make_job(end="fail")), runs))
    events = list(events_of(make_plan(make_job()), runs))
    assert outcomes(events) == {"student-a": "JobFinished"}
    assert not runs.job("student-a").failure.exists()


def test_process_that_ends_without_a_word_failed_and_is_not_retried(runs: Runs) -> None:
    events = list(events_of(make_plan(make_job(end="exit")), runs))
    assert kinds(events).count("JobStarted") == 1
    failed = only(events, JobFailed)
    assert failed.what == "the process ended with exit code 1, without a result and without a reason"
    assert failed.tail[-1] == "no module named nothing"


@pytest.mark.parametrize("end", ["kill_once", "torn"])
def test_killed_job_goes_on_from_its_checkpoint(runs: Runs, end: str) -> None:
    events = list(events_of(make_plan(make_job(end=end)), runs))
    assert only(events, JobRetried).why == "the process was killed (SIGKILL)"
    starts = [(event.attempt, event.iteration) for event in events if isinstance(event, JobStarted)]
    assert starts == [(1, 0), (2, 1)]
    assert outcomes(events) == {"student-a": "JobFinished"}


def test_job_that_is_killed_every_time_fails(runs: Runs) -> None:
    events = list(events_of(make_plan(make_job(end="kill")), runs, retries=1))
    assert kinds(events).count("JobRetried") == 1
    failed = only(events, JobFailed)
    assert failed.what == "the process was killed (SIGKILL) 2 times without getting further"
    assert "memory" in failed.fix


def test_stop_ends_running_jobs_at_a_checkpoint_and_starts_no_more(runs: Runs) -> None:
    stop = threading.Event()
    plan = make_plan(make_job(steps=1000), make_job("b"))
    events = events_of(plan, runs, stop=stop, jobs_at_once=1)
    until(events, JobCheckpointed)
    stop.set()
    rest = list(events)
    assert only(rest, JobCancelled).iteration >= 1
    assert outcomes(rest) == {"student-a": "JobCancelled"}


def test_kill_ends_jobs_that_do_not_listen(runs: Runs) -> None:
    stop, kill = threading.Event(), threading.Event()
    events = events_of(make_plan(make_job(steps=1000, end="deaf")), runs, stop=stop, kill=kill)
    until(events, JobProgress)
    stop.set()
    until(events, JobProgress)
    kill.set()
    assert outcomes(events) == {"student-a": "JobCancelled"}


def test_stopped_job_goes_on_in_the_next_run(runs: Runs) -> None:
    stop = threading.Event()
    events = events_of(make_plan(make_job(steps=1000)), runs, stop=stop)
    until(events, JobCheckpointed)
    stop.set()
    saved = only(events, JobCancelled).iteration
    resumed = list(events_of(make_plan(make_job(steps=saved + 1)), runs))
    assert only(resumed, JobStarted).iteration == saved
    assert outcomes(resumed) == {"student-a": "JobFinished"}


def test_stop_request_of_another_shell_cancels_one_job(runs: Runs) -> None:
    plan = make_plan(make_job(steps=1000), make_job("b"), make_job("c", parents=("student-a",)))
    events = events_of(plan, runs)
    until(events, JobStarted)
    runs.job("student-a").stop_request.touch()
    rest = list(events)
    ends = {"student-a": "JobCancelled", "student-b": "JobFinished", "student-c": "JobSkipped"}
    assert outcomes(rest) == ends


def test_stop_request_reaches_a_job_that_waits(runs: Runs) -> None:
    plan = make_plan(make_job(steps=30), make_job("b", parents=("student-a",)))
    events = events_of(plan, runs)
    until(events, JobStarted)
    runs.job("student-b").stop_request.touch()
    assert outcomes(events) == {"student-a": "JobFinished", "student-b": "JobCancelled"}
    assert not runs.job("student-b").log.exists()


def test_job_that_dies_after_a_stop_request_is_not_retried(runs: Runs) -> None:
    executor = Local(command=["sh", "-c", 'touch "$0/stop.request"; kill -KILL $$'])
    events = scheduler.run(make_plan(make_job()), executor, runs, poll_s=0.02)
    assert kinds(events) == ["JobQueued", "JobCancelled"]


def test_stop_request_of_an_earlier_run_is_forgotten(runs: Runs) -> None:
    prepared(runs, make_job()).stop_request.touch()
    assert outcomes(events_of(make_plan(make_job()), runs)) == {"student-a": "JobFinished"}


def test_closing_the_iterator_stops_the_jobs(runs: Runs) -> None:
    with closing(events_of(make_plan(make_job(steps=1000)), runs)) as events:
        until(events, JobStarted)
    assert holder(runs.job("student-a")) is None
    assert isinstance(read_from(runs.job("student-a").events).events[-1], JobCancelled)


def test_killed_scheduler_leaves_its_job_to_the_next_one(runs: Runs) -> None:
    command = [sys.executable, "-c", SCHEDULER, str(runs.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as first:
        assert first.stdout is not None
        assert any(line == "JobCheckpointed\n" for line in first.stdout)
        first.send_signal(signal.SIGKILL)
        first.wait()
    paths = runs.job("student-a")
    running = holder(paths)
    assert running is not None
    plan = make_plan(make_job(steps=150), make_job("b", parents=("student-a",)))
    events = list(events_of(plan, runs))
    assert outcomes(events) == {"student-a": "JobFinished", "student-b": "JobFinished"}
    assert [type(event) for event in events[:4]] == [JobQueued, JobQueued, JobStarted, JobProgress]
    iterations = [e.iteration for e in events if isinstance(e, JobCheckpointed) and e.job == "student-a"]
    assert iterations == list(range(1, 151))
    last = LeaseInfo.read(paths)
    assert last is not None
    assert (last.attempt, last.process) == (1, running.process)


def test_two_schedulers_share_a_plan_without_running_a_job_twice(runs: Runs) -> None:
    plan = make_plan(*(make_job(name, steps=10) for name in "abcd"))
    told: list[list[Event]] = [[], []]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(events_of(plan, runs, jobs_at_once=1)))
        for mine in told
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in told:
        ends = {event.job for event in mine if isinstance(event, JobFinished | JobReused)}
        assert ends == {f"student-{name}" for name in "abcd"}
    attempts = [lease.attempt for name in "abcd" if (lease := LeaseInfo.read(runs.job(f"student-{name}")))]
    assert attempts == [1, 1, 1, 1]


def twenty() -> Plan:
    """Jobs that wait for one another here and there, some of them killed once."""
    ends = ["finish", "kill_once", "torn"]
    return make_plan(
        *(
            make_job(str(i), (f"student-{i // 3}",) if i % 3 else (), step_s=0.02, end=ends[i % 4 % 3])
            for i in range(20)
        )
    )


def test_two_commands_at_once_start_none_of_twenty_jobs_twice(runs: Runs) -> None:
    command = [sys.executable, "-c", TWENTY, str(runs.folder), *COMMAND]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    told = [one.communicate(timeout=120)[0].splitlines() for one in both]
    jobs = {planned.job.id for planned in twenty().jobs}
    for lines in told:
        assert {line.split()[1] for line in lines if line.startswith(("JobFinished", "JobReused"))} == jobs
    for job in jobs:
        events = read_from(runs.job(job).events).events
        starts = [event.attempt for event in events if isinstance(event, JobStarted)]
        killed = steering(read_job(runs.job(job)))["end"] != "finish"
        assert starts == ([1, 2] if killed else [1])
        assert isinstance(events[-1], JobFinished)


@pytest.mark.parametrize("left", [0, 7, 150])
def test_job_whose_events_lose_their_end_is_followed_to_its_own(runs: Runs, left: int) -> None:
    events = events_of(make_plan(make_job(steps=30)), runs)
    until(events, JobCheckpointed)
    os.truncate(runs.job("student-a").events, left)
    rest = list(events)
    assert outcomes(rest) == {"student-a": "JobFinished"}
    assert [event.iteration for event in rest if isinstance(event, JobCheckpointed)][-1] == 30


def test_job_that_could_not_even_say_so_failed_of_a_full_disk(runs: Runs) -> None:
    executor = Local(command=["sh", "-c", f"exit {DISK_FULL}"])
    failed = only(scheduler.run(make_plan(make_job()), executor, runs, poll_s=0.02), JobFailed)
    assert (failed.what, failed.where) == ("the disk is full", str(runs.job("student-a").folder))
    assert "make room" in failed.fix


def test_process_whose_starter_could_not_note_it_keeps_the_job(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, start = make_job(steps=60, step_s=0.05), Local.start
    unknown: list[subprocess.Popen[bytes]] = []

    def start_second(local: Local, job: Job, paths: JobPaths) -> Handle | None:
        if not unknown:
            unknown.append(subprocess.Popen([*COMMAND, str(paths.folder)], stdout=subprocess.DEVNULL))
            while LeaseInfo.read(paths) is None:
                time.sleep(0.01)
        return start(local, job, paths)

    monkeypatch.setattr(Local, "start", start_second)
    events = list(events_of(make_plan(job), runs))
    unknown[0].wait()
    assert only(events, JobRetried).why == "another process works on it already"
    assert outcomes(events) == {"student-a": "JobFinished"}
    started = [event for event in read_from(runs.job(job.id).events).events if isinstance(event, JobStarted)]
    assert [event.attempt for event in started] == [1]


def test_process_that_has_yet_to_take_its_lease_is_adopted(runs: Runs) -> None:
    job = make_job()
    paths = prepared(runs, job)
    with subprocess.Popen(["sleep", "60"]) as process:
        Handle("local", Process.of(process.pid)).write(paths)
        events = events_of(make_plan(job), runs)
        assert isinstance(next(events), JobQueued)
        make_result(job).write(paths)
        process.kill()
        assert outcomes(events) == {"student-a": "JobFinished"}
    assert not paths.log.exists()


def test_job_that_runs_on_another_host_is_followed_to_its_end(runs: Runs) -> None:
    job = make_job(resources=Resources(gpus=999))
    paths = prepared(runs, job)
    far = Process("another-host", 1, 1)
    LeaseInfo(1, far, time.time()).write(paths)
    events = events_of(make_plan(job), runs)
    assert isinstance(next(events), JobQueued)
    make_result(job).write(paths)
    LeaseInfo(1, far, 0.0).write(paths)
    assert outcomes(events) == {"student-a": "JobFinished"}
    assert not paths.log.exists()


def test_job_on_another_host_is_asked_to_stop_by_a_file(runs: Runs) -> None:
    job, stop = make_job(), threading.Event()
    paths = prepared(runs, job)
    LeaseInfo(1, Process("another-host", 1, 1), time.time()).write(paths)
    events = events_of(make_plan(job), runs, stop=stop)
    next(events)
    stop.set()
    threading.Timer(0.1, lambda: LeaseInfo(1, Process("another-host", 1, 1), 0.0).write(paths)).start()
    assert outcomes(events) == {"student-a": "JobCancelled"}
    assert paths.stop_request.exists()


def test_kill_lets_go_of_a_job_on_another_host(runs: Runs) -> None:
    job, kill = make_job(), threading.Event()
    LeaseInfo(1, Process("another-host", 1, 1), time.time()).write(prepared(runs, job))
    events = events_of(make_plan(job), runs, kill=kill)
    next(events)
    kill.set()
    assert outcomes(events) == {"student-a": "JobCancelled"}


def test_jobs_on_another_host_hold_none_of_these_cores(runs: Runs) -> None:
    far = [make_job(name, resources=Resources(threads=2)) for name in "xy"]
    for job in far:
        LeaseInfo(1, Process("another-host", 1, 1), time.time()).write(prepared(runs, job))
    stop = threading.Event()
    events = events_of(make_plan(*far, make_job("a"), make_job("b")), runs, stop=stop, jobs_at_once=1)
    ended = [next(event for event in events if isinstance(event, JobFinished)).job for _ in "ab"]
    assert sorted(ended) == ["student-a", "student-b"]
    for job in far:
        runs.job(job.id).lease.unlink()
    events.close()


def another(runs: Runs, steps: int = 400) -> subprocess.Popen[str]:
    """Another command, which has begun with `student-a`."""
    command = [sys.executable, "-c", SCHEDULER.replace("150", str(steps)), str(runs.folder)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout is not None
    assert any(line == "JobCheckpointed\n" for line in first.stdout)
    return first


def test_a_command_that_is_stopped_lets_go_of_jobs_of_another_that_is_there(runs: Runs) -> None:
    with another(runs) as first:
        stop = threading.Event()
        events = events_of(
            make_plan(make_job(steps=150), make_job("b", parents=("student-a",))), runs, stop=stop
        )
        until(events, JobProgress)
        stop.set()
        assert outcomes(events) == {}
        assert holder(runs.job("student-a")) is not None
        first.send_signal(signal.SIGKILL)


def test_a_job_whose_command_was_stopped_goes_on_where_another_needs_it(runs: Runs) -> None:
    with another(runs) as first:
        events = events_of(make_plan(make_job(steps=150), make_job("b", parents=("student-a",))), runs)
        until(events, JobProgress)
        leader = Handle.read(runs.job("student-a"))
        assert leader is not None and leader.process is not None
        os.kill(leader.process.pid, signal.SIGTERM)
        told = list(events)
        first.send_signal(signal.SIGKILL)
    assert only(told, JobRetried).why == "the command that started it stopped it"
    assert outcomes(told) == {"student-a": "JobFinished", "student-b": "JobFinished"}


def test_a_job_in_a_notebook_ends_before_its_process(runs: Runs) -> None:
    job, stop = make_job(), threading.Event()
    paths = prepared(runs, job)
    with subprocess.Popen(["sleep", "60"]) as notebook:
        kernel = Process.of(notebook.pid)
        Handle("inline", kernel, starter=kernel).write(paths)
        LeaseInfo(1, kernel, time.time()).write(paths)
        events = events_of(make_plan(job), runs, stop=stop)
        assert isinstance(next(events), JobQueued)
        make_result(job).write(paths)
        LeaseInfo(1, kernel, 0.0).write(paths)
        assert outcomes(events) == {"student-a": "JobFinished"}
        assert notebook.poll() is None
        notebook.kill()


def test_reason_that_reached_the_events_alone_is_told(runs: Runs, tmp_path: Path) -> None:
    job = make_job()
    log = JobFailed(job=job.id, what="the disk is full", fix="make room", after_s=3.0).to_dict()
    script = f"echo '{json.dumps(log)}' >> \"$0/events.jsonl\"; exit 1"
    executor = Local(command=["sh", "-c", script])
    failed = only(scheduler.run(make_plan(job), executor, runs, poll_s=0.02), JobFailed)
    assert (failed.what, failed.fix, failed.after_s) == ("the disk is full", "make room", 3.0)


def test_result_whose_process_died_before_telling_counts(runs: Runs) -> None:
    job = make_job(step_s=60)
    events = events_of(make_plan(job), runs)
    until(events, JobStarted)
    paths = runs.job(job.id)
    make_result(job).write(paths)
    running = holder(paths)
    assert running is not None
    os.kill(running.process.pid, signal.SIGKILL)
    assert only(events, JobFinished).metrics == METRICS


@pytest.mark.parametrize("known", [True, False])
def test_states_of_a_job_that_was_killed_right_after_its_result_are_removed(runs: Runs, known: bool) -> None:
    job = make_job(step_s=60)
    paths = runs.job(job.id)
    events = events_of(make_plan(job), runs)
    if known:
        until(events, JobStarted)
    else:
        prepared(runs, job)
    paths.checkpoints.mkdir(exist_ok=True)
    for name in ("000000006-0a1b.pth", "weights.pth"):
        (paths.checkpoints / name).touch()
    make_result(job).write(paths)
    if running := holder(paths):
        os.kill(running.process.pid, signal.SIGKILL)
    list(events)
    assert [path.name for path in paths.checkpoints.iterdir()] == ["weights.pth"]


def test_job_that_somebody_terminates_is_cancelled_not_retried(runs: Runs) -> None:
    events = events_of(make_plan(make_job(steps=1000)), runs)
    until(events, JobCheckpointed)
    running = holder(runs.job("student-a"))
    assert running is not None
    os.kill(running.process.pid, signal.SIGTERM)
    assert only(events, JobCancelled).iteration >= 1


def test_process_that_is_terminated_before_it_listens_is_cancelled_too(runs: Runs) -> None:
    executor = Local(command=["sh", "-c", "kill -TERM $$"])
    events = scheduler.run(make_plan(make_job()), executor, runs, poll_s=0.02)
    assert outcomes(events) == {"student-a": "JobCancelled"}


def test_runs_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(MachineError, match="KDLAB_RUNS"):
        list(events_of(make_plan(make_job()), Runs(tmp_path / "runs")))


def test_disk_that_fills_up_is_told(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdlab.jobs.handle.write_json", full)
    with pytest.raises(MachineError, match="No space left on device"):
        list(events_of(make_plan(make_job(steps=1000)), runs))
    assert holder(runs.job("student-a")) is None


def test_scheduler_imports_no_torch() -> None:
    imports = "kdlab.running.scheduler, kdlab.running.executors.local"
    code = f"import sys, {imports}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "False\n"


# --- a teacher that is not what is expected of it ---


def expecting(job: Job, ap: float) -> Job:
    return replace(job, inputs=replace(job.inputs, expect_ap=ap))


def test_a_teacher_below_expectation_fails_and_nothing_more_starts(runs: Runs) -> None:
    teacher = expecting(make_job(steps=1), 20.0)
    plan = make_plan(teacher, make_job("child", parents=(teacher.id,)), make_job("baseline"), a=9.0)
    events = list(events_of(plan, runs, jobs_at_once=1))
    assert outcomes(events) == {
        "student-a": "JobFailed",
        "student-child": "JobSkipped",
        "student-baseline": "JobSkipped",
    }
    assert "AP 12.5, and teacher.expect_ap is 20.0" in only(events, JobFailed).what


def test_a_reused_teacher_is_judged_before_anything_starts(runs: Runs) -> None:
    teacher = make_job(steps=1)
    list(events_of(make_plan(teacher), runs))
    plan = make_plan(expecting(teacher, 20.0), make_job("baseline"))
    events = list(events_of(plan, runs))
    assert outcomes(events) == {"student-a": "JobFailed", "student-baseline": "JobSkipped"}
    assert not kinds(events, "student-baseline").count("JobStarted")


@pytest.mark.parametrize("expected", [12.9, 3.0])
def test_a_teacher_near_or_above_expectation_serves(runs: Runs, expected: float) -> None:
    teacher = expecting(make_job(steps=1), expected)
    events = list(events_of(make_plan(teacher, make_job("child", parents=(teacher.id,))), runs))
    assert outcomes(events) == {"student-a": "JobFinished", "student-child": "JobFinished"}
    again = list(events_of(make_plan(teacher), runs))
    assert kinds(again) == ["JobReused"]


# --- a plan that grows ---


class Feeding:
    """Gives one batch of jobs a call; notes how many waited and ran at each."""

    def __init__(self, *batches: Plan | None) -> None:
        self.batches = list(batches)
        self.active: list[int] = []

    def __call__(self, active: int) -> Sequence[PlannedJob]:
        self.active.append(active)
        batch = self.batches.pop(0) if self.batches else None
        return batch.jobs if batch else ()


def fed(plan: Plan, runs: Runs, feed: Feed, room: int = 99, **options: Any) -> tuple[list[Event], list[str]]:
    """What a run of a growing plan tells, and the arms in the order of their starts."""
    executor = Instant(runs, room)
    events = list(scheduler.run(plan, executor, runs, poll_s=0, feed=feed, **options))
    return events, executor.started


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_S", 0.0)


@pytest.mark.usefixtures("looks_at_once")
class TestFeed:
    def test_is_asked_at_first_and_until_it_gives_none(self, runs: Runs) -> None:
        feed = Feeding(make_plan(make_job("b")), make_plan(make_job("c"), make_job("d")))
        events, started = fed(make_plan(make_job("a")), runs, feed)
        assert sorted(started) == ["a", "b", "c", "d"]
        assert set(outcomes(events).values()) == {"JobFinished"}
        assert feed.active[:3] == [1, 2, 4]

    def test_plan_of_nothing_lives_by_it(self, runs: Runs) -> None:
        events, started = fed(make_plan(), runs, Feeding(make_plan(make_job("a"))))
        assert started == ["a"]
        assert outcomes(events) == {"student-a": "JobFinished"}

    def test_gives_jobs_while_others_run(self, runs: Runs) -> None:
        late: list[Plan] = []

        def feed(active: int) -> Sequence[PlannedJob]:
            return late.pop().jobs if late else ()

        events = scheduler.run(
            make_plan(make_job(steps=100)), Local(command=COMMAND), runs, poll_s=0.02, feed=feed
        )
        until(events, JobStarted)
        late.append(make_plan(make_job("b", steps=1)))
        told = list(events)
        ends = [event.job for event in told if isinstance(event, JobFinished)]
        assert ends == ["student-b", "student-a"]

    def test_gives_children_of_jobs_that_are_done_and_of_no_others(self, runs: Runs) -> None:
        child = make_plan(make_job("b", parents=("student-a",)))
        _, started = fed(make_plan(make_job("a")), runs, Feeding(child))
        assert started == ["a", "b"]
        stray = Feeding(make_plan(make_job("c", parents=("student-x",))))
        with pytest.raises(ValueError, match="student-x"):
            fed(make_plan(make_job("d")), runs, stray)

    def test_done_jobs_make_room_for_more_at_once(self, runs: Runs) -> None:
        for name in "bc":
            make_result(make_job(name)).write(prepared(runs, make_job(name)))
        feed = Feeding(*(make_plan(make_job(name)) for name in "bcd"))
        events, started = fed(make_plan(), runs, feed)
        assert feed.active[:4] == [0, 0, 0, 1]
        assert [type(event) for event in events[:3]] == [JobReused, JobReused, JobQueued]
        assert started == ["d"]

    def test_cancelled_job_that_is_given_again_goes_on(self, runs: Runs) -> None:
        job = make_job(steps=60)
        again: list[Plan] = []

        def feed(active: int) -> Sequence[PlannedJob]:
            return again.pop().jobs if again else ()

        events = scheduler.run(make_plan(job), Local(command=COMMAND), runs, poll_s=0.02, feed=feed)
        until(events, JobCheckpointed)
        runs.job(job.id).stop_request.touch()
        until(events, JobCancelled)
        again.append(make_plan(job))
        told = list(events)
        assert only(told, JobStarted).iteration > 0
        assert outcomes(told) == {"student-a": "JobFinished"}

    def test_failed_job_that_is_given_again_is_tried_again(self, runs: Runs) -> None:
        plan, again = make_plan(make_job(end="fail")), list[Plan]()
        events = []
        for event in events_of(plan, runs, feed=lambda active: again.pop().jobs if again else ()):
            events.append(event)
            if isinstance(event, JobFailed) and kinds(events).count("JobFailed") == 1:
                again.append(plan)
        assert kinds(events).count("JobFailed") == 2

    def test_is_not_asked_once_the_run_is_to_end(self, runs: Runs) -> None:
        stop = threading.Event()
        stop.set()
        feed = Feeding(make_plan(make_job("b")))
        events, started = fed(make_plan(make_job("a")), runs, feed, stop=stop)
        assert (feed.active, started) == ([], [])
        assert kinds(events) == ["JobQueued"]

    def test_is_not_asked_after_a_failure_that_ends_all(self, runs: Runs) -> None:
        feed = Feeding(None, None, None, None)
        plan = make_plan(make_job(end="fail"))
        events = scheduler.run(plan, Local(command=COMMAND), runs, poll_s=0.02, feed=feed, fail_fast=True)
        calls = 0
        for event in events:
            if isinstance(event, JobFailed):
                calls = len(feed.active)
        assert calls == len(feed.active)

    def test_its_jobs_start_by_what_they_cost(self, runs: Runs) -> None:
        jobs = [make_job(name) for name in ("short", "long", "middle")]
        feed = Feeding(make_plan(*jobs, short=1, long=9, middle=5))
        _, started = fed(make_plan(make_job("a"), a=100), runs, feed, room=1)
        assert started == ["a", "long", "middle", "short"]

    def test_job_that_never_fits_is_told(self, runs: Runs) -> None:
        wide = make_job("wide", resources=Resources(gpus=1))
        with pytest.raises(MachineError, match="does not fit"):
            list(events_of(make_plan(), runs, feed=Feeding(make_plan(wide))))


@pytest.mark.parametrize(("share", "outcome"), [(2, "JobFinished"), (1, "JobFailed")])
def test_job_whose_neighbours_filled_the_gpu_gets_one_to_itself(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, share: int, outcome: str
) -> None:
    shares: list[int] = []
    start = Local.start

    def noted(local: Local, job: Job, paths: JobPaths) -> Handle | None:
        handle = start(local, job, paths)
        shares.extend([job.resources.share] if handle else [])
        return handle

    monkeypatch.setattr(Local, "start", noted)
    job = make_job(end="full_once", resources=Resources(share=share))
    events = list(events_of(make_plan(job), runs))
    assert outcomes(events) == {"student-a": outcome}
    assert shares == ([2, 1] if share == 2 else [1])


def test_job_whose_gpu_is_broken_is_tried_on_another(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase $1 in --query-gpu*) printf '0, GPU-aa, 8192\\n1, GPU-bb, 8192\\n';; esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    script = f'test "$CUDA_VISIBLE_DEVICES" = GPU-aa && exit {PREEMPTED}; exec "$0" "$@"'
    executor = Local(command=["sh", "-c", script, *COMMAND])
    job = make_job(resources=Resources(gpus=1))
    events = list(scheduler.run(make_plan(job), executor, runs, poll_s=0.02))
    assert only(events, JobRetried).why == "the process lost its machine or its GPU"
    assert outcomes(events) == {"student-a": "JobFinished"}


def test_job_that_meets_broken_gpus_alone_fails_with_where_to_look(runs: Runs) -> None:
    executor = Local(command=["sh", "-c", f"exit {PREEMPTED}"])
    failed = only(scheduler.run(make_plan(make_job()), executor, runs, poll_s=0.02), JobFailed)
    assert "nvidia-smi, whether its GPU is broken" in failed.fix
