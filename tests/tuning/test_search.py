from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab.devices import Machine
from kdlab.errors import UsageError
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.planning import facts as facts_of
from kdlab.tuning import search
from kdlab.tuning.search import Search
from tests.planning.test_build import FACTS, FILES, finished
from tests.stubs.stub_job import prepared
from tests.tuning.test_tuner import LEARNED, PLAIN

Prepare = Callable[..., Search]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture
def prepare(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    monkeypatch.setattr(facts_of, "gather", lambda *_: replace(FACTS, device="cuda", gpu_gb=80.0))
    monkeypatch.setattr(search, "tuning_split", lambda files, share: LEARNED)
    monkeypatch.setattr(search, "images_of", lambda split: (800, 200))

    def prepare(*overrides: str, **options: Any) -> Search:
        return search.prepare("digits/fcos", [*PLAIN, *overrides], runs, Machine((0, 1)), **options)

    return prepare


def done(runs: Runs, *jobs: Job) -> None:
    """Leave a result of each job behind."""
    for job in jobs:
        finished(job, wall_s=100.0).result.write(prepared(runs, job))


def test_plan_holds_what_comes_before_the_first_trial(prepare: Prepare) -> None:
    found = prepare()
    assert [planned.job.kind for planned in found.plan.jobs] == ["teacher", "scale"]
    assert found.plan.recipe["study"] == found.study == f"digits/fcos-{found.trials.key}"
    assert found.plan.dataset["fingerprint"] == LEARNED.fingerprint
    assert found.images == (800, 200)


def test_same_search_is_the_same_plan_and_another_one_another(prepare: Prepare) -> None:
    assert prepare("tune.trials=9").plan.id == prepare("tune.trials=5").plan.id
    assert prepare("tune.epochs=2").plan.id != prepare().plan.id


def test_whole_plan_has_a_stand_in_for_each_trial(prepare: Prepare) -> None:
    whole = prepare().whole(5)
    assert [planned.job.kind for planned in whole.jobs] == ["teacher", "scale", *["student"] * 5]
    assert len({planned.job.id for planned in whole.jobs}) == 7
    assert not any(planned.done for planned in whole.jobs)


def test_trials_cost_what_the_recipe_s_own_took_and_are_to_be_trained_all_the_same(
    prepare: Prepare, runs: Runs
) -> None:
    trials = prepare().trials
    done(runs, *trials.preparation(), trials.job(trials.usual(())))
    whole = prepare().whole(3)
    assert [planned.done for planned in whole.jobs] == [True, True, False, False, False]
    assert [planned.cost_s for planned in whole.jobs[2:]] == [100.0] * 3


def test_each_combination_of_students_is_one(prepare: Prepare) -> None:
    found = prepare("tune.student={width: [8, 16], head_convs: [1, 2]}")
    assert list(found.trials.variants) == [
        (("width", width), ("head_convs", convs)) for width in (8, 16) for convs in (1, 2)
    ]
    sizes = [
        (one.recipe.student.width, one.recipe.student.head_convs) for one in found.trials.variants.values()
    ]
    assert sizes == [(8, 1), (8, 2), (16, 1), (16, 2)]


def test_split_is_of_the_training_images_and_as_large_as_the_recipe_says(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(search, "tuning_split", lambda *told: asked.append(told) or LEARNED)
    said: list[str] = []
    prepare("tune.split=0.3", progress=said.append)
    assert asked == [(FILES, 0.3)]
    assert said == ["tuning split of the training images"]


def test_search_that_cannot_be_is_refused_before_images_are_cut(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "tuning_split", lambda *_: pytest.fail("cut"))
    for override in ("tune.over=[mgd.weight]", "tune.over=[rm.nothing]", "tune.arm=none"):
        with pytest.raises(UsageError):
            prepare(override)
    with pytest.raises(UsageError, match=r"tune\.trials"):
        prepare("tune.trials=0")
