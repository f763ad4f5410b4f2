"""Tables can be sorted and cut without a cell changing."""

from __future__ import annotations

import pytest

from kdlab.errors import UsageError
from kdlab.reporting.statistics import Interval
from kdlab.reporting.tables import Cell, Column, Table

ARM, AP = Column("arm", "arm", digits=None), Column("AP", "AP", reading="AP: as COCO has it")
GAIN, RARE = Column("dAP", "dAP", signed=True), Column("rare", "rare", usual=False)


def shown() -> Table:
    rows = [
        (Cell("b"), AP.cell(20.0), Cell(), RARE.cell(1.0)),
        (Cell("a"), AP.cell(31.5, 0.2), GAIN.cell(11.5), RARE.cell(2.0)),
        (Cell("c"), Cell("-"), GAIN.cell(-3.0), RARE.cell(3.0)),
    ]
    return Table("t", (ARM, AP, GAIN, RARE), tuple(rows), ("AP: as COCO has it", "plan 1"))


def names(table: Table) -> list[str]:
    return [row[0].text for row in table.rows]


def test_the_highest_comes_first_and_what_has_no_number_last() -> None:
    assert names(shown().sorted_by("AP")) == ["a", "b", "c"]
    assert names(shown().sorted_by("dAP")) == ["a", "c", "b"]


def test_words_go_by_the_alphabet() -> None:
    assert names(shown().sorted_by("arm")) == ["a", "b", "c"]


def test_columns_are_chosen_in_the_order_asked_for_after_the_first() -> None:
    cut = shown().only(["dAP", "AP"])
    assert [column.key for column in cut.columns] == ["arm", "dAP", "AP"]
    assert [cell.text for cell in cut.rows[1]] == ["a", "+11.5", "31.5 ± 0.2"]


def test_the_reading_of_a_column_goes_with_it() -> None:
    assert shown().only(["AP"]).footnotes == ("AP: as COCO has it", "plan 1")
    assert shown().only(["dAP"]).footnotes == ("plan 1",)


def test_columns_on_demand_are_not_the_usual_ones() -> None:
    assert [column.key for column in shown().usual().columns] == ["arm", "AP", "dAP"]


@pytest.mark.parametrize("choose", [lambda table: table.sorted_by("ap"), lambda table: table.only(["ap"])])
def test_an_unknown_column_is_told_with_the_known_ones(choose) -> None:
    with pytest.raises(UsageError, match="no such column") as error:
        choose(shown())
    assert "arm, AP, dAP, rare" in str(error.value)


def test_an_interval_is_shown_with_the_signs_of_its_column() -> None:
    cell = GAIN.span(Interval(-0.04, 1.26))
    assert (cell.text, cell.value, cell.low, cell.high) == ("[+0.0, +1.3]", None, -0.04, 1.26)
    assert Column("gap", "gap", digits=0, unit=" %").cell(66.4, interval=Interval(60.2, 72.0)).text == (
        "66 % [60, 72]"
    )
