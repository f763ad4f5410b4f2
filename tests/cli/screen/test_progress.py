from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from kdlab.cli.screen.places import place
from kdlab.cli.screen.progress import PlanStatus
from kdlab.cli.screen.rows import note
from kdlab.cli.verbs import status as verb
from kdlab.jobs.events import JobCancelled, JobCheckpointed, JobEvaluated, JobFailed, JobFinished
from kdlab.jobs.files import write_json
from kdlab.jobs.handle import Handle
from kdlab.jobs.lease import LeaseInfo
from kdlab.jobs.status import JobStatus
from kdlab.running.driver import driving
from tests.cli.conftest import BEGAN, FAR, TEACHER, Lab, at
from tests.stubs.jobs import make

SAVED = (JobCheckpointed, {"iteration": 400})


def look(lab: Lab) -> PlanStatus:
    return PlanStatus.read(lab.save(), lab.runs)


def state(lab: Lab, key: str) -> tuple[str, str]:
    status = look(lab).jobs[lab.jobs[key].id]
    return status.state, note(status)


def test_a_job_that_nobody_began_is_queued(lab: Lab) -> None:
    assert state(lab, "rm") == ("queued", "")


def test_a_job_at_work_is_running_where_its_lease_says(lab: Lab) -> None:
    lab.at_work("b0", attempt=2)
    status = look(lab).jobs[lab.jobs["b0"].id]
    assert (status.state, status.attempt, note(status)) == ("running", 2, "attempt 2")
    assert place(status, {}) == "node3"
    assert status.epoch == "5/12"


def test_a_finished_job_says_how_long_it_took(lab: Lab) -> None:
    lab.done("b0")
    assert state(lab, "b0") == ("done", "1s")


@pytest.mark.parametrize(("arm", "kind", "end", "more"), [
    ("teacher", "teacher", 3.9, "; it had AP 12.4 after epoch 3: lower teacher.schedule.epochs"),
    ("teacher", "student", 3.9,
     "; it had AP 12.4 after epoch 3: lower schedule.epochs of the recipe that it comes from"),
    ("teacher", "teacher", 10.5, ""),
    ("b0", "student", 3.9, ""),
])  # fmt: skip
def test_a_teacher_that_lost_what_it_had_learned_says_so(arm: str, kind: str, end: float, more: str) -> None:
    status = JobStatus(make("x-1", arm, kind=kind))
    about = {"job": "x-1", "time": 0.0, "attempt": 1}
    for epoch, ap in ((3, 12.4), (12, end)):
        status.see(JobEvaluated(**about, epoch=epoch, iteration=epoch, metrics={"AP": ap}))
    status.see(JobFinished(**about, metrics={"AP": end}, wall_s=60.0))
    assert note(status) == f"1m00s{more}"


@pytest.mark.parametrize(
    ("last", "word"), [(at(450), "interrupted"), ((JobCancelled, {"iteration": 400}), "cancelled")]
)
def test_a_job_that_nobody_works_on_any_more_tells_its_checkpoint(last: Any, word: str, lab: Lab) -> None:
    lab.said("b0", BEGAN, SAVED, last)
    assert state(lab, "b0") == (word, "checkpoint at iteration 400")


def test_a_process_that_died_without_a_word_leaves_its_job_interrupted(lab: Lab) -> None:
    Handle("local", FAR, ("0",)).write(lab.said("b0"))
    assert state(lab, "b0") == ("interrupted", "no checkpoint yet")


def test_a_trial_that_a_search_has_ended_is_pruned(lab: Lab) -> None:
    evaluated = (JobEvaluated, {"epoch": 2, "iteration": 200, "metrics": {"AP": 3.1}})
    paths = lab.said("b0", BEGAN, evaluated, (JobCancelled, {"iteration": 200}))
    paths.stop_request.touch()
    plan = lab.save()
    seen = PlanStatus.read(replace(plan, recipe={**plan.recipe, "study": "digits/gfl-3fa2c1"}), lab.runs)
    assert note(seen.jobs[lab.jobs["b0"].id]) == "AP 3.1 after epoch 2 promised too little"
    assert seen.counts["pruned"] == 1


def test_a_failure_is_told_with_its_cause(lab: Lab) -> None:
    write_json(lab.said("b0", BEGAN, at(450)).failure, {"what": "the loss is not finite", "after_s": 3.0})
    assert state(lab, "b0") == ("failed", "the loss is not finite")


def test_what_needs_a_failed_job_is_skipped(lab: Lab) -> None:
    write_json(lab.said("teacher", BEGAN).failure, {"what": "out of luck"})
    assert state(lab, "rm") == ("skipped", "it needs teacher, which failed")


def test_a_teacher_that_misses_what_is_expected_has_failed(lab: Lab) -> None:
    lab.jobs["teacher"] = make(TEACHER, "teacher", inputs={"expect_ap": 40.0})
    lab.done("teacher")
    assert state(lab, "teacher") == ("failed", "the teacher has AP 12.5, and teacher.expect_ap is 40.0")


def test_a_job_in_a_cluster_s_queue_is_queued_there_whatever_it_said_before(lab: Lab) -> None:
    paths = lab.said("b0", BEGAN, (JobFailed, {"what": "out of luck"}))
    paths.lease.unlink()
    Handle("slurm", ref="1234").write(paths)
    assert state(lab, "b0") == ("queued", "queued in slurm")


def test_a_later_look_reads_what_is_new(lab: Lab) -> None:
    paths = lab.at_work("b0")
    seen = look(lab)
    lab.said("b0", at(700), (JobEvaluated, {"epoch": 7, "iteration": 700, "metrics": {"AP": 9.0}}))
    LeaseInfo(1, FAR, time.time()).write(paths)
    seen.look(lab.runs)
    status = seen.jobs[lab.jobs["b0"].id]
    assert (status.epoch, status.ap) == ("8/12", 9.0)


def test_the_plan_goes_on_while_a_run_drives_it_or_a_job_is_at_work(lab: Lab) -> None:
    seen = look(lab)
    assert seen.over
    with driving("7f3a0001", lab.runs, "kdlab run digits/quickstart -j 1"):
        seen.look(lab.runs)
        assert (seen.over, seen.driven) == (False, True)
    lab.at_work("b0")
    seen.look(lab.runs)
    assert (seen.over, seen.driven) == (False, False)
    assert seen.command == "kdlab run digits/quickstart -j 1"


def test_the_plan_goes_on_while_a_cluster_has_a_job_of_it(lab: Lab) -> None:
    paths = lab.said("b0")
    paths.lease.unlink()
    Handle("slurm", ref="1234").write(paths)
    assert not look(lab).over


def test_time_left_is_told_while_a_run_drives_the_plan(lab: Lab) -> None:
    seen = look(lab)
    assert verb.eta_s(seen) is None
    with driving("7f3a0001", lab.runs, ""):
        seen.look(lab.runs)
        assert verb.eta_s(seen) == 120.0, "four jobs of a minute; one waits for its teacher"


def test_those_that_somebody_should_look_at_come_first(lab: Lab) -> None:
    lab.done("teacher")
    lab.said("b0", BEGAN)
    lab.at_work("b1")
    assert [status.state for status in verb._by_state(look(lab))] == [
        "running",
        "interrupted",
        "queued",
        "done",
    ]
