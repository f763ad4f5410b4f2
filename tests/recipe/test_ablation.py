"""Ablations: which arms they have, where options come from, and that the written recipe says the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from kdlab import catalog
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.errors import UsageError
from kdlab.planning import build as plan
from kdlab.planning.facts import Facts
from kdlab.recipe import loader as recipe
from kdlab.recipe.ablation import Derived, derive
from kdlab.recipe.loader import Recipe
from kdlab.recipe.variation import Request, axis

BASE = """
    # A pair.
    dataset: {name: digits, image_px: 64, flip: 0}
    student: {detector: gfl, backbone: resnet18}
    teacher: {detector: gfl, backbone: resnet50, overrides: {model.test_cfg.max_per_img: 50}}
    resources: {workers: 2}
    schedule: {preset: custom, epochs: 2, batch_size: 8, lr: 1e-4, optimizer: adamw, clip_grad: null}
    arms:
      baseline: {}
      soft: {soft_label: {}}
      rm: {rm: {weight: 2, score: logit}}
      heir: {pfi: {weight: 99}, inherit: true}
      both: {rm: {weight: 7}, pfi: {weight: 7}}
    seeds: [3]
"""


class Bench:
    """Ablations of the recipe `my.yaml` of the current folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = BASE

    def derive(self, losses: str, *varied: str, **request: Any) -> Derived:
        (self.folder / "my.yaml").write_text(dedent(self.text).lstrip())
        axes = tuple(axis("--vary", text) for text in varied)
        wanted = Request(tuple(losses.split(",")), vary=axes, **request)
        name, document = recipe.opened("my.yaml", wanted.overrides)
        recipe.resolve(document, name)
        return derive(document, name, wanted)

    def __call__(self, losses: str, *varied: str, **request: Any) -> Recipe:
        """The derived recipe as its file loads."""
        made = self.derive(losses, *varied, **request)
        loaded = recipe.resolve(made.document, made.name)
        (self.folder / "derived.yaml").write_text(made.document.text)
        again = recipe.load("derived.yaml")
        head = {"name": loaded.name, "path": loaded.path}
        assert again.model_copy(update=head) == loaded, "the file says something else than what was checked"
        return again

    def told(self, losses: str, *varied: str, **request: Any) -> str:
        with pytest.raises(UsageError) as caught:
            self(losses, *varied, **request)
        return str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The catalog's files are parsed once for all of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("methods", "detectors", "datasets", "executors", "recipes"):
            patch.setattr(catalog, kind, cache(getattr(catalog, kind)))
        yield


@pytest.fixture
def ablate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path)


# Which arms there are.


def test_all_combinations_come_after_the_baseline(ablate: Bench) -> None:
    names = list(ablate("rm,pfi,cwd@cls").arms)
    pairs = ["rm+pfi", "rm+cwd@cls", "pfi+cwd@cls"]
    assert names == ["baseline", "rm", "pfi", "cwd@cls", *pairs, "rm+pfi+cwd@cls"]


def test_each_leaves_the_combinations_out(ablate: Bench) -> None:
    assert list(ablate("rm,pfi", each=True).arms) == ["baseline", "rm", "pfi"]


def test_varied_values_name_every_arm_that_has_the_method(ablate: Bench) -> None:
    made = ablate("rm,pfi", "rm.rank=cls,loc")
    names = ["baseline", "rm[rank=cls]", "rm[rank=loc]", "pfi", "rm[rank=cls]+pfi", "rm[rank=loc]+pfi"]
    assert list(made.arms) == names
    assert made.arms["rm[rank=loc]+pfi"]["rm"].options["rank"] == "loc"
    assert made.arms["rm[rank=loc]+pfi"]["pfi"] == made.arms["pfi"]["pfi"]


def test_several_options_give_their_product(ablate: Bench) -> None:
    made = ablate("rm,pfi", "rm.rank=cls,both", "pfi.weight=1.5,6", "rm.warmup_iters=0,9", each=True)
    ranks = [f"rm[rank={rank},warmup_iters={steps}]" for rank, steps in product(("cls", "both"), (0, 9))]
    assert list(made.arms) == ["baseline", *ranks, "pfi[weight=1.5]", "pfi[weight=6]"]
    assert made.arms["pfi[weight=6]"]["pfi"].weight == 6.0


@pytest.mark.parametrize("each", [False, True])
def test_number_of_arms_is_known_before_they_are_made(each: bool, ablate: Bench) -> None:
    request = Request(("rm", "pfi", "cwd"), each, (axis("--vary", "rm.rank=cls,loc,both"),))
    assert request.arms() == len(ablate("rm,pfi,cwd", "rm.rank=cls,loc,both", each=each).arms)


# Where options come from.


def test_arm_in_which_a_method_stands_alone_says_its_options(ablate: Bench) -> None:
    made = ablate("rm,pfi")
    assert [made.arms[arm]["rm"].weight for arm in ("rm", "rm+pfi")] == [2.0, 2.0]
    assert made.arms["rm+pfi"]["rm"].options["score"] == "logit"


def test_arm_that_inherits_or_combines_says_nothing_of_a_method(ablate: Bench) -> None:
    default = catalog.methods()["pfi"].serving("gfl").default_weight
    assert ablate("rm,pfi").arms["pfi"]["pfi"].weight == default != 99


def test_methods_block_wins_key_by_key(ablate: Bench) -> None:
    ablate.text += "    methods: {rm: {weight: 5}}\n"
    made = ablate("rm").arms["rm"]["rm"]
    assert (made.weight, made.options["score"]) == (5.0, "logit")


def test_override_of_an_arm_that_the_methods_block_outranks_is_refused(ablate: Bench) -> None:
    ablate.text += "    methods: {rm: {weight: 5}}\n"
    told = ablate.told("rm", overrides=("arms.rm.rm.weight=6",))
    assert "--set arms.rm.rm.weight=6  has no effect in an ablation" in told
    assert "fix    --set methods.rm.weight=6" in told
    assert (
        ablate("rm", overrides=("arms.rm.rm.score=sigmoid",)).arms["rm"]["rm"].options["score"] == "sigmoid"
    )


def test_override_of_the_methods_block_wins_over_all(ablate: Bench) -> None:
    ablate.text += "    methods: {rm: {weight: 5}}\n"
    made = ablate("rm", overrides=("methods.rm.weight=6", "methods.rm.score=sigmoid"))
    assert (made.arms["rm"]["rm"].weight, made.arms["rm"]["rm"].options["score"]) == (6.0, "sigmoid")


def test_arms_that_disagree_are_told_with_both_names_and_a_fix(ablate: Bench) -> None:
    ablate.text = BASE.replace("      heir", "      rm2: {rm: {weight: 3, score: logit}}\n      heir")
    told = ablate.told("rm")
    assert "my.yaml:11  arms.rm and arms.rm2 disagree about rm: weight" in told
    assert 'got    rm {"weight": 2}, rm2 {"weight": 3}' in told
    assert "--set methods.rm.weight=2" in told


@pytest.mark.parametrize(("overrides", "varied"), [(("methods.rm.weight=4",), ()), ((), ("rm.weight=4,5",))])
def test_what_is_decided_elsewhere_is_no_disagreement(
    overrides: tuple[str, ...], varied: tuple[str, ...], ablate: Bench
) -> None:
    ablate.text = BASE.replace("      heir", "      rm2: {rm: {weight: 3, score: logit}}\n      heir")
    (first, *_) = list(ablate("rm", *varied, overrides=overrides).arms.values())[1:]
    assert (first["rm"].weight, first["rm"].options["score"]) == (4.0, "logit")


def test_family_has_its_own_defaults(ablate: Bench) -> None:
    ablate.text = BASE.replace("detector: gfl", "detector: retinanet")
    weights = [ablate("pfi").arms["pfi"]["pfi"].weight]
    assert weights == [catalog.methods()["pfi"].serving("retinanet").default_weight]


def test_option_that_a_varied_value_makes_idle_has_its_default_there(ablate: Bench) -> None:
    ablate.text = BASE.replace("score: logit", "score: sigmoid")
    made = ablate("rm", "rm.rank=cls,loc")
    default = catalog.methods()["rm"].serving("gfl").options["score"].default
    scores = {name: arm["rm"].options["score"] for name, arm in made.arms.items() if arm}
    assert scores == {"rm[rank=cls]": "sigmoid", "rm[rank=loc]": default}
    assert default != "sigmoid"


# What stays.


def test_all_else_is_the_base_recipe(ablate: Bench) -> None:
    made, base = ablate("rm"), recipe.load("my.yaml")
    for section in ("dataset", "teacher", "student", "schedule", "resources", "seeds"):
        assert getattr(made, section) == getattr(base, section)


def test_sections_keep_their_order_and_their_numbers(ablate: Bench) -> None:
    text = ablate.derive("rm").document.text
    sections = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert sections == ["dataset", "student", "teacher", "resources", "schedule", "methods", "arms", "seeds"]
    assert "lr: 0.0001, optimizer: adamw, clip_grad: null}" in text
    assert "{model.test_cfg.max_per_img: 50}" in text


def test_seeds_and_overrides_are_in_it(ablate: Bench) -> None:
    made = ablate("rm", overrides=("seeds=[0, 1, 2]", "schedule.epochs=5"))
    assert (made.seeds, made.schedule.epochs) == ((0, 1, 2), 5)


def test_head_says_what_is_varied_and_how_to_run_it(ablate: Bench) -> None:
    made = ablate.derive("rm,pfi", "rm.rank=cls,loc", overrides=("seeds=[0]", "schedule.epochs=5"), each=True)
    title, command, run, *_ = made.document.text.splitlines()
    assert title == "# A pair.; ablation of rm, pfi, one at a time; rm.rank cls, loc; schedule.epochs=5"
    assert command == (
        "# kdlab ablate --loss rm,pfi --vary rm.rank=cls,loc --set 'seeds=[0]' --set schedule.epochs=5 "
        "--each my.yaml"
    )
    assert run == f"# or kdlab run {made.name}"


def test_equal_requests_give_equal_bytes_and_others_other_names(ablate: Bench) -> None:
    assert ablate.derive("rm,pfi") == ablate.derive("rm,pfi")
    wanted: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("rm,pfi",), {}),
        (("rm,pfi",), {"each": True}),
        (("rm,pfi", "rm.rank=cls"), {}),
        (("rm,pfi",), {"overrides": ("seeds=[0]",)}),
        (("rm,pfi",), {"overrides": ("dataset.image_px=32",)}),
        (("rm,pfi",), {"overrides": (f"student.overrides={{model.{'x' * 90}: 1}}", "student.width=8")}),
        (("rm,pfi",), {"overrides": ("student.overrides={model.a/b: 1}",)}),
        (("rm,pfi",), {"overrides": ("student.overrides={model.a_b: 1}",)}),
        (("rm,pfi",), {"overrides": (f"student.overrides={{model.{'x' * 200}: 1}}",)}),
    ]
    names = [ablate.derive(*arguments, **more).name for arguments, more in wanted]
    assert len(set(names)) == len(names)
    assert re.fullmatch(
        r"ablate/my--rm\+pfi--student\.width=8--student\.overrides=_model\.x+-\w{8}", names[5]
    )
    assert names[:3] == [f"ablate/my--rm+pfi{end}" for end in ("", "--each", "--rm.rank=cls")]
    assert all(re.fullmatch(r"[\w+@.,=/-]+", name) and len(name) < 120 for name in names)


# What is refused.


@pytest.mark.parametrize(
    ("losses", "varied", "told"),
    [
        ("", (), "--loss   names no method"),
        ("rm,", (), "--loss rm,  names no method"),
        ("rm,rm", (), "--loss rm,rm  rm is named twice"),
        ("rank_mimic,pfi", (), "rank_mimic is not a method"),
        ("rank_mimic,pfi", (), "did you mean rm?"),
        ("cwd@a/b", (), "--loss cwd@a/b  arms.cwd@a/b.cwd@a/b is not a name for an instance"),
        ("rm", ("pfi.weight=1",), "--vary pfi.weight=1  pfi is not among the methods of the ablation"),
        ("rm", ("rm.rnk=cls",), "--vary rm.rnk=cls  rnk is not an option of rm"),
        ("rm", ("rm.rnk=cls",), "did you mean rank?"),
        ("rm", ("rm.levels=8",), "levels is not an option of rm"),
        ("rm", ("rm.rank=cls,lok",), "--vary rm.rank=cls,lok  rm.rank must be cls, loc or both"),
        ("rm", ("rm.rank=cls,lok",), "did you mean loc?"),
        ("rm", ("rm.weight=cls",), "rm.weight must be a number"),
        ("rm", ("rm.rank=cls", "rm.rank=loc"), "--vary rm.rank=loc  rm.rank is varied twice"),
        ("rm", ("rm.rank=cls,cls",), "--vary rm.rank=cls,cls  names cls twice"),
        ("rm", ("rm.rank=",), "names no value"),
        ("rm", ("rm.rank",), "fix    write --vary rm.rank=cls,loc,both"),
        ("rm", ("rank=cls",), "is not of the form"),
        ("rm", ("rm.rank=[cls",), "--vary rm.rank=[cls  cannot be read as YAML"),
        (
            "rm",
            ("rm.weight=6,6.0",),
            "6.0  arms.rm[weight=6.0] is the same as arms.rm[weight=6]",
        ),
        ("rm", ("rm.rank=loc", "rm.score=sigmoid,logit"), "rm.score has no effect with rank: loc"),
    ],
)
def test_senseless_requests_are_usage_errors(
    losses: str, varied: tuple[str, ...], told: str, ablate: Bench
) -> None:
    assert told in ablate.told(losses, *varied)


def test_recipe_without_a_teacher_is_told(ablate: Bench) -> None:
    ablate.text = "dataset: {name: digits}\nstudent: {detector: gfl}\narms: {baseline: {}}\n"
    assert "--loss rm  arms.rm has methods, but the recipe has no teacher" in ablate.told("rm")


def test_fault_of_the_base_recipe_has_its_line(ablate: Bench) -> None:
    ablate.text = BASE.replace("flip: 0", "flip: 7")
    assert "my.yaml:2  dataset.flip" in ablate.told("rm")


# What is shared with the base recipe.


def facts() -> Facts:
    model: dict[str, Any] = {
        "detector": "gfl",
        "provides": ["feats", "cls_maps", "box_maps", "boxes", "assignment"],
        "strides": [8, 16, 32],
        "trains": True,
        "pad_divisor": 32,
        "least_divisor": 1,
        **dict.fromkeys(["num_classes", "anchors", "tower_depth", "bins", "flops", "params", "channels"], 1),
        **dict.fromkeys(["head", "priors"], ""),
    }
    split = Split(Path("/d/images"), Path("/d/labels.json"))
    files = DatasetFiles("digits", ("0",), split, split, "f" * 16)
    return Facts(files, model, model, "cpu", {})


def ids(made: Recipe) -> dict[str, str]:
    return {planned.job.arm: planned.job.id for planned in plan.build(made, facts(), {}).jobs}


def test_teacher_baseline_and_the_default_arm_are_jobs_of_the_base_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(("rm", "pfi"), vary=(axis("--vary", "rm.rank=cls,loc,both"),))
    name, document = recipe.opened("digits/quickstart")
    made = derive(document, name, request)
    plain, own = ids(recipe.load("digits/quickstart")), ids(recipe.resolve(made.document, made.name))
    assert catalog.methods()["rm"].options["rank"].default == "cls"
    pairs = {"rm[rank=cls]": "rm", "rm[rank=cls]+pfi": "rm+pfi"}
    assert {pairs.get(arm, arm): job for arm, job in own.items() if job in plain.values()} == plain
    assert len(set(own.values())) == len(plain) + 4
