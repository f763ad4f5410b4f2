from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlab.errors import UsageError
from kdlab.jobs.study import Dimension
from kdlab.recipe import loader as recipes
from kdlab.recipe.settings import Recipe
from kdlab.tuning.space import dimensions, methods_with, published, searched_arm
from tests.tuning.test_tuner import PLAIN

ARMS = "arms={baseline: {}, rm: {rm: {}}, pfi: {pfi: {}}, both: {rm: {}, pfi: {}}}"


def load(*overrides: str) -> Recipe:
    return recipes.load("digits/fcos", [*PLAIN, *overrides])


def one(over: str, arm: str, *overrides: str) -> Dimension:
    (found,) = dimensions(load(f"arms={{a: {arm}}}", f"tune.over=[{over}]", *overrides), "a")
    return found


def faults(*overrides: str, arm: str = "both") -> list[Any]:
    with pytest.raises(UsageError) as caught:
        dimensions(load(ARMS, *overrides), arm)
    return list(caught.value.faults)


class TestSearchedArm:
    def test_is_the_first_with_the_most_methods(self) -> None:
        assert searched_arm(load()) == "rm+pfi"
        assert (
            searched_arm(load("arms={a: {rm: {}}, b: {rm: {}, pfi: {}}, c: {pfi: {}, rm: {weight: 1}}}"))
            == "b"
        )

    def test_is_the_smallest_that_has_what_is_searched(self) -> None:
        assert searched_arm(load(ARMS, "tune.over=[pfi.weight]")) == "pfi"
        assert searched_arm(load(ARMS, "tune.over=[pfi.weight, rm.rank]")) == "both"

    def test_is_the_one_that_the_recipe_names(self) -> None:
        assert searched_arm(load(ARMS, "tune.over=[pfi.weight]", "tune.arm=both")) == "both"

    def test_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(UsageError) as caught:
            searched_arm(load(ARMS, "tune.arm=bot"))
        (fault,) = caught.value.faults
        assert (fault.got, fault.known) == ("bot", "baseline, rm, pfi, both")
        assert "did you mean both?" in fault.fix

    @pytest.mark.parametrize(
        ("overrides", "got"),
        [
            (["tune.over=[mgd.weight]"], "mgd.weight"),
            (["tune.arm=rm", "tune.over=[pfi.weight]"], "pfi.weight"),
            (["tune.arm=baseline"], "arms without methods"),
            (["arms={baseline: {}}"], "arms without methods"),
        ],
    )
    def test_none_that_fits_is_told_with_what_there_is(self, overrides: list[str], got: str) -> None:
        with pytest.raises(UsageError) as caught:
            searched_arm(load(ARMS, *overrides))
        assert caught.value.faults[0].got == got
        assert "arms={baseline: {}}" in overrides or "both (rm, pfi)" in caught.value.faults[0].known


class TestDimensions:
    def test_are_the_weights_of_the_arm_where_nothing_is_named(self) -> None:
        found = dimensions(load(), "rm+pfi")
        assert [dimension.name for dimension in found] == ["rm.weight", "pfi.weight"]
        assert all(dimension.log and not dimension.given for dimension in found)

    def test_weight_reaches_as_far_to_both_sides_of_the_recipe_s(self) -> None:
        found = one("pfi.weight", "{pfi: {weight: 6}}")
        assert (found.low, found.high) == (0.2, 180.0)

    @pytest.mark.parametrize(
        ("over", "arm", "choices"),
        [
            ("rm.rank", "{rm: {}}", ("cls", "loc", "both")),
            ("rm.quality", "{rm: {}}", (False, True)),
            ("cwd@neck.on", "{cwd@neck: {}}", ("neck", "cls")),
        ],
    )
    def test_words_and_switches_are_chosen_from(self, over: str, arm: str, choices: tuple[Any, ...]) -> None:
        found = one(over, arm)
        assert found.choices == choices
        assert (found.owner, found.key) == tuple(over.rsplit(".", 1))

    @pytest.mark.parametrize(
        ("over", "arm", "expected"),
        [
            ("rm.temperature", "{rm: {}}", (0.01, 100.0, True, False)),
            ("mgd.masked_share", "{mgd: {}}", (0.0, 0.99, False, False)),
            ("pgd.topk", "{pgd: {}}", (1, 10000, True, True)),
        ],
    )
    def test_numbers_have_the_limits_that_their_method_declares(
        self, over: str, arm: str, expected: tuple[float, float, bool, bool]
    ) -> None:
        found = one(over, arm)
        assert (found.low, found.high, found.log, found.whole) == expected

    @pytest.mark.parametrize(
        ("over", "arm", "space", "expected"),
        [
            ("pfi.weight", "{pfi: {}}", "[1, 100]", (1, 100, True, False, ())),
            ("pfi.weight", "{pfi: {}}", "[10, 100]", (10, 100, False, False, ())),
            ("pfi.weight", "{pfi: {weight: 0}}", "[0, 3]", (0, 3, False, False, ())),
            ("pfi.weight", "{pfi: {}}", "[1, 10, 100]", (0.05, 45.0, True, False, (1, 10, 100))),
            ("pgd.topk", "{pgd: {}}", "[10, 40]", (10, 40, False, True, ())),
            ("rm.rank", "{rm: {}}", "[loc, cls]", (0, 0, False, False, ("loc", "cls"))),
            ("frs.feature", "{frs: {}}", "[0.01, 1]", (0.01, 1, True, False, ())),
        ],
    )
    def test_range_of_the_recipe_counts_in_place_of_the_method_s(
        self, over: str, arm: str, space: str, expected: tuple[Any, ...]
    ) -> None:
        found = one(over, arm, f"tune.space={{{over}: {space}}}")
        assert found.given
        assert (found.low, found.high, found.log, found.whole, found.choices) == expected

    def test_students_are_chosen_from_beside_the_methods(self) -> None:
        found = dimensions(load("tune.student={width: [8, 16]}"), "rm+pfi")
        assert found[-1] == Dimension("student.width", choices=(8, 16))
        assert (found[-1].owner, found[-1].key) == ("student", "width")

    def test_name_that_stands_twice_is_searched_once(self) -> None:
        assert len(dimensions(load("tune.over=[rm.weight, rm.weight]"), "rm+pfi")) == 1

    def test_all_faults_are_told_at_once(self) -> None:
        found = faults(
            "tune.over=[mgd.weight, rm.rnk, rm.score]", "tune.space={rm.score: [sigmoid, tanh], x.y: [1, 2]}"
        )
        assert [(fault.what, fault.got) for fault in found] == [
            ("mgd.weight is of no method of the arm", "mgd"),
            ("rm.rnk is not an option of rm", "rnk"),
            ("tune.space.rm.score must be sigmoid or logit", "['sigmoid', 'tanh']"),
            ("tune.space.x.y is not searched", "x.y"),
        ]
        assert found[0].known == "rm, pfi"
        assert "did you mean rank?" in found[1].fix
        assert found[3].fix == "name it with --over too"

    @pytest.mark.parametrize(
        ("over", "space", "what"),
        [
            ("pfi.weight", "[-1, 1]", "must hold numbers from 0 on"),
            ("pfi.weight", "[a, b]", "must hold numbers from 0 on"),
            ("pfi.weight", "[false, true]", "must hold numbers from 0 on"),
            ("pfi.weight", "[3, 1]", "must begin with its lowest number"),
            ("pfi.weight", "[3, 3]", "must hold two numbers that differ"),
            ("rm.temperature", "[0.001, 1]", "must be a number from 0.01 to 100"),
        ],
    )
    def test_range_that_cannot_be_is_refused(self, over: str, space: str, what: str) -> None:
        (fault,) = faults(f"tune.over=[{over}]", f"tune.space={{{over}: {space}}}")
        assert fault.what == f"tune.space.{over} {what}"

    @pytest.mark.parametrize(
        ("over", "arm"), [("pfi.weight", "pfi: {weight: 0}"), ("frs.feature", "frs: {}")]
    )
    def test_number_without_a_range_is_asked_for(self, over: str, arm: str) -> None:
        (fault,) = faults(f"arms={{a: {{{arm}}}}}", f"tune.over=[{over}]", arm="a")
        assert fault.what == f"{over} has no range to search"
        assert fault.fix == f"--set 'tune.space={{{over}: [LOWEST, HIGHEST]}}'"


@given(st.floats(1e-8, 1e8))
def test_rounded_number_is_near_and_short(value: float) -> None:
    found = Dimension("pfi.weight", 1e-9, 1e9).rounded(value)
    assert found == pytest.approx(value, rel=0.006)
    assert len(f"{found:e}".partition("e")[0].rstrip("0")) <= 4


def test_zero_words_and_whole_numbers_are_left_as_they_are() -> None:
    assert Dimension("a.b", 0, 1).rounded(0.0) == 0.0
    assert Dimension("a.b", choices=(0.12345,)).rounded(0.12345) == 0.12345
    assert Dimension("a.b", 0, 10**6, whole=True).rounded(123456) == 123456


@pytest.mark.parametrize(
    ("dimension", "value", "expected"),
    [
        (Dimension("a.b", 1, 5), 0, 1),
        (Dimension("a.b", 1, 5), 7, 5),
        (Dimension("a.b", 1, 5), 3, 3),
        (Dimension("a.b", choices=("x", "y")), "y", "y"),
        (Dimension("a.b", choices=("x", "y")), None, "x"),
    ],
)
def test_value_outside_is_told_as_the_nearest_inside(
    dimension: Dimension, value: object, expected: object
) -> None:
    assert dimension.clipped(value) == expected


class TestMethodsWith:
    def test_changes_what_is_named_alone(self) -> None:
        recipe = load(ARMS)
        arm = recipe.arms["both"]
        found = methods_with(recipe, "both", {"pfi.weight": 30, "student.width": 8})
        assert found["rm"] == arm["rm"]
        assert found["pfi"] == arm["pfi"].model_copy(update={"weight": 30.0})

    def test_options_that_others_make_idle_have_their_defaults(self) -> None:
        recipe = load("arms={a: {rm: {score: logit, quality: true}}}")
        found = methods_with(recipe, "a", {"rm.rank": "loc"})["rm"]
        assert found.options == {"score": "sigmoid", "rank": "loc", "quality": False, "temperature": 1.0}

    def test_defaults_are_those_of_the_student_s_family(self) -> None:
        recipe = recipes.load("digits/gfl", ["arms={a: {rm: {score: sigmoid}, pkd: {}}}"])
        found = methods_with(recipe, "a", {"rm.rank": "loc", "pkd.levels": (8, 16)})
        assert found["rm"].options["score"] == "logit"
        assert (found["rm"].weight, found["pkd"].weight) == (4.0, 6.0)

    @pytest.mark.parametrize(
        ("arm", "values", "weight"),
        [
            ("{cwd: {}}", {"cwd.on": "cls"}, 5.0),
            ("{cwd: {weight: 7}}", {"cwd.on": "cls"}, 7.0),
            ("{cwd: {}}", {"cwd.on": "cls", "cwd.weight": 8.0}, 8.0),
            ("{cwd: {on: cls}}", {"cwd.on": "neck"}, 10.0),
            ("{pfi: {}}", {"pfi.region": "whole"}, 0.022),
        ],
    )
    def test_weight_follows_the_options_where_the_recipe_leaves_it_to_them(
        self, arm: str, values: dict[str, Any], weight: float
    ) -> None:
        (found,) = methods_with(load(f"arms={{a: {arm}}}"), "a", values).values()
        assert found.weight == weight

    def test_instances_of_one_method_are_kept_apart(self) -> None:
        recipe = load("arms={a: {cwd@neck: {}, cwd@cls: {on: cls}}}")
        found = methods_with(recipe, "a", {"cwd@cls.weight": 3.0})
        assert {name: method.weight for name, method in found.items()} == {"cwd@neck": 10.0, "cwd@cls": 3.0}


class TestPublished:
    @pytest.mark.parametrize(
        ("recipe", "expected"),
        [
            ("digits/gfl", {"frs.feature": 0.1, "frs.weight": 1.0, "pkd.weight": 6.0}),
            ("digits/fcos", {"frs.feature": 0.01, "frs.weight": 1.0, "pkd.weight": 10.0}),
        ],
    )
    def test_is_what_the_paper_says_of_the_student_s_family(
        self, recipe: str, expected: dict[str, float]
    ) -> None:
        own = recipes.load(recipe, ["arms={a: {frs: {feature: 9, weight: 9}, pkd: {weight: 9}}}"])
        space = tuple(Dimension(name, 0, 1) for name in ("frs.feature", "frs.weight", "pkd.weight"))
        assert published(own, "a", space) == ("published", expected)

    def test_says_nothing_of_students(self) -> None:
        students = (Dimension("student.width", choices=(8, 16)),)
        assert published(load(), "rm+pfi", students) == ("published", {})

    def test_weight_is_that_of_the_options_which_are_not_searched(self) -> None:
        own = load("arms={a: {cwd: {on: cls, weight: 9}}}")
        weight, on = Dimension("cwd.weight", 0, 1), Dimension("cwd.on", choices=("neck", "cls"))
        assert published(own, "a", (weight,)) == ("defaults", {"cwd.weight": 5.0})
        assert published(own, "a", (weight, on)) == ("published", {"cwd.weight": 10.0, "cwd.on": "neck"})

    def test_option_that_papers_values_make_idle_is_no_reason_to_call_them_defaults(self) -> None:
        own = load("arms={a: {soft_label: {form: softmax, temperature: 4}}}")
        form = Dimension("soft_label.form", choices=("softmax", "sigmoid"))
        assert published(own, "a", (form,)) == ("published", {"soft_label.form": "sigmoid"})
