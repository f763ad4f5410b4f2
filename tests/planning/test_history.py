from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlab.jobs.job import Job
from kdlab.jobs.result import JobResult
from kdlab.jobs.store import PastJob
from kdlab.planning.history import History
from tests.stubs.jobs import make

USUAL = {"micro_batch": None, "inherit": False, "dataset.flip": 0.5}
SETTINGS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2)},
    optional={
        "micro_batch": st.sampled_from([None, 1, 2]),
        "inherit": st.booleans(),
        "dataset.flip": st.sampled_from([0.5, 0.1, 0.2]),
    },
)


def job(number: int, settings: dict[str, Any], kind: str = "student") -> Job:
    plain = {name: value for name, value in settings.items() if "." not in name}
    flip = {"dataset": {"flip": settings.get("dataset.flip", 0.5)}}
    return make(f"{kind}-{number}", inputs={"flops": 1}, **plain, **flip)


def past(*jobs: Job) -> dict[str, PastJob]:
    return {
        old.id: PastJob(old, JobResult(old.id, old.kind, "a", old.seed, wall_s=60.0 + i, peak_memory_gb=1.0))
        for i, old in enumerate(jobs)
    }


def differing(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    mine, theirs = {**USUAL, **new}, {**USUAL, **old}
    return [key for key in mine if mine[key] != theirs[key]]


@given(SETTINGS, st.lists(SETTINGS, min_size=1, max_size=9))
def test_new_job_names_what_differs_from_one_most_like_it(
    new: dict[str, Any], olds: list[dict[str, Any]]
) -> None:
    said = History(past(*(job(i, old) for i, old in enumerate(olds)))).why_new(job(99, new))
    key, _, number = said.removeprefix("new: ").partition(" differs from student-")
    keys = [differing(new, old) for old in olds]
    but_seed = [len([name for name in one if name != "seed"]) for one in keys]
    assert but_seed[int(number)] == min(but_seed)
    assert key in (keys[int(number)] or ["its teacher"])
    # of jobs that differ in their seed alone, the one with this seed is named
    twins = [
        one for one in olds if not [name for name in differing(olds[int(number)], one) if name != "seed"]
    ]
    assert (olds[int(number)]["seed"] == new["seed"]) == any(one["seed"] == new["seed"] for one in twins)


def test_jobs_of_other_kinds_tell_nothing() -> None:
    history = History(past(job(1, {"seed": 0}, "teacher")))
    assert history.why_new(job(2, {"seed": 0})) == "new"
    assert history.cost(job(2, {"seed": 0})) == (None, "unknown")


def test_other_seeds_tell_the_cost_and_other_settings_give_an_estimate() -> None:
    history = History(past(job(1, {"seed": 0}), job(2, {"seed": 1})))
    assert history.cost(job(3, {"seed": 2})) == (60.5, "measured, n=2")
    assert history.cost(job(4, {"seed": 2, "micro_batch": 1})) == (pytest.approx(60.5), "estimated")


def test_jobs_that_count_iterations_cost_by_the_images_that_they_see() -> None:
    def scale(number: int, seed: int, iterations: int, batch_size: int) -> Job:
        schedule = {"batch_size": batch_size}
        return make(
            f"scale-{number}", seed=seed, iterations=iterations, schedule=schedule, inputs={"flops": 1}
        )

    history = History(past(scale(0, 0, iterations=20, batch_size=4)))
    assert history.cost(scale(1, 1, iterations=20, batch_size=4)) == (60.0, "measured, n=1")
    assert history.cost(scale(2, 0, iterations=10, batch_size=16)) == (pytest.approx(120.0), "estimated")
    assert history.cost(job(3, {"seed": 0})) == (None, "unknown")


def test_students_that_count_iterations_tell_nothing_of_those_that_count_epochs() -> None:
    def student(number: int, **length: int | None) -> Job:
        return make(f"student-{number}", schedule=length, inputs={"flops": 1})

    history = History(past(student(0, epochs=None, iterations=20)))
    assert history.cost(student(1, epochs=None, iterations=40)) == (pytest.approx(120.0), "estimated")
    assert history.cost(student(2, epochs=3)) == (None, "unknown")
