from __future__ import annotations

from kdlab.reporting.renderers import to_explain
from kdlab.reporting.tables import Cell, Column, Table

COLUMNS = (
    Column("arm", "arm", digits=None),
    Column("AP", "AP"),
    Column("best_AP", "best AP", reading="best AP: chosen on the evaluation set, enters no test"),
)


def told(*row, title="t", footnotes=()):
    return to_explain(Table(title, COLUMNS, (row,), footnotes)).splitlines()


def test_cell_says_how_it_was_made_under_its_number():
    lines = told(Cell("rm"), Cell("30.0", 30.0, how="mean of 29.0, 31.0"), Cell())
    assert lines[2:5] == ["rm", "  AP       30.0", "           mean of 29.0, 31.0"]


def test_cell_that_does_not_say_falls_back_to_the_reading_of_its_column():
    lines = told(Cell("rm"), Cell("30.0", 30.0), Cell("31.0", 31.0))
    assert [line.strip() for line in lines[3:6]] == [
        "AP       30.0",
        "best AP  31.0",
        "chosen on the evaluation set, enters no test",
    ]


def test_empty_cell_is_left_out():
    assert not any(line.strip().startswith("best") for line in told(Cell("rm"), Cell("30.0"), Cell()))


def test_nothing_is_wider_than_a_terminal():
    long = "word " * 60
    lines = told(Cell(long), Cell("30.0", how=long), Cell(long), title=long, footnotes=[long])
    assert max(map(len, lines)) <= 80
