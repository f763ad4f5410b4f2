"""A teacher that is an arm of another recipe: one plan, with the jobs that either recipe has by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab.devices import Machine
from kdlab.errors import Fault, UsageError
from kdlab.planning import build, facts
from kdlab.planning.diagnosis import diagnosis
from kdlab.planning.facts import Facts
from kdlab.recipe import loader as recipes
from kdlab.recipe.settings import Recipe
from kdlab.running import scheduler
from tests.planning.test_build import FACTS, MODEL, VERSIONS, finished
from tests.stubs.jobs import FILES

LARGE = """\
dataset: {name: digits, image_px: 64}
teacher: {detector: gfl, backbone: resnet18, width: 32, strides: [8, 16]}
student: {detector: gfl, backbone: resnet18, width: 16, strides: [8, 16]}
schedule: {preset: custom, epochs: 2, batch_size: 4, lr: 1e-3, optimizer: adamw, keep_best: true}
arms: {baseline: {}, rm: {rm: {}}, maskd: {maskd: {}}}
seeds: [0, 1]
resources: {workers: 3}
"""
SMALL = """\
dataset: {name: digits, image_px: 64}
teacher: {recipe: large.yaml, arm: rm}
student: {detector: gfl, backbone: resnet18, width: 8, strides: [8, 16]}
schedule: {preset: custom, epochs: 5, batch_size: 8, lr: 2e-3, optimizer: adamw}
arms: {baseline: {}, pfi: {pfi: {}}}
seeds: [0, 1]
resources: {workers: 5}
"""
TINY = SMALL.replace("large.yaml, arm: rm", "small.yaml, arm: pfi, seed: 1").replace("width: 8", "width: 4")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a chain of recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    for name, text in {"large": LARGE, "small": SMALL, "tiny": TINY}.items():
        Path(f"{name}.yaml").write_text(text)


def facts_for(recipe: Recipe) -> Facts:
    """What would be gathered, each model of a size of its own."""
    flops = [one and {**MODEL, "flops": one.width} for one in (recipe.student, recipe.teacher)]
    return replace(
        FACTS, student=flops[0], teacher=flops[1], stage=facts_for(recipe.stage) if recipe.stage else None
    )


def planned(name: str, *overrides: str, past: Any = None) -> build.Plan:
    recipe = recipes.load(f"{name}.yaml", overrides)
    return build.build(recipe, facts_for(recipe), past or {})


def ids(made: build.Plan) -> dict[str, str]:
    return {one.job.label: one.job.id for one in made.jobs}


def test_the_teacher_is_the_very_job_of_the_other_recipe_behind_what_it_needs() -> None:
    large, small = planned("large"), planned("small")
    assert [one.job.label for one in small.jobs][:3] == ["teacher of teacher", "teacher", "baseline seed 0"]
    assert ids(small)["teacher"] == ids(large)["rm seed 0"]
    assert ids(small)["teacher of teacher"] == ids(large)["teacher"]
    jobs = {one.job.label: one.job for one in small.jobs}
    assert jobs["pfi seed 0"].parents == (ids(small)["teacher"],)
    assert jobs["pfi seed 0"].spec.teacher == jobs["teacher"].spec.model
    assert jobs["teacher"].spec.schedule.epochs == 2
    assert (jobs["teacher"].inputs.flops, jobs["pfi seed 0"].inputs.flops_teacher) == (16, 16)


def test_whichever_recipe_ran_first_the_other_reuses_what_it_trained() -> None:
    def past(made: build.Plan) -> Any:
        return {one.job.id: finished(one.job) for one in made.jobs}

    large = planned("large", past=past(planned("small")))
    done = [one.job.label for one in large.jobs if one.done]
    assert done == ["teacher", "rm seed 0"]
    small = planned("small", past=past(planned("large")))
    assert [one.job.label for one in small.jobs if one.done] == ["teacher of teacher", "teacher"]


def test_three_stages_are_one_plan() -> None:
    made = planned("tiny")
    above = ["teacher of teacher of teacher", "teacher of teacher", "teacher"]
    assert [one.job.label for one in made.jobs][:4] == [*above, "baseline seed 0"]
    assert [one.job.stage for one in made.jobs] == [2, 2, 1, 0, 0, 0, 0]
    assert ids(made)["teacher"] == ids(planned("small"))["pfi seed 1"]
    assert ids(made)["teacher of teacher"] == ids(planned("large"))["rm seed 0"]
    assert sum(one.job.is_student for one in made.jobs) == 4
    assert build.Plan.from_dict(made.to_dict()) == made


def test_arm_and_seed_choose_the_teacher() -> None:
    own = ids(planned("large", "seeds=[0,1,7]"))
    assert ids(planned("small", "teacher.seed=7"))["teacher"] == own["rm seed 7"]
    plain = planned("small", "teacher.arm=baseline")
    assert ids(plain)["teacher"] == own["baseline seed 0"]
    assert "teacher of teacher" not in ids(plain)


def test_what_a_method_prepares_of_either_teacher_is_planned() -> None:
    made = planned("small", "teacher.arm=maskd", "arms.more={maskd: {}}")
    jobs = {one.job.label: one.job for one in made.jobs}
    assert jobs["prepare maskd of teacher"].parents == (jobs["teacher of teacher"].id,)
    assert jobs["prepare maskd"].parents == (jobs["teacher"].id,)
    assert jobs["prepare maskd"].spec.model == jobs["teacher"].spec.model
    assert jobs["teacher"].id == ids(planned("large"))["maskd seed 0"]


def test_what_makes_no_other_job_is_that_of_this_recipe() -> None:
    made = planned("small", "teacher.expect_ap=30", "teacher.precision=bf16")
    assert {one.job.resources.workers for one in made.jobs} == {5}
    teacher = made.jobs[1].job
    assert (teacher.inputs.expect_ap, teacher.id) == (30, ids(planned("large"))["rm seed 0"])
    assert made.jobs[-1].job.spec.teacher_precision == "bf16"


def test_arms_that_learn_nothing_need_no_chain() -> None:
    assert [*ids(planned("small", "arms={baseline: {}}"))] == ["baseline seed 0", "baseline seed 1"]


def test_the_plan_says_who_the_teacher_is() -> None:
    notes = planned("tiny").notes
    assert "teacher: pfi seed 1 of small" in notes
    assert "small: teacher: rm seed 0 of large" in notes


def test_faults_of_the_other_recipe_stop_the_plan_under_its_name() -> None:
    recipe = recipes.load("small.yaml")
    found = facts_for(recipe)
    assert found.stage and found.stage.teacher
    stage = replace(found.stage, teacher={**found.stage.teacher, "priors": "q"})
    with pytest.raises(UsageError, match=r"large\.yaml  arms\.rm\.rm  rm cannot serve this pair"):
        build.build(recipe, replace(found, stage=stage), {})


def test_a_student_that_is_the_teacher_itself_is_refused_with_a_free_seed() -> None:
    Path("born.yaml").write_text(LARGE.replace("seeds", "tune: {seed: 9}\nseeds"))
    own = ["teacher=null", "teacher={recipe: large.yaml, arm: baseline}"]
    with pytest.raises(UsageError, match="the teacher is baseline seed 0 of this recipe") as told:
        planned("born", *own)
    assert told.value.faults[0].fix.endswith("--set teacher.seed=2")
    made = planned("born", *own, "teacher.seed=2")
    assert len({*ids(made).values()}) == len(made.jobs)


def test_a_baseline_that_a_chain_of_equals_begins_with_is_planned_once_and_first() -> None:
    first = SMALL.replace("{recipe: large.yaml, arm: rm}", "{recipe: first.yaml, arm: baseline}")
    Path("first.yaml").write_text(SMALL.replace("large.yaml, arm: rm", "large.yaml, arm: baseline"))
    Path("second.yaml").write_text(first.replace("baseline: {}, ", ""))
    Path("third.yaml").write_text(SMALL.replace("large.yaml, arm: rm", "second.yaml, arm: pfi"))
    labels = [one.job.label for one in planned("third").jobs]
    assert labels[:3] == ["baseline seed 0", "teacher", "pfi seed 0"]
    assert sorted(labels[3:]) == ["baseline seed 1", "pfi seed 1"]


@pytest.mark.parametrize(
    ("theirs", "what", "got"),
    [
        ({"fingerprint": "e" * 16}, "has other images or labels", f"digits {'e' * 16}"),
        ({"classes": ("a", *"123456789")}, "has other classes", "label 0 is a"),
        ({"classes": tuple("01234")}, "has other classes", "5 classes"),
    ],
)
def test_another_dataset_is_refused(theirs: dict[str, Any], what: str, got: str) -> None:
    recipe = recipes.load("small.yaml")
    with pytest.raises(UsageError, match=f"teacher.recipe: large {what}") as told:
        facts._check_same(FILES, replace(FILES, **theirs), recipe)
    (fault,) = told.value.faults
    assert isinstance(fault, Fault)
    assert (fault.where, fault.got) == ("small.yaml:2", got)


def test_facts_of_each_stage_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def probe(requests: list[dict[str, Any]], _: Any) -> list[dict[str, Any]]:
        asked.append([request["model"]["width"] for request in requests])
        return [{**MODEL, "width": request["model"]["width"]} for request in requests]

    monkeypatch.setattr(facts, "_probe", probe)
    size = ["dataset.train_images=2", "dataset.val_images=2"]
    for name in ("large", "small"):
        text = Path(f"{name}.yaml").read_text().replace("64}", "32, train_images: 2, val_images: 2}")
        Path(f"{name}.yaml").write_text(text)
    found = facts.gather(recipes.load("small.yaml"), Machine((0,)))
    assert asked == [[16, 32], [8, 16]]
    assert found.stage and found.stage.student["width"] == 16
    with pytest.raises(UsageError, match="has other images or labels"):
        facts.gather(recipes.load("small.yaml", [*size, "dataset.seed=4"]), Machine((0,)))


def test_students_are_diagnosed_beside_a_teacher_whose_own_is_not_in_the_plan() -> None:
    small = planned("small")
    past = {one.job.id: finished(one.job) for one in small.jobs}
    made, missing = diagnosis(small, past, VERSIONS)
    assert not missing
    assert [one.job.label for one in made.jobs][:2] == ["teacher", "baseline seed 0"]
    assert {one.job.parents[0] for one in made.jobs[5:]} == {ids(small)["teacher"]}
    assert scheduler._costs_s(made.jobs, [one.job.id for one in made.jobs])
