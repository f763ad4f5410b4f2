from __future__ import annotations

import json
import os

import pytest

from kdlab.errors import UsageError
from kdlab.jobs.events import JobCancelled, JobFailed, JobProgress, JobQueued, JobSkipped, JobStarted
from kdlab.jobs.lease import Lease
from kdlab.reporting.records import collect, job_state, load_plan, newest_plan


def start(job):
    return JobStarted(job=job.id, time=1000.0, device="cpu", epochs=2, iterations=20)


def test_finished_job_gives_a_record_with_its_result(bench):
    job = bench.job("rm", seed=2)
    plan = bench.plan([job])
    result = bench.finish(job, ap=31.5)
    [record] = collect(plan, bench.runs)
    assert (record.job.arm, record.job.seed, record.state, record.result) == ("rm", 2, "done", result)


def test_missing_job_is_told_with_its_state_in_plan_order(bench):
    failed, pending = bench.job("rm", 0), bench.job("rm", 1)
    plan = bench.plan([failed, pending])
    bench.log(failed, start(failed), JobFailed(job=failed.id, what="loss is not finite"))
    records = collect(plan, bench.runs)
    assert [(record.job.seed, record.state, record.result) for record in records] == [
        (0, "failed", None),
        (1, "pending", None),
    ]


def test_arm_comes_from_the_plan_and_not_from_the_recipe_that_first_ran_the_job(bench):
    job = bench.job("baseline")
    bench.finish(job, arm="plain")
    [record] = collect(bench.plan([job]), bench.runs)
    assert record.job.arm == "baseline"


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (lambda job: JobQueued(job=job.id), "pending"),
        (start, "interrupted"),
        (lambda job: JobFailed(job=job.id, what="killed"), "failed"),
        (lambda job: JobCancelled(job=job.id), "cancelled"),
        (lambda job: JobSkipped(job=job.id, why="teacher failed"), "skipped"),
    ],
)
def test_last_event_tells_the_state(bench, last, state):
    job = bench.job("rm")
    bench.log(job, last(job))
    assert job_state(bench.runs.job(job.id)) == state


def test_state_of_a_long_log_is_read_from_its_end(bench):
    job = bench.job("rm")
    point = JobProgress(
        job=job.id,
        epoch=1,
        epochs=1,
        iteration=1,
        iterations=9,
        losses={},
        lr=0.1,
        step_s=1,
        data_s=0,
        eta_s=0,
    )
    log = bench.log(job, start(job), *[point] * 500, JobCancelled(job=job.id))
    assert log.stat().st_size > 1 << 16
    assert job_state(bench.runs.job(job.id)) == "cancelled"


def test_job_whose_folder_is_held_is_running(bench):
    job = bench.job("rm")
    bench.log(job, start(job))
    with Lease.acquire(bench.runs.job(job.id)):
        assert job_state(bench.runs.job(job.id)) == "running"


def test_failure_without_an_event_is_a_failure(bench):
    job = bench.job("rm")
    bench.log(job, start(job))
    bench.runs.job(job.id).failure.write_text("{}")
    assert job_state(bench.runs.job(job.id)) == "failed"


def test_newest_plan_is_the_one_saved_last(bench):
    assert newest_plan(bench.runs) is None
    save(bench, "aaaa0000", "digits/a", 2000)
    save(bench, "bbbb0000", "digits/b", 1000)
    assert newest_plan(bench.runs)["id"] == "aaaa0000"


def test_plan_is_found_by_the_beginning_of_its_id(bench):
    save(bench, "aaaa0000", "digits/a", 1000)
    save(bench, "bbbb0000", "digits/b", 2000)
    assert load_plan(bench.runs, "aaa")["id"] == "aaaa0000"


def test_recipe_name_finds_its_newest_plan(bench):
    save(bench, "aaaa0000", "digits/a", 1000)
    save(bench, "aaaa1111", "digits/a", 3000)
    save(bench, "bbbb0000", "digits/b", 4000)
    assert load_plan(bench.runs, "digits/a")["id"] == "aaaa1111"


def test_ambiguous_id_names_the_plans_that_fit(bench):
    save(bench, "aaaa0000", "digits/a", 1000)
    save(bench, "aaaa1111", "digits/a", 2000)
    with pytest.raises(UsageError, match="aaaa1111, aaaa0000"):
        load_plan(bench.runs, "aaaa")


def test_unknown_name_suggests_the_nearest(bench):
    save(bench, "aaaa0000", "digits/quickstart", 1000)
    with pytest.raises(UsageError, match="did you mean digits/quickstart"):
        load_plan(bench.runs, "digits/quikstart")


def test_unknown_name_in_an_empty_folder_names_a_first_run(bench):
    with pytest.raises(UsageError, match="kdlab run digits/quickstart"):
        load_plan(bench.runs, "coco/x")


def save(bench, plan_id, recipe, time):
    bench.plan([], id=plan_id, recipe={"name": recipe, "arms": {}})
    os.utime(bench.runs.plans / f"{plan_id}.json", (time, time))


class TestSearches:
    """Plans of `kdlab tune`, whose trials are no arms."""

    def save(self, bench, plan_id, recipe):
        plan = bench.plan([bench.job("rm")])
        (bench.runs.plans / f"{plan['id']}.json").unlink()
        plan |= {"id": plan_id, "recipe": recipe}
        path = bench.runs.plans / f"{plan_id}.json"
        path.write_text(json.dumps(plan))
        os.utime(path, (int(plan_id, 16), int(plan_id, 16)))
        return plan

    def test_newest_plan_that_compares_arms_is_found_behind_them(self, bench):
        compared = self.save(bench, "00000001", {"name": "digits/gfl"})
        search = self.save(bench, "00000002", {"name": "digits/gfl", "study": "digits/gfl-3fa2c1"})
        assert newest_plan(bench.runs) == search
        assert newest_plan(bench.runs, searches=False) == compared
        assert load_plan(bench.runs, "digits/gfl", searches=False) == compared
        assert load_plan(bench.runs, "00000002") == search

    def test_id_of_one_is_answered_with_the_command_that_compares_its_trials(self, bench):
        command = "kdlab tune digits/gfl --set tune.trials=40"
        recipe = {"name": "digits/gfl", "study": "digits/gfl-3fa2c1", "command": command}
        self.save(bench, "00000002", recipe)
        with pytest.raises(UsageError, match="is a search") as caught:
            load_plan(bench.runs, "00000002", searches=False)
        assert caught.value.faults[0].fix == command

    def test_name_of_one_alone_is_no_plan(self, bench):
        self.save(bench, "00000002", {"name": "digits/gfl", "study": "digits/gfl-3fa2c1"})
        assert newest_plan(bench.runs, searches=False) is None
        with pytest.raises(UsageError, match="no plan"):
            load_plan(bench.runs, "digits/gfl", searches=False)
