from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.jobs.study import Dimension
from kdlab.planning import build as plan
from kdlab.recipe import loader as recipes
from kdlab.recipe.document import Document
from kdlab.recipe.settings import Recipe, TuneSettings
from kdlab.recipe.yaml_reader import read
from kdlab.tuning.space import methods_with
from kdlab.tuning.tuned import Tuned, tuned
from tests.planning.test_build import FACTS

BASE = """
    # A pair.
    dataset: {name: digits, image_px: 64, flip: 0}
    teacher: {detector: rtmdet, backbone: resnet50}
    student: {detector: rtmdet, backbone: resnet18, width: 8}
    schedule: {preset: custom, epochs: 2, batch_size: 8, lr: 1e-4, optimizer: adamw}
    methods:
      pfi: {weight: 10, levels: [8, 16]}
    arms:
      baseline: {}
      other: {mgd: {}}
      mine: {rm: {score: logit}, pfi: {}, cwd@neck: {}, soft_label: {form: softmax, temperature: 4}}
      heir: {rm: {}, inherit: true}
    seeds: [3, 4]
    tune: {trials: 7}
"""
OVER = ("rm.weight", "rm.rank", "pfi.weight", "cwd@neck.on", "cwd@neck.weight", "soft_label.form")


class Bench:
    """Tunes the recipe `my.yaml` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "my.yaml").write_text(dedent(BASE).lstrip())
        name, self.document = recipes.opened(str(folder / "my.yaml"))
        self.recipe = recipes.resolve(self.document, name)

    def tuned(self, values: dict[str, Any], arm: str = "mine", over: Sequence[str] = OVER) -> Tuned:
        space = [Dimension(name, 0.5, 30.0) for name in over]
        return tuned(self.document, self.recipe, arm, space, values, "my-3fa2c1", "kdlab tune my.yaml")

    def __call__(self, values: dict[str, Any], arm: str = "mine", over: Sequence[str] = OVER) -> Recipe:
        """The tuned recipe as its file loads."""
        return recipes.resolve(self.written(values, arm, over), "my")

    def written(self, values: dict[str, Any], arm: str = "mine", over: Sequence[str] = OVER) -> Document:
        path = self.folder / "tuned.yaml"
        path.write_text(self.tuned(values, arm, over).text)
        return read(path, "tuned.yaml", [])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def one_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_recipe_compares_baseline_recipe_defaults_and_tuned(bench: Bench) -> None:
    found = bench({"rm.weight": 12.0, "pfi.weight": 30.0})
    assert list(found.arms) == ["baseline", "mine", "mine[defaults]", "mine[tuned]"]
    assert found.arms["baseline"] == {}
    assert found.arms["mine"] == bench.recipe.arms["mine"]
    assert found.arms["mine[tuned]"]["rm"].weight == 12.0
    assert found.arms["mine[defaults]"]["pfi"].weight == 1.5


def test_all_else_is_as_it_was(bench: Bench) -> None:
    found = bench({"rm.weight": 12.0})
    for section in ("dataset", "teacher", "student", "schedule", "seeds", "resources"):
        assert getattr(found, section) == getattr(bench.recipe, section)
    assert found.tune == TuneSettings()
    pfi = found.arms["mine[tuned]"]["pfi"]
    assert (pfi.weight, pfi.levels) == (10.0, (8, 16))


def test_baseline_teacher_and_untuned_arm_are_the_jobs_of_the_recipe(bench: Bench) -> None:
    shapes = {"neck_and_head": {"cls.weight": [8, 8]}}
    facts = replace(FACTS, student=FACTS.student | shapes, teacher=(FACTS.teacher or {}) | shapes)
    before = {one.job.label: one.job.id for one in plan.build(bench.recipe, facts, {}).jobs}
    after = {one.job.label: one.job.id for one in plan.build(bench({"rm.weight": 12.0}), facts, {}).jobs}
    shared = {"teacher", "baseline seed 3", "baseline seed 4", "mine seed 3", "mine seed 4"}
    assert before.keys() & after.keys() == shared
    assert all(before[label] == after[label] for label in shared)


def test_student_that_was_found_is_that_of_all_arms(bench: Bench) -> None:
    found = bench({"rm.weight": 12.0, "student.width": 16})
    assert found.student == bench.recipe.student.model_copy(update={"width": 16})
    made = bench.tuned({"rm.weight": 12.0, "student.width": 16})
    assert any(line.startswith("+") and "width: 16" in line for line in made.difference)


def test_heir_stays_one(bench: Bench) -> None:
    found = bench({"rm.weight": 12.0}, "heir", ["rm.weight"])
    assert found.inherits == ("heir", "heir[tuned]")


@pytest.mark.parametrize(
    ("values", "over", "arms"),
    [
        # published is what the recipe says of rm, and not of pfi
        ({"rm.weight": 12.0}, "rm.weight", ["mine", "mine[tuned]"]),
        ({"pfi.weight": 1.5}, "pfi.weight", ["mine", "mine[published]"]),
        ({"pfi.weight": 10.0}, "pfi.weight", ["mine", "mine[published]"]),
        ({"rm.weight": 1.0}, "rm.weight", ["mine"]),
        # an option that is idle tells no arms apart
        (
            {"soft_label.form": "sigmoid", "soft_label.temperature": 7.0},
            "soft_label.form",
            ["mine", "mine[published]"],
        ),
    ],
)
def test_arms_that_are_the_same_are_one(
    bench: Bench, values: dict[str, Any], over: str, arms: list[str]
) -> None:
    assert list(bench(values, over=[over]).arms) == ["baseline", *arms]


def test_difference_is_the_line_of_the_arm(bench: Bench) -> None:
    made = bench.tuned({"rm.weight": 12.0}, "heir", ["rm.weight"])
    assert made.difference == (
        "-  heir: {rm: {}, inherit: true}",
        "+  heir: {rm: {weight: 12.0}, inherit: true}",
    )


def test_nothing_found_is_no_difference(bench: Bench) -> None:
    assert bench.tuned({"rm.weight": 1.0, "pfi.weight": 10.0}).difference == ()


def test_file_says_what_it_is_and_what_to_type(bench: Bench) -> None:
    made = bench.tuned({"rm.weight": 12.0}, over=["rm.weight", "pfi.weight"])
    assert made.name == "tune/my-3fa2c1"
    assert made.text.splitlines()[:4] == [
        "# A pair.; tuned",
        "# kdlab tune my.yaml",
        "# kdlab run tune/my-3fa2c1",
        "# searched: rm.weight 0.5 to 30; pfi.weight 0.5 to 30",
    ]
    assert "tune:" not in made.text.partition("dataset:")[2]


def test_option_that_becomes_idle_has_its_default(bench: Bench) -> None:
    found = bench({"rm.rank": "loc", "soft_label.form": "sigmoid"}).arms["mine[tuned]"]
    assert found["rm"].options["score"] == "sigmoid"
    assert found["soft_label"].options["temperature"] == 2.0


weights = st.sampled_from([0.0, 1.0, 1.5, 3.0, 4.0, 5.0, 10.0, 0.022]) | st.floats(1e-6, 1e6)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rm.weight": weights,
            "rm.rank": st.sampled_from(["cls", "loc", "both"]),
            "rm.score": st.sampled_from(["sigmoid", "logit"]),
            "rm.quality": st.booleans(),
            "rm.temperature": st.floats(0.01, 100),
            "pfi.weight": weights,
            "pfi.region": st.sampled_from(["prediction", "whole"]),
            "pfi.y": st.sampled_from(["sigmoid", "logit"]),
            "cwd@neck.on": st.sampled_from(["neck", "cls"]),
            "cwd@neck.weight": weights,
            "soft_label.form": st.sampled_from(["sigmoid", "softmax"]),
            "soft_label.weight": weights,
        },
    )
)
def test_loaded_again_it_is_what_the_trial_trained(one_bench: Bench, values: dict[str, Any]) -> None:
    wanted = methods_with(one_bench.recipe, "mine", values)
    found = one_bench(values).arms
    assert found.get("mine[tuned]", wanted) == wanted
    assert wanted in found.values()
