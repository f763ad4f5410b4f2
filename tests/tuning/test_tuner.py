from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdlab.jobs.events import Event
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.recipe import loader as recipes
from kdlab.running import scheduler
from kdlab.tuning import space
from kdlab.tuning.study import OptunaStudy
from kdlab.tuning.trials import Student, Trials, Variant
from kdlab.tuning.tuner import Tuner
from tests.planning.test_build import FACTS, FILES
from tests.stubs.simulated import Simulated

# of families kdlab has measured RM and PFI on others: these have the paper's weights
PLAIN = ("teacher.detector=rtmdet", "student.detector=rtmdet")
LEARNED = replace(FILES, fingerprint="e" * 16)


@cache
def make_trials(*overrides: str) -> Trials:
    overrides = (*PLAIN, *overrides)
    base = recipes.load("digits/fcos", overrides)
    arm = space.searched_arm(base)
    facts = replace(FACTS, learned=LEARNED, device="cuda", gpu_gb=80.0)
    widths = base.tune.student.get("width", ())
    students: list[Student] = [(("width", width),) for width in widths] or [()]
    variants = {
        student: Variant(
            recipes.load("digits/fcos", [*overrides, *(f"student.{k}={v}" for k, v in student)]), facts
        )
        for student in students
    }
    return Trials(variants, arm, space.dimensions(base, arm))


def make_tuner(runs: Runs, trials: Trials, gpus: int = 2, **options: Any) -> Tuner:
    tune = trials.recipe.tune
    study = OptunaStudy(
        name="study",
        objectives=tune.objectives,
        sampler=tune.sampler,
        pruner=tune.pruner,
        epochs=tune.epochs or trials.recipe.schedule.epochs,
        seed=tune.seed,
        storage=str(runs.folder / "study.log"),
    )
    count, budget_s = options.get("count", 12), options.get("budget_s", math.inf)
    stop_request = runs.stop_request("0" * 8)
    stop_request.unlink(missing_ok=True)
    return Tuner(trials, study, runs, count, budget_s, lambda job: gpus, stop_request)


def plan_of(trials: Trials) -> Plan:
    jobs = tuple(PlannedJob(job, False, "new") for job in trials.preparation())
    return Plan(id="0" * 8, recipe={"name": "stub"}, jobs=jobs, device="cuda", dataset={})


def search(tuner: Tuner, executor: Simulated, stop_after: int | None = None) -> list[Event]:
    """Run a search, or leave it as a kill would after so many events."""
    events: list[Event] = []
    for event in scheduler.run(plan_of(tuner.trials), executor, tuner.runs, poll_s=0, feed=tuner.feed):
        tuner.see(event)
        events.append(event)
        if len(events) == stop_after:
            break
    return events


def weights(job: Job) -> dict[str, float]:
    return {name: method.weight for name, method in job.spec.methods.items()}


def likes_pfi_at_30(job: Job, epoch: int) -> float:
    """Best where pfi weighs 30 and rm little; higher with each epoch."""
    given = weights(job)
    if not given:
        return 5.0 * epoch / 6
    return (30 - 8 * abs(math.log10(given["pfi"] / 30)) - math.log10(1 + given["rm"])) * (0.5 + epoch / 12)


@pytest.fixture(autouse=True)
def neither_looks_nor_disks_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def states(tuner: Tuner) -> list[str]:
    return [trial.state for trial in tuner.study.trials()]


def test_as_many_trials_as_were_asked_for_come_to_an_end(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), count=12)
    search(tuner, Simulated(runs, 2, likes_pfi_at_30))
    assert len(states(tuner)) == 12
    assert set(states(tuner)) <= {"finished", "pruned"}


def test_no_method_and_published_weights_are_the_first_trials(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("methods.pfi={weight: 10}"), count=4)
    search(tuner, Simulated(runs, 1, likes_pfi_at_30))
    first, second, third, _ = tuner.study.trials()
    assert (first.reference, first.params) == ("no method", {})
    assert (second.reference, second.params) == ("published", {"rm.weight": 4.0, "pfi.weight": 1.5})
    assert (third.reference, third.params) == ("recipe", {"rm.weight": 4.0, "pfi.weight": 10.0})


def test_range_of_each_weight_follows_the_measured_size_of_its_term(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), count=3)
    search(tuner, Simulated(runs, 2, likes_pfi_at_30))
    # a term of 0.02 of the detection loss at weight 1 is 0.01 of it at weight 0.5
    assert {one.name: (one.low, one.high) for one in tuner.study.space} == {
        "rm.weight": (0.5, 150.0),
        "pfi.weight": (0.1, 30.0),
    }


def test_trial_trains_on_the_tuning_split_and_the_teacher_on_all(runs: Runs) -> None:
    trials = make_trials()
    teacher, scale = trials.preparation()
    assert teacher.spec.dataset.fingerprint == FILES.fingerprint
    assert scale.spec.dataset.fingerprint == LEARNED.fingerprint
    assert trials.job(trials.usual(())).seed == 1000


def test_no_gpu_is_free_at_any_look_while_trials_remain(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("tune.pruner=none", "tune.sampler=random"), gpus=8, count=40)
    executor = Simulated(runs, 8, likes_pfi_at_30)
    busy: list[int] = []
    for event in scheduler.run(plan_of(tuner.trials), executor, runs, poll_s=0, feed=tuner.feed):
        tuner.see(event)
        if tuner.study.space and len(tuner.study.trials()) < 40 and len(executor.looks) > len(busy):
            busy.append(executor.looks[-1])
    trials_only = busy[busy.index(8) :]
    assert len(trials_only) > 10
    assert set(trials_only) == {8}


def test_hopeless_trial_is_stopped_and_leaves_no_training_state(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("tune.pruner=median"), count=14)
    search(tuner, Simulated(runs, 1, likes_pfi_at_30))
    pruned = [trial for trial in tuner.study.trials() if trial.state == "pruned"]
    assert pruned
    assert all(max(trial.curve) < 6 for trial in pruned)
    assert {trial.job for trial in pruned} == tuner.pruned
    assert not any(runs.job(trial.job).result.exists() for trial in pruned)


@pytest.mark.parametrize("stop_after", [1, 5, 9, 20, 33, 47])
def test_killed_search_goes_on_with_the_right_number_of_trials(runs: Runs, stop_after: int) -> None:
    executor = Simulated(runs, 2, likes_pfi_at_30)
    search(make_tuner(runs, make_trials(), count=10), executor, stop_after)
    again = make_tuner(runs, make_trials(), count=10)
    search(again, executor)
    assert len(states(again)) == 10
    assert "running" not in states(again)
    assert not executor._alive


def test_finished_search_trains_nothing_when_it_is_run_again(runs: Runs) -> None:
    executor = Simulated(runs, 2, likes_pfi_at_30)
    search(make_tuner(runs, make_trials(), count=6), executor)
    before = len(executor.started)
    again = make_tuner(runs, make_trials(), count=6)
    search(again, executor)
    assert len(executor.started) == before
    assert len(states(again)) == 6


def test_trained_trials_of_another_study_are_reused(runs: Runs) -> None:
    executor = Simulated(runs, 2, likes_pfi_at_30)
    search(make_tuner(runs, make_trials("tune.sampler=random", "tune.pruner=none"), count=5), executor)
    before = len(executor.started)
    (runs.folder / "study.log").unlink()
    again = make_tuner(runs, make_trials("tune.sampler=random", "tune.pruner=none"), count=5)
    search(again, executor)
    assert len(executor.started) == before
    assert states(again) == ["finished"] * 5


def test_failed_trial_is_tried_once_more_and_then_reported(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), count=6)
    hot = lambda job, attempt: job.kind == "student" and weights(job).get("pfi") == 1.5  # noqa: E731
    executor = Simulated(runs, 1, likes_pfi_at_30, fails=hot)
    search(tuner, executor)
    failed = [trial for trial in tuner.study.trials() if trial.state == "failed"]
    assert [(trial.reference, trial.why) for trial in failed] == [("published", "the loss is not finite")]
    assert executor.started.count(failed[0].job) == 2


def test_trial_that_fails_once_counts(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), count=5)
    once = lambda job, attempt: job.kind == "student" and attempt == 1  # noqa: E731
    search(tuner, Simulated(runs, 2, likes_pfi_at_30, fails=once))
    assert "failed" not in states(tuner)


def test_search_in_which_everything_fails_ends_early(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), gpus=1, count=50)
    search(tuner, Simulated(runs, 1, likes_pfi_at_30, fails=lambda job, attempt: job.kind == "student"))
    assert states(tuner) == ["failed"] * 3


def test_budget_begins_no_further_trial(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), count=50, budget_s=0.0)
    search(tuner, Simulated(runs, 1, likes_pfi_at_30))
    assert states(tuner) == []


def test_stopped_by_another_command_is_a_failed_trial(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("tune.pruner=none"), count=4)
    events = scheduler.run(
        plan_of(tuner.trials), Simulated(runs, 2, likes_pfi_at_30), runs, poll_s=0, feed=tuner.feed
    )
    for event in events:
        tuner.see(event)
        if (
            type(event).__name__ == "JobStarted"
            and tuner.study.space
            and event.job == tuner.study.trials()[0].job
        ):
            runs.job(event.job).stop_request.touch()
    assert states(tuner).count("failed") == 1
    assert len(states(tuner)) == 4


def test_stopping_leaves_the_trial_for_the_next_command(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("tune.pruner=none"), count=4)
    executor = Simulated(runs, 1, likes_pfi_at_30)
    events = scheduler.run(plan_of(tuner.trials), executor, runs, poll_s=0, feed=tuner.feed)
    for event in events:
        tuner.see(event)
        if type(event).__name__ == "JobStarted" and tuner.study.space:
            tuner.stopping = True
            runs.job(event.job).stop_request.touch()
            break
    events.close()
    assert "failed" not in states(tuner)


def test_stop_of_all_that_runs_ends_the_search_and_the_next_command_goes_on(runs: Runs) -> None:
    executor = Simulated(runs, 2, likes_pfi_at_30)
    tuner = make_tuner(runs, make_trials("tune.pruner=none"), count=6)
    for event in scheduler.run(plan_of(tuner.trials), executor, runs, poll_s=0, feed=tuner.feed):
        tuner.see(event)
        if tuner.study.space and len(executor._alive) == 2 and not tuner.stop_request.exists():
            tuner.stop_request.parent.mkdir(parents=True, exist_ok=True)
            tuner.stop_request.touch()
            for job in executor._alive:
                runs.job(job).stop_request.touch()
    assert states(tuner) == ["running"] * 2
    again = make_tuner(runs, make_trials("tune.pruner=none"), count=6)
    search(again, executor)
    assert states(again) == ["finished"] * 6


def test_teacher_that_misses_what_is_expected_starts_no_trial(runs: Runs) -> None:
    trials = make_trials("teacher.expect_ap=99", "tune.over=[rm.rank]")
    tuner = make_tuner(runs, trials, count=3)
    executor = Simulated(runs, 2, likes_pfi_at_30)
    search(tuner, executor)
    assert tuner.study.space == ()
    assert states(tuner) == []


def test_reference_is_never_pruned_and_its_job_never_stopped(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("tune.pruner=halving"), count=12)
    search(tuner, Simulated(runs, 1, lambda job, epoch: 1.0 if weights(job) else 0.1))
    assert [trial.state for trial in tuner.study.trials()[:2]] == ["finished"] * 2


def test_failures_of_an_earlier_command_do_not_end_the_search(runs: Runs) -> None:
    def hopeless(job: Job, attempt: int) -> bool:
        return job.kind == "student"

    search(
        make_tuner(runs, make_trials(), gpus=1, count=9), Simulated(runs, 1, likes_pfi_at_30, fails=hopeless)
    )
    again = make_tuner(runs, make_trials(), gpus=1, count=9)
    search(again, Simulated(runs, 1, likes_pfi_at_30))
    assert len(states(again)) == 9
    assert "finished" in states(again)


def test_methods_that_always_fail_end_the_search_though_the_student_alone_trains(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials(), gpus=1, count=30)
    executor = Simulated(runs, 1, likes_pfi_at_30, fails=lambda job, attempt: bool(job.spec.methods))
    executor.fails = lambda job, attempt: job.kind == "student" and bool(job.spec.methods)
    search(tuner, executor)
    assert states(tuner) == ["finished", "failed", "failed", "failed"]
    assert "none with a method" in tuner.ended_by


def test_trial_with_another_preparation_brings_it_along(runs: Runs) -> None:
    trials = make_trials(
        "arms={maskd: {maskd: {}}}", "tune.over=[maskd.tokens]", "tune.space={maskd.tokens: [2, 8]}"
    )
    tuner = make_tuner(runs, trials, count=4)
    executor = Simulated(runs, 1, lambda job, epoch: float(epoch))
    search(tuner, executor)
    assert set(states(tuner)) <= {"finished", "pruned"}
    assert sum(name.startswith("prepare") for name in set(executor.started)) > 1


def test_finished_trials_are_in_the_plan_of_the_command_that_goes_on(runs: Runs) -> None:
    executor = Simulated(runs, 1, likes_pfi_at_30)
    search(make_tuner(runs, make_trials("tune.pruner=none"), count=3), executor)
    events = search(make_tuner(runs, make_trials("tune.pruner=none"), count=5), executor)
    assert sum(type(event).__name__ == "JobReused" for event in events) == 5


def test_stop_of_the_only_trial_fails_it_and_the_search_goes_on(runs: Runs) -> None:
    tuner = make_tuner(runs, make_trials("tune.pruner=none"), gpus=1, count=4)
    executor = Simulated(runs, 1, likes_pfi_at_30)
    for event in scheduler.run(plan_of(tuner.trials), executor, runs, poll_s=0, feed=tuner.feed):
        tuner.see(event)
        if type(event).__name__ == "JobStarted" and tuner.study.space and len(states(tuner)) == 3:
            runs.job(event.job).stop_request.touch()
    assert states(tuner) == ["finished", "finished", "failed", "finished"]


def test_weight_follows_the_option_that_is_tried_beside_it(runs: Runs) -> None:
    trials = make_trials("tune.over=[pfi.weight, pfi.region]", "tune.sampler=random", "tune.pruner=none")
    tuner = make_tuner(runs, trials, count=14)
    search(tuner, Simulated(runs, 2, lambda job, epoch: float(epoch)))
    by_region = {trial.params["pfi.region"]: trial.params["pfi.weight"] for trial in tuner.study.trials()[2:]}
    # where it stands alone a weight is searched up to 30; inside objects the term is 125 times as large
    assert by_region["gt_mask"] <= 30 * 0.012 / 1.5
    assert all(runs.job(trial.job).result.exists() for trial in tuner.study.trials())


def test_words_and_weights_are_searched_together(runs: Runs) -> None:
    trials = make_trials("tune.over=[rm.rank, rm.weight]")
    ranks = {"cls": 1.0, "loc": 2.0, "both": 3.0}
    tuner = make_tuner(runs, trials, count=10)
    search(tuner, Simulated(runs, 2, lambda job, epoch: ranks.get(_rank(job), 0.0) * epoch))
    assert {trial.params.get("rm.rank") for trial in tuner.study.trials()} >= {"cls", "both"}


def _rank(job: Job) -> str:
    return str(job.spec.methods["rm"].options["rank"]) if "rm" in job.spec.methods else ""


def test_two_objectives_weigh_ap_against_the_latency_of_each_student(runs: Runs) -> None:
    trials = make_trials(
        "tune.objectives=[AP,latency]", "tune.student={width: [8, 16]}", "tune.over=[pfi.weight]"
    )
    tuner = make_tuner(runs, trials, count=8)
    search(tuner, Simulated(runs, 2, lambda job, epoch: job.spec.model.width + epoch))
    done = tuner.study.trials()
    assert len(done) == 8
    assert {trial.values[1] for trial in done} == {8.0, 16.0}


def test_equal_trials_share_a_job(runs: Runs) -> None:
    trials = make_trials("tune.over=[rm.rank]", "tune.sampler=random")
    tuner = make_tuner(runs, trials, count=12)
    executor = Simulated(runs, 2, lambda job, epoch: float(epoch))
    search(tuner, executor)
    assert len(states(tuner)) == 12
    # the teacher, no method, and three ways to rank
    assert len(set(executor.started)) == 5


def test_trial_of_a_job_that_still_stops_for_another_trial_trains_it_anew(runs: Runs) -> None:
    tuner, room = make_tuner(runs, make_trials("tune.pruner=median"), count=10), [1]
    tuner.at_once = lambda job: room[0]
    executor = Simulated(runs, 2, likes_pfi_at_30, stop_looks=5)
    for event in scheduler.run(plan_of(tuner.trials), executor, runs, poll_s=0, feed=tuner.feed):
        tuner.see(event)
        if tuner.pruned and room == [1]:
            (lost,) = [trial for trial in tuner.study.trials() if trial.state == "pruned"]
            tuner.study.enqueue(lost.params, "again")
            room[0] = 2
    (again,) = [trial for trial in tuner.study.trials() if trial.reference == "again"]
    assert again.job == lost.job
    assert again.state in ("finished", "pruned")
    assert again.curve
