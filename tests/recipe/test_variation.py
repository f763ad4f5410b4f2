from __future__ import annotations

from typing import Any

import pytest

from kdlab.errors import UsageError
from kdlab.recipe.variation import axis, pairs_of, text_of, yaml_of
from kdlab.recipe.yaml_reader import values


def test_values_are_typed_as_in_a_recipe() -> None:
    found = axis("--vary", "rm.x=1, 1e-4, yes, true, null, [8, 16], '7'")
    assert found.values == (1, 1e-4, "yes", True, None, [8, 16], "7")
    assert (found.owner, found.option) == ("rm", "x")


def test_key_may_hold_dots_behind_its_owner() -> None:
    assert axis("--pairs", "teacher.schedule.lr=1e-3,1e-2").option == "schedule.lr"


def test_pairs_are_the_product_of_their_axes() -> None:
    axes = [axis("--pairs", "student.width=8,16"), axis("--pairs", "teacher.backbone=resnet50,resnet101")]
    assert pairs_of(axes) == [
        ("student.width=8", "teacher.backbone=resnet50"),
        ("student.width=8", "teacher.backbone=resnet101"),
        ("student.width=16", "teacher.backbone=resnet50"),
        ("student.width=16", "teacher.backbone=resnet101"),
    ]


def test_without_axes_there_is_one_pair_as_it_is() -> None:
    assert pairs_of([]) == [()]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("schedule.lr=1,2", "schedule.lr is not a key of student or teacher"),
        ("width=8", "fix    write --pairs student.width=8,16"),
        ("student.=8", "fix    write --pairs student.width=8,16"),
        ("student.width=8,\n\x1b[31m", "--pairs student.width=8,\\n\\x1b[31m"),
    ],
)
def test_other_pairs_are_usage_errors(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        pairs_of([axis("--pairs", text)])
    assert told in str(error.value).replace("'", "")


@pytest.mark.parametrize(
    ("value", "text"), [("loc", "loc"), (1.5, "1.5"), (None, "null"), ([8, 16], "[8,16]"), (True, "true")]
)
def test_names_hold_values_without_blanks(value: Any, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize(
    "value", ["loc", "a b", "1e-4", "true", "", "a, b", "'", "/d/w.pth", 1e-9, [1, "2"], None]
)
def test_written_value_is_read_back(value: Any) -> None:
    assert values(yaml_of(value), "") == [value]
