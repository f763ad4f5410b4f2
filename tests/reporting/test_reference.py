from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from kdlab import catalog
from kdlab.errors import UsageError
from kdlab.recipe import loader as recipe
from kdlab.reporting.reference import COLUMNS, Published, published, read

ROW = {
    "pair": "R101 to R50", "arm": "rm", "ap": "38.8", "gain": "", "baseline_ap": "37.4", "teacher_ap": "",
    "schedule": "2x", "inherits": "no", "verified": "yes", "paper": "A", "table": "Tab. 1",
    "codebase": "mmdet", "source": "A, Tab. 1", "recipes": "coco/a coco/b", "note": "",
}  # fmt: skip


def write(folder: Path, *rows: dict[str, str], columns: Any = COLUMNS, name: str = "a.csv") -> None:
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="x", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def told(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder)
    return str(caught.value).replace(f"{folder}/", "")


def test_row_belongs_to_every_recipe_that_it_names(tmp_path: Path) -> None:
    write(tmp_path, ROW, ROW | {"recipes": "coco/b", "arm": "pfi"}, ROW | {"recipes": ""})
    found = {name: [row.arm for row in published(name, tmp_path)] for name in ("coco/a", "coco/b", "coco")}
    assert found == {"coco/a": ["rm"], "coco/b": ["rm", "pfi"], "coco": []}


def test_cells_become_numbers_answers_and_nothing(tmp_path: Path) -> None:
    write(tmp_path, ROW | {"gain": "1.5", "inherits": "yes", "verified": "no"})
    assert published("coco/a", tmp_path) == [
        Published("R101 to R50", "rm", 38.8, 1.5, 37.4, None, "2x", True, False, "A", "Tab. 1", "mmdet",
                  "A, Tab. 1", ("coco/a", "coco/b"), "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ap", "baseline", "gain"), [("38.8", "37.4", 1.4), ("38.8", "", None), ("", "37.4", None)]
)
def test_gain_that_is_not_printed_is_the_difference(
    tmp_path: Path, ap: str, baseline: str, gain: float | None
) -> None:
    write(tmp_path, ROW | {"ap": ap, "baseline_ap": baseline, "note": "some words"})
    assert published("coco/a", tmp_path)[0].gain == gain


def test_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path, ROW, columns=COLUMNS[::-1])
    assert published("coco/a", tmp_path)[0].ap == 38.8


def test_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert published("coco/a", tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (
            {"ap": "38,8"},
            "ap is no number of points\n  got    38,8\n  known  a number from 0 to 100, or nothing",
        ),
        ({"gain": "nan"}, "gain is no number of points\n  got    nan"),
        ({"teacher_ap": "389"}, "teacher_ap is no number of points\n  got    389"),
        ({"inherits": "true"}, "inherits must be yes or no\n  got    true"),
        ({"verified": ""}, "verified must be yes or no\n  got    nothing"),
        ({"source": " "}, "source is missing"),
        ({"arm": ""}, "arm is missing"),
        ({"ap": ""}, "ap, gain and note are all empty"),
    ],
)
def test_wrong_cell_is_told_with_its_line(tmp_path: Path, cells: dict[str, str], fault: str) -> None:
    write(tmp_path, ROW, ROW | cells)
    assert told(tmp_path).startswith(f"error: a.csv:3  {fault}")


def test_unknown_and_missing_columns_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, ROW, columns=[name if name != "source" else "sauce" for name in COLUMNS])
    text = told(tmp_path)
    assert text.startswith("error: a.csv:1  unknown column\n  got    sauce\n  known  pair, arm, ap,")
    assert "did you mean source?" in text
    assert "error: a.csv:1  the column source is missing" in text


def test_column_that_stands_twice_is_a_fault(tmp_path: Path) -> None:
    write(tmp_path, ROW, columns=[*COLUMNS, "ap"])
    assert told(tmp_path) == "error: a.csv:1  the column ap stands 2 times"


def test_empty_file_lacks_all_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    assert told(tmp_path).count("is missing") == len(COLUMNS)


def test_comma_without_quotes_is_told_as_a_line_that_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path, ROW)
    with (tmp_path / "a.csv").open("a") as stream:
        stream.write(",".join([*ROW.values()]) + "\n\n")
    fault = (
        "error: a.csv:3  the line does not fit the columns\n  got    16 cells\n  known  15, as the header has"
    )
    assert told(tmp_path).startswith(fault)


def test_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path, ROW | {"ap": "x"}, name=name)
    assert [line.split()[1] for line in told(tmp_path).splitlines() if "error" in line] == [
        "a.csv:2",
        "b.csv:2",
    ]


@pytest.fixture(scope="module")
def committed() -> list[Published]:
    """The rows that kdlab brings."""
    return read(catalog.reference_folder())


def test_papers_own_gain_is_there() -> None:
    found = {row.arm: row for row in published("coco/li2022_table6") if row.paper == "Li et al. 2022"}
    assert (found["rm+pfi"].ap, found["rm+pfi"].gain) == (40.4, 3.5)


def test_every_committed_number_has_a_source_and_adds_up(committed: list[Published]) -> None:
    for row in committed:
        assert row.source
        if row.ap is not None and row.baseline_ap is not None:
            assert row.gain == pytest.approx(row.ap - row.baseline_ap, abs=0.05), row


def test_every_named_recipe_exists_and_every_recipe_of_the_paper_is_named(committed: list[Published]) -> None:
    named = {name for row in committed for name in row.recipes}
    assert named <= catalog.recipes().keys()
    assert named >= {name for name in catalog.recipes() if "li2022" in name}


def test_every_arm_is_one_of_a_recipe_or_of_no_method_here(committed: list[Published]) -> None:
    # a misspelt arm would never meet its row
    words = {"heir", *catalog.methods(), *ELSEWHERE}
    named = {name for row in committed for name in row.recipes}
    arms = {name: recipe.load(name).arms for name in named}
    for row in committed:
        parts = {part.partition("@")[0] for part in row.arm.split("+")}
        assert parts <= words or any(row.arm in arms[name] for name in row.recipes), row


ELSEWHERE = ("globalkd", "detkds", "amd", "head", "in-gt", "main-region", "gi")


def test_no_committed_number_stands_twice(committed: list[Published]) -> None:
    assert len({(row.pair, row.arm, row.source) for row in committed}) == len(committed)
