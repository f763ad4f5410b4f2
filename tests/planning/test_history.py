from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlab.jobs.job import Job
from kdlab.jobs.result import JobResult
from kdlab.jobs.store import PastJob
from kdlab.planning.history import History

SETTINGS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2)}, optional={key: st.sampled_from([None, 1, "1"]) for key in "abc"}
)


def job(number: int, settings: dict[str, Any], kind: str = "student") -> Job:
    common = {"threads": 1, "dataset": {"fingerprint": "f"}, "schedule": {"epochs": 1}}
    inputs = {"flops": {"student": 1, "teacher": 0}}
    return Job(f"{kind}-{number}", kind, "a", settings["seed"], common | settings, inputs=inputs)  # type: ignore[arg-type]


def past(*jobs: Job) -> dict[str, PastJob]:
    return {
        old.id: PastJob(
            old, JobResult(old.id, old.kind, "a", old.seed, {}, {}, {}, [], [], {}, {}, {}, 60.0 + i, 1.0, 1)
        )
        for i, old in enumerate(jobs)
    }


def nearest_by_hand(new: dict[str, Any], olds: list[dict[str, Any]]) -> tuple[int, list[str]]:
    found = []
    for number, old in enumerate(olds):
        keys = [key for key in {**new, **old} if new.get(key) != old.get(key)]
        found.append((len(keys), number, keys))
    _, number, keys = min(found)
    return number, keys


@given(SETTINGS, st.lists(SETTINGS, min_size=1, max_size=9))
def test_new_job_names_what_differs_from_the_one_most_like_it(
    new: dict[str, Any], olds: list[dict[str, Any]]
) -> None:
    number, keys = nearest_by_hand(new, olds)
    said = History(past(*(job(i, old) for i, old in enumerate(olds)))).why_new(job(99, new))
    wanted = keys or ["its teacher"]
    assert said.endswith(f" differs from student-{number}")
    assert said.removeprefix("new: ").partition(" differs")[0] in wanted


def test_jobs_of_other_kinds_tell_nothing() -> None:
    history = History(past(job(1, {"seed": 0}, "teacher")))
    assert history.why_new(job(2, {"seed": 0})) == "new"
    assert history.cost(job(2, {"seed": 0})) == (None, "unknown")


def test_other_seeds_tell_the_cost_and_other_settings_give_an_estimate() -> None:
    history = History(past(job(1, {"seed": 0}), job(2, {"seed": 1})))
    assert history.cost(job(3, {"seed": 2})) == (60.5, "measured, n=2")
    assert history.cost(job(4, {"seed": 2, "a": 1})) == (pytest.approx(60.5), "estimated")


def test_jobs_that_count_iterations_cost_by_the_images_that_they_see() -> None:
    def scale(number: int, seed: int, **schedule: int) -> Job:
        made = job(number, {"seed": seed}, "scale")
        return replace(made, settings=made.settings | {"schedule": schedule})

    history = History(past(scale(0, 0, iterations=20, batch_size=4)))
    assert history.cost(scale(1, 1, iterations=20, batch_size=4)) == (60.0, "measured, n=1")
    assert history.cost(scale(2, 0, iterations=10, batch_size=16)) == (pytest.approx(120.0), "estimated")
    assert history.cost(job(3, {"seed": 0})) == (None, "unknown")
