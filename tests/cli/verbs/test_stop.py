from __future__ import annotations

import json
import threading

import pytest

from kdlab.cli.verbs import stop
from kdlab.jobs.events import Event, JobCancelled, JobSkipped, JobStarted
from kdlab.jobs.handle import Handle
from kdlab.running import scheduler
from kdlab.running.driver import driving
from kdlab.running.executors.local import Local
from tests.cli.conftest import Lab, wait_for
from tests.stubs.jobs import steering
from tests.stubs.stub_job import COMMAND

NEXT = "next: kdlab run digits/quickstart"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_LOOK_EVERY_S", 0.05)


def lines(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


def test_nothing_runs_is_no_error(lab: Lab) -> None:
    lab.done("teacher")
    lab.save()
    assert lab("stop") == (0, "plan 7f3a  digits/quickstart  nothing runs\n", f"{NEXT}\n")


def test_nothing_run_here_names_the_quickstart(lab: Lab) -> None:
    assert lab("stop")[0] == 2


def test_all_that_runs_stops_at_a_checkpoint(lab: Lab) -> None:
    lab.save()
    for key in ("b0", "b1"):
        lab.start(key)
    code, out, err = lab("stop")
    assert code == 0
    assert [(words[0], words[4]) for words in lines(out)] == [
        ("stopped", "(student-b0000000)"),
        ("stopped", "(student-b0000001)"),
    ]
    assert "checkpoint at iteration" in out
    assert err.splitlines()[-1] == NEXT
    assert lab("status")[1].count("cancelled") == 3, "a count and two jobs"


def test_only_the_named_job_stops(lab: Lab) -> None:
    lab.save()
    for key in ("b0", "b1"):
        lab.start(key)
    assert lines(lab("stop 'baseline seed 1'")[1])[0][4] == "(student-b0000001)"
    assert not lab.paths("b0").stop_request.exists()


def test_a_job_that_does_not_stop_can_be_killed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "PATIENCE_S", 0.2)
    lab.save()
    lab.start("b0", step_s=60, end="deaf")
    code, out, _ = lab("stop 'baseline seed 0'")
    assert code == 1
    assert "end it with: kdlab stop student-b0000000 --now" in out
    monkeypatch.setattr(stop, "PATIENCE_S", 10.0)
    code, out, _ = lab("stop 'baseline seed 0' --now")
    assert (code, out.split()[0]) == (0, "killed")


def test_killing_ends_what_the_job_left_behind(lab: Lab) -> None:
    lab.save()
    lab.start("b0", step_s=60)
    lab("stop --now")
    assert lab("status --json")[1].count('"state": "running"') == 0


def test_a_job_that_had_ended_says_so(lab: Lab) -> None:
    lab.done("b0")
    lab.save()
    code, out, _ = lab("stop 'baseline seed 0'")
    assert (code, out) == (0, "  done     baseline seed 0 (student-b0000000)  had ended before: 1s\n")
    assert not lab.paths("b0").stop_request.exists()


def test_a_queued_job_of_a_plan_that_nobody_drives_is_left_alone(lab: Lab) -> None:
    lab.save()
    assert lab("stop rm")[1] == "  queued   rm seed 0 (student-aa000000)  nobody runs it\n"
    assert not lab.paths("rm").folder.exists()


def test_queued_jobs_of_a_driven_plan_do_not_start(lab: Lab) -> None:
    lab.save()
    with driving("7f3a0001", lab.runs, "kdlab run digits/quickstart --executor slurm"):
        code, out, err = lab("stop")
    assert code == 0
    assert [(words[0], words[-3:]) for words in lines(out)] == 4 * [("stopped", ["does", "not", "start"])]
    assert all(lab.paths(key).stop_request.exists() for key in lab.jobs)
    assert err.splitlines()[-1] == f"{NEXT} --executor slurm"


def test_a_scheduler_that_drives_the_plan_starts_nothing_more(lab: Lab) -> None:
    for job in lab.jobs.values():
        steering(job).update(steps=2000, step_s=0.02)
    plan = lab.save()
    events: list[Event] = []

    def drive() -> None:
        with driving(plan.id, lab.runs, ""):
            events.extend(scheduler.run(plan, Local(command=COMMAND), lab.runs, jobs_at_once=1, poll_s=0.05))

    driver = threading.Thread(target=drive)
    driver.start()
    wait_for(lab.paths("teacher").events.exists)
    code, out, _ = lab("stop")
    driver.join()
    assert (code, len(lines(out))) == (0, 4)
    assert sum(isinstance(event, JobStarted) for event in events) == 1
    ends = [type(event) for event in events if isinstance(event, JobCancelled | JobSkipped)]
    assert sorted(ends, key=str) == [JobCancelled, JobCancelled, JobCancelled, JobSkipped]


def test_a_job_in_a_cluster_s_queue_is_taken_out_of_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[tuple[str, float]] = []

    class Slurm(Local):
        def cancel(self, handle: Handle, grace_s: float) -> None:
            cancelled.append((handle.ref, grace_s))

        def poll(self, handles: object) -> dict[str, int | None]:
            return {}

    monkeypatch.setattr("kdlab.running.executors.base.load", lambda *_: Slurm())
    lab.save()
    Handle("slurm", ref="1234").write(lab.said("b0"))
    lab.paths("b0").lease.unlink()
    _, out, _ = lab("stop")
    assert cancelled == [("1234", stop.PATIENCE_S)], "it may have begun just now"
    assert out == "  stopped  baseline seed 0 (student-b0000000)  does not start\n"


def test_json_is_one_object(lab: Lab) -> None:
    lab.done("b0")
    lab.save()
    _, out, err = lab("stop 'baseline seed 0' --json")
    told = json.loads(out)
    assert (told["schema"], told["plan"], told["command"]) == (1, "7f3a0001", "kdlab run digits/quickstart")
    assert told["jobs"] == [
        {
            **{"id": "student-b0000000", "label": "baseline seed 0"},
            **{"became": "done", "note": "had ended before: 1s"},
        }
    ]
    assert err == ""
