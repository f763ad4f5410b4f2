"""A run that waits for devices says for which, and who has them."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from kdlab import devices, session
from kdlab.cli.screen.board import Board
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.lines import Lines
from kdlab.cli.screen.progress import PlanStatus
from kdlab.jobs.events import Event, JobFinished, JobStarted, JobWaiting
from kdlab.jobs.paths import Runs
from kdlab.running import scheduler
from kdlab.running.driver import Driver, driving
from kdlab.running.executors.local import Local
from tests.stubs.stub_job import COMMAND, make_job, make_plan

OTHER = "pfi seed 0 (student-1) in /other/runs"
WHY = f"1 core: core 3 held by {OTHER}"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(scheduler, "LOOK_S", 0.01)
    monkeypatch.setattr(session, "followers", lambda *_: [])
    return Runs(tmp_path / "runs")


def test_a_run_tells_who_has_its_cores_once_and_goes_on_when_they_are_free(runs: Runs) -> None:
    lease = devices.detect(()).lease("core", 1)
    assert lease is not None
    lease.sign(OTHER)
    told: list[Event] = []
    of_others: list[str] = []
    plan = make_plan(make_job(steps=1))

    def see(event: Event) -> None:
        told.append(event)
        driver = Driver.of(plan.id, runs)
        of_others.append(driver.waits if driver else "")
        if isinstance(event, JobWaiting):
            lease.close()

    outcome = session.drive(plan, Local(command=COMMAND), runs, [see], jobs_at_once=1)
    assert outcome.complete
    assert [event.why for event in told if isinstance(event, JobWaiting)] == [WHY]
    # an observer sees an event before other shells can read of it
    kinds = [type(event) for event in told]
    assert of_others[kinds.index(JobStarted)] == WHY
    assert of_others[kinds.index(JobFinished)] == ""


def test_a_job_signs_the_devices_that_it_leases(runs: Runs) -> None:
    local, job = Local(command=COMMAND), make_job(steps=500)
    events = scheduler.run(make_plan(job), local, runs, poll_s=0.01)
    next(event for event in events if isinstance(event, JobStarted))
    assert local.waits_for(job) == f"1 core: core 3 held by a seed 0 (student-a) in {runs.folder.absolute()}"
    events.close()
    assert devices.detect(()).holders("core") == {}


def test_other_shells_and_both_screens_say_what_is_waited_for(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(make_job())
    plan.save(runs)
    with driving(plan.id, runs, "kdlab run x -j 1", 1) as say:
        say(WHY)
        seen = PlanStatus.read(plan, runs)
    assert (seen.driver and seen.driver.waits, seen.jobs_at_once) == (WHY, 1)
    waiting = JobWaiting(job="student-a", why=WHY)
    Lines(PlanStatus(plan), Screen()).see(waiting)
    assert f"a seed 0  waits for {WHY}" in capsys.readouterr().err
    shown = io.StringIO()
    board = Board(PlanStatus(plan), runs, Console(file=shown, width=120))
    board.see(waiting)
    Console(file=shown, width=120).print(board)
    assert f"a seed 0 waits for {WHY}" in shown.getvalue()
