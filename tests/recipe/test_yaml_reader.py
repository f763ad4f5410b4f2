"""YAML as recipes use it, and where each value was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.errors import UsageError
from kdlab.recipe.document import Document
from kdlab.recipe.yaml_reader import MAX_BYTES, MAX_NODES, read


def read_text(folder: Path, text: str | bytes, *overrides: str) -> Document:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, "r.yaml", overrides)


def test_every_value_has_the_line_of_its_key(tmp_path: Path) -> None:
    document = read_text(tmp_path, "a:\n  b: 1\n  c: [2,\n    3]\n")

    assert document.data == {"a": {"b": 1, "c": [2, 3]}}
    assert document.places == {
        (): "r.yaml:1",
        ("a",): "r.yaml:1",
        ("a", "b"): "r.yaml:2",
        ("a", "c"): "r.yaml:3",
        ("a", "c", 0): "r.yaml:3",
        ("a", "c", 1): "r.yaml:4",
    }


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3), ("-3", -3), ("010", 10), ("1.", 1.0), ("1e-4", 1e-4), ("1E5", 1e5), (".5e-3", 5e-4),
        ("true", True), ("False", False), ("no", "no"), ("on", "on"), ("~", None), ("", None), ("null", None),
        ("1_000", "1_000"), ("1:30", "1:30"), ("0x1F", "0x1F"), ("2024-01-01", "2024-01-01"), ("1x", "1x"),
        (".inf", ".inf"), ("1e999", "1e999"), ("9" * 5000, "9" * 5000), (".", "."), ("'3'", "3"),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(tmp_path: Path, written: str, value: object) -> None:
    read_value = read_text(tmp_path, f"a: {written}\n").data["a"]

    assert read_value == value
    assert type(read_value) is type(value)


def test_keys_are_text_as_they_are_written(tmp_path: Path) -> None:
    assert read_text(tmp_path, "{1: a, true: b, null: c}").data == {"1": "a", "true": "b", "null": "c"}


def test_first_of_duplicate_keys_is_kept_and_the_fault_noted(tmp_path: Path) -> None:
    document = read_text(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 3\n")

    assert document.data == {"a": 1, "b": {"c": 1}}
    assert [(fault.where, fault.what) for fault in document.faults] == [
        ("r.yaml:2", "b.c is given twice, first at r.yaml:2"),
        ("r.yaml:3", "a is given twice, first at r.yaml:1"),
    ]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: &x 1\n", "r.yaml:1", "no anchors"),
        ("a: 1\nb: *x\n", "r.yaml:2", "no anchors"),
        ("a: !!python/object/apply:os.getcwd []\n", "r.yaml:1", "no anchors, aliases and tags"),
        ("a: !!str 1\n", "r.yaml:1", "no anchors, aliases and tags"),
        ("a:\n\tb: 1\n", "r.yaml:2", "cannot start any token"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2", "another document"),
        ("a: " + "[" * 100_000, "r.yaml:1", "nested too deeply"),
        ("a: 1\nb: \x07\n", "r.yaml:2", "character 0x7 is not allowed"),
        (b"a: 1\nb: \xff\n", "r.yaml:2", "is not UTF-8 text"),
        (b"#" * (MAX_BYTES + 1), "r.yaml", "is too large"),
        (b"a: [" + b"1," * MAX_NODES + b"]", "r.yaml:1", "at most 40000 keys and values"),
        ("", "r.yaml:1", "must hold keys and values"),
        ("- a\n", "r.yaml:1", "must hold keys and values"),
    ],
)
def test_what_a_recipe_cannot_be_is_told_with_its_line(
    tmp_path: Path, text: str | bytes, where: str, what: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_text(tmp_path, text)

    (fault,) = caught.value.faults
    assert fault.where == where
    assert what in fault.what


def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_text(tmp_path, b"\xef\xbb\xbfa: 1\n").data == {"a": 1}


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"r\.yaml  cannot be read: No such file"):
        read(tmp_path / "r.yaml", "r.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").touch(mode=0)

    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        read(tmp_path / "r.yaml", "r.yaml")


def test_override_replaces_a_block_and_all_its_places(tmp_path: Path) -> None:
    document = read_text(tmp_path, "a:\n  b: {c: 1}\n", "a.b={d: 2}")

    assert document.data == {"a": {"b": {"d": 2}}}
    override = "--set a.b={d: 2}"
    assert document.places == {
        (): "r.yaml:1", ("a",): "r.yaml:1", ("a", "b"): override, ("a", "b", "d"): override,
    }  # fmt: skip


ARMS = """
a: {b: 1}
arms:
  rm: {}
  rm[rank=loc]: {rm: {rank: loc}}
  rm[rank=loc]+pfi[weight=1.5]: {rm: {}, pfi: {}}
"""


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("arms.rm.rm={x: 1}", ("rm", "rm")),
        ("arms.rm[rank=loc].rm={x: 1}", ("rm[rank=loc]", "rm")),
        ("arms.rm[rank=loc]={x: 1}", ("rm[rank=loc]",)),
        ("arms.rm[rank=loc]+pfi[weight=1.5].pfi={x: 1}", ("rm[rank=loc]+pfi[weight=1.5]", "pfi")),
        ("arms.new={x: 1}", ("new",)),
        ("arms.rm[rank=both,weight=1.5]={x: 1}", ("rm[rank=both,weight=1.5]",)),
    ],
)
def test_override_takes_the_name_of_an_arm_as_one_key(
    override: str, path: tuple[str, ...], tmp_path: Path
) -> None:
    document = read_text(tmp_path, ARMS, override)

    assert document.faults == []
    assert document.places["arms", *path] == f"--set {override}"
    value = document.data["arms"]
    for key in path:
        value = value[key]
    assert value == {"x": 1}


def test_override_of_an_unknown_arm_is_told_with_the_known_ones(tmp_path: Path) -> None:
    (fault,) = read_text(tmp_path, ARMS, "arms.rm[rank=lok].rm.rank=loc").faults

    assert fault.known == "rm, rm[rank=loc], rm[rank=loc]+pfi[weight=1.5]"


@pytest.mark.parametrize("arms", ["3", "[1, 2]", "null", "text"])
def test_override_below_arms_that_are_no_mapping_is_a_fault(arms: str, tmp_path: Path) -> None:
    document = read_text(tmp_path, f"arms: {arms}\n", "arms.rm.rm.weight=1")

    assert len(document.faults) == 1


def test_override_that_is_no_yaml_is_noted_with_its_text(tmp_path: Path) -> None:
    (fault,) = read_text(tmp_path, "a: 1\n", "a=[1").faults

    assert fault.where == "--set a=[1"
    assert fault.what.startswith("cannot be read as YAML")


def test_control_characters_of_an_override_are_made_visible(tmp_path: Path) -> None:
    (fault,) = read_text(tmp_path, "a: 1\n", "a=\x1b[31m").faults

    assert fault.where == r"--set 'a=\x1b[31m'"


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(text=st.text("ab:-,[]{}&*!#'\" \n\t1.e?|>%@", max_size=40) | st.text(max_size=20))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        document = read_text(tmp_path_factory.getbasetemp(), text)
    except UsageError as error:
        assert error.exit_code == 2
    else:
        assert isinstance(document.data, dict)
