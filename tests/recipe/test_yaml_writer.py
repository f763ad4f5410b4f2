from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.recipe.yaml_reader import read
from kdlab.recipe.yaml_writer import dump

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=12)
NUMBERS = st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
DATA = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


def again(folder: Path, text: str) -> dict[str, Any]:
    (folder / "written.yaml").write_text(text)
    document = read(folder / "written.yaml", "written.yaml")
    assert document.faults == []
    return document.data


@pytest.mark.parametrize(
    "value",
    [
        *(1e-4, 1e-05, 5e-324, 1e22, 1.0, 1, -3, True, None, []),
        *("1e-4", "1e400", "007", "9" * 30, "1:30", "0x10", ".inf", "2026-11-26"),
        *("true", "null", "~", "", "no", "on", "two\nlines", " blank ", "long " * 60),
        *("a: b", "# none", "*all", "[1, 2]", "'", '"', "ä", "%", "@x", "-"),
        {"model.train_cfg.rpn_proposal.nms_pre": 300, "1": {"a[b=1.5,c=x]+d": {}}},
    ],
)
@pytest.mark.parametrize("lines", [(), ("section",)])
def test_value_is_read_back_as_it_was(value: Any, lines: tuple[str, ...], tmp_path: Path) -> None:
    data = {"section": {"key": value, "more": {"key": [value]}}}
    found = again(tmp_path, dump(data, lines))
    assert found == data
    assert type(found["section"]["key"]) is type(value)


@settings(max_examples=60, deadline=None)
@given(data=st.dictionaries(WORDS, DATA, min_size=1, max_size=4))
def test_any_data_is_read_back(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    assert again(tmp_path_factory.getbasetemp(), dump(data, list(data))) == data


def test_one_object_in_two_places_is_written_twice(tmp_path: Path) -> None:
    sizes = [1, 2]
    assert again(tmp_path, dump({"a": sizes, "b": sizes})) == {"a": [1, 2], "b": [1, 2]}


def test_entries_stand_on_a_line_each() -> None:
    arms = {"baseline": {}, "rm[rank=loc]": {"rm": {"rank": "loc"}}}
    assert dump({"seeds": [0, 1], "arms": arms}, ["arms"]) == (
        "seeds: [0, 1]\narms:\n  baseline: {}\n  rm[rank=loc]: {rm: {rank: loc}}\n"
    )
