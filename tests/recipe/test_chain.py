"""A teacher that is an arm of another recipe: what it resolves to, and how each fault is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdlab.errors import UsageError
from kdlab.recipe import loader as recipes
from kdlab.recipe.overview import overview
from kdlab.recipe.settings import Recipe
from kdlab.recipe.values import values_of

LARGE = """\
dataset: {name: digits, image_px: 64}
teacher: {detector: gfl, backbone: resnet18, width: 32, strides: [8, 16], schedule: {epochs: 9}}
student: {detector: gfl, backbone: resnet18, width: 16, strides: [8, 16], init: r18.pth}
schedule: {preset: custom, epochs: 2, batch_size: 4, lr: 1e-3, optimizer: adamw}
arms: {baseline: {}, rm: {rm: {}}, heir: {inherit: true}}
seeds: [3, 4]
"""
SMALL = """\
dataset: {name: digits, image_px: 64}
teacher: {recipe: large.yaml, arm: rm}
student: {detector: gfl, backbone: resnet18, width: 8, strides: [8, 16]}
schedule: {preset: custom, epochs: 5, batch_size: 8, lr: 2e-3, optimizer: sgd}
arms: {baseline: {}, pfi: {pfi: {}}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the two recipes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.yaml").write_text(LARGE)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def told() -> Callable[..., str]:
    """What a person reads of a faulty recipe."""

    def errors_of(*overrides: str, name: str = "small.yaml") -> str:
        with pytest.raises(UsageError) as caught:
            recipes.load(name, overrides)
        return str(caught.value)

    return errors_of


def test_teacher_is_the_other_recipes_student_and_its_stage_that_arm_alone() -> None:
    made = recipes.load("small.yaml")
    assert made.teacher and made.stage
    assert (made.teacher.width, made.teacher.init) == (16, "none")
    assert made.teacher.schedule == made.stage.schedule
    assert (made.stage.name, [*made.stage.arms], made.stage.seeds) == ("large", ["rm"], (3,))
    assert made.stage.teacher and made.stage.teacher.width == 32
    assert made.stage.student.init == "r18.pth"


def test_a_plain_student_teaches_without_the_teacher_of_its_recipe() -> None:
    assert recipes.load("small.yaml", ["teacher.arm=baseline"]).stage.teacher is None  # type: ignore[union-attr]
    heir = recipes.load("small.yaml", ["teacher.arm=heir"]).stage
    assert heir and heir.teacher and heir.inherits == ("heir",)


def test_its_pass_its_seed_and_what_is_expected_are_this_recipes() -> None:
    changes = ["teacher.seed=7", "teacher.precision=bf16", "teacher.compile=true", "teacher.expect_ap=40"]
    made = recipes.load("small.yaml", changes)
    assert made.teacher and made.stage
    assert (made.teacher.seed, made.stage.seeds) == (7, (7,))
    assert (made.teacher.precision, made.teacher.compile, made.teacher.expect_ap) == ("bf16", True, 40)


def test_a_recipe_with_a_stage_survives_its_own_json() -> None:
    made = recipes.load("small.yaml")
    assert Recipe.model_validate_json(json.dumps(made.to_dict())) == made


def test_other_epochs_than_its_own_may_mix_no_images(folder: Path) -> None:
    """The schedule of the teacher is judged by its own recipe, not by this one's augmentation."""
    mixing = "scale: [64, 64], augment: [mosaic], augment_stop: 3"
    (folder / "small.yaml").write_text(SMALL.replace("image_px: 64", f"image_px: 64, {mixing}"))
    assert recipes.load("small.yaml").stage


def test_paths_are_those_of_the_command_line_so_a_copy_means_the_same(folder: Path) -> None:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "copy.yaml").write_text(SMALL)
    assert recipes.load("deeper/copy.yaml").stage == recipes.load("small.yaml").stage


def test_three_stages_are_told_in_one_line(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(SMALL.replace("large.yaml, arm: rm", "small, arm: pfi"))
    made = recipes.load("tiny.yaml", ["student.width=4"])
    assert made.stage and made.stage.stage and made.stage.stage.teacher
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text().replace("width: 8", "width: 4"))
    assert overview("tiny.yaml")["pair"] == "gfl r18/32 -> r18/16 -> r18/8 -> r18/4"


def test_show_names_the_file_that_says_what_the_teacher_is() -> None:
    found = {one.key: (one.value, one.place) for one in values_of("small.yaml")}
    assert found["teacher.arm"] == ("rm", "small.yaml:2")
    assert found["teacher.width"] == (16, "large.yaml:3")
    assert not [key for key in found if key.startswith(("teacher.schedule", "teacher.init", "stage"))]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.arm=rn", ["teacher.arm is no arm of large", "got    rn", "baseline, heir, rm", "mean rm?"]),
        ("teacher.arm=null", ["teacher.arm is missing", "teacher: {recipe: NAME, arm: NAME}"]),
        ("teacher.recipe=null", ["teacher.recipe is missing"]),
        ("teacher.recipe=lage", ["lage is not a recipe", "did you mean large?"]),
        ("teacher.recipe=3", ["teacher.recipe must be text"]),
        ("teacher.seed=-1", ["teacher.seed must be greater than or equal to 0"]),
        ("teacher.width=8", ["teacher.width has no effect next to recipe and arm", "got    width"]),
        ("teacher.checkpoint=a.pth", ["teacher.checkpoint has no effect", "got    checkpoint"]),
        ("teacher.schedule.epochs=3", ["teacher.schedule has no effect"]),
    ],
)
def test_what_does_not_fit_is_refused(override: str, words: list[str], told: Callable[..., str]) -> None:
    found = told(override)
    assert all(word in found for word in [f"--set {override}", *words])


def test_keys_beside_are_told_in_one_fault_and_null_takes_them_back(told: Callable[..., str]) -> None:
    own = ("teacher.recipe=large.yaml", "teacher.arm=rm")
    assert told(*own, name="large.yaml").count("error:") == 2
    (small := Path("small.yaml")).write_text(SMALL.replace("arm: rm", "arm: rm, width: 8"))
    assert "got    width" in told()
    assert recipes.load(str(small), ["teacher.width=null"]).stage


def test_a_recipe_is_not_its_own_teacher(told: Callable[..., str]) -> None:
    found = told("teacher.recipe=small.yaml", "teacher.arm=baseline")
    assert "the teacher would be trained by its own student" in found
    assert "got    small.yaml -> small.yaml" in found


def test_a_circle_is_told_with_all_its_files(folder: Path, told: Callable[..., str]) -> None:
    (folder / "large.yaml").write_text(SMALL.replace("large.yaml, arm: rm", "small, arm: pfi"))
    assert "error: large.yaml:2  teacher.recipe" in told()
    assert "got    small.yaml -> large.yaml -> small.yaml" in told()


def test_faults_of_the_other_recipe_stand_with_its_lines_behind_this_ones(
    folder: Path, told: Callable[..., str]
) -> None:
    (folder / "large.yaml").write_text(LARGE.replace("lr: 1e-3", "lr: -1"))
    (folder / "small.yaml").write_text(SMALL.replace("lr: 2e-3", "lr: -2"))
    found = told()
    assert found.index("error: small.yaml:4  schedule.lr") < found.index("error: large.yaml:4  schedule.lr")
    (folder / "large.yaml").write_text("a: b: c")
    assert "error: large.yaml:1  cannot be read as YAML" in told()
    (folder / "large.yaml").write_bytes(b" " * 2**21)
    assert "error: large.yaml  is too large" in told()
