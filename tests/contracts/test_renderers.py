"""Every renderer of a table shows the same cells."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pandas
import pytest
from rich.console import Console

from kdlab.reporting.renderers import to_csv, to_json, to_markdown, to_terminal, write
from kdlab.reporting.tables import COLUMNS, Cell, Table

BY_KEY = {column.key: column for column in COLUMNS}
KEYS = ("arm", "AP", "dAP", "AP50", "APs", "gap_closed", "n", "step_x", "best_AP")


def row(arm, ap, deviation, gain, mark=""):
    numbers = {"AP50": 56.66, "APs": 20.04, "gap_closed": 146.7, "n": 3, "step_x": 1.333}
    cells = {key: BY_KEY[key].cell(number) for key, number in numbers.items()}
    cells["arm"] = Cell(arm)
    cells["AP"] = replace(BY_KEY["AP"].cell(ap, deviation), mark=mark)
    cells["dAP"] = Cell("-") if gain is None else BY_KEY["dAP"].cell(gain)
    cells["best_AP"] = BY_KEY["best_AP"].cell(ap + 1, deviation)
    return tuple(cells[key] for key in KEYS)


TABLE = Table(
    title="RetinaNet [R101] -> R50, n=3",
    columns=tuple(BY_KEY[key] for key in KEYS),
    rows=(
        row("baseline", 37.449, 0.1, None),
        row("rm|pfi *_x", 39.55, 0.25, 2.1, mark="bold"),
        row("[red]a, b[/red]", 38.0, None, -0.04, mark="underline"),
        row("cwd", 31.0, 1.26, -6.449, mark="dim"),
    ),
    footnotes=("mean ± deviation, seeds 0 1 2", "* chosen | on the evaluation set"),
)
TEXTS = [[cell.text for cell in row] for row in TABLE.rows]


def printed(table, width, color=False):
    console = Console(
        width=width, file=io.StringIO(), force_terminal=color, color_system="standard" if color else None
    )
    console.print(to_terminal(table))
    return console.file.getvalue()


def cells_of_terminal(table):
    lines = printed(table, 200).splitlines()[2 : 2 + len(table.rows)]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def cells_of_markdown(table):
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("| ")][2:]
    rows = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
    plain = [[re.sub(r"^(\*\*|<u>)(.*)(\*\*|</u>)$", r"\2", cell) for cell in row] for row in rows]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in plain]


def cells_of_json(table):
    data = json.loads(to_json(table))
    return [[row[column["key"]]["text"] for column in data["columns"]] for row in data["rows"]]


@pytest.mark.parametrize("cells_of", [cells_of_terminal, cells_of_markdown, cells_of_json])
def test_renderer_shows_the_cells_of_the_table(cells_of):
    assert cells_of(TABLE) == TEXTS


def test_csv_holds_the_numbers_of_the_cells_with_the_decimals_of_the_cells():
    frame = pandas.read_csv(io.StringIO(to_csv(TABLE)), comment="#", dtype=str, keep_default_na=False)
    for key, column in zip(KEYS, zip(*TEXTS, strict=True), strict=True):
        spreads = frame.get(f"{key}_sd", [""] * len(frame))
        shown = [
            value + (f" ± {spread}" if spread else "")
            for value, spread in zip(frame[key], spreads, strict=True)
        ]
        assert shown == [re.sub(r"^\+| %$|^-$", "", text) for text in column]


def test_csv_columns_are_numbers_for_pandas():
    frame = pandas.read_csv(io.StringIO(to_csv(TABLE)), comment="#")
    assert frame["dAP"].tolist()[1:] == [2.1, 0.0, -6.4]
    assert frame.drop(columns="arm").dtypes.map(lambda kind: kind.kind).isin(["i", "f"]).all()


@pytest.mark.parametrize("render", [lambda table: printed(table, 200), to_markdown, to_csv, to_json])
def test_renderer_keeps_title_and_footnotes(render):
    text = render(TABLE).replace("\\", "")
    assert all(line in text for line in (TABLE.title, *TABLE.footnotes))


def test_marks_stand_out_where_the_format_can_show_them():
    terminal, markdown = printed(TABLE, 200, color=True), to_markdown(TABLE)
    assert ("\x1b[1m" in terminal, "\x1b[4m" in terminal, "\x1b[2m" in terminal) == (True, True, True)
    assert ("**39.5 ± 0.2**" in markdown, "<u>38.0</u>" in markdown) == (True, True)


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_terminal_leaves_out_whole_columns_rather_than_break_a_cell(width):
    lines = printed(TABLE, width).splitlines()
    assert max(map(len, lines)) <= width
    headings = re.split(r" {2,}", lines[1].strip())
    shown = [index for index, column in enumerate(TABLE.columns) if column.title in headings]
    rows = [re.split(r" {2,}", line.strip()) for line in lines[2 : 2 + len(TABLE.rows)]]
    assert rows == [[row[index] for index in shown] for row in TEXTS]


def test_columns_left_out_are_named_and_the_least_important_goes_first():
    text = printed(TABLE, 80)
    assert "not shown in this width: best epoch*" in text
    assert "gap closed" in text
    assert "not shown" not in printed(TABLE, 200)


@pytest.mark.parametrize("render", [lambda table: printed(table, 80), to_markdown, to_csv, to_json])
def test_table_without_rows_still_has_its_headings(render):
    assert "step" in render(replace(TABLE, rows=()))


def test_written_files_are_markdown_and_csv_and_replace_older_ones(tmp_path):
    write(TABLE, tmp_path, "coco/retinanet")
    files = write(replace(TABLE, title="again"), tmp_path, "coco/retinanet")
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "coco/retinanet.md",
        "coco/retinanet.csv",
    ]
    assert [path.read_text() for path in files] == [
        to_markdown(replace(TABLE, title="again")),
        to_csv(replace(TABLE, title="again")),
    ]
    assert sorted(path.name for path in (tmp_path / "coco").iterdir()) == ["retinanet.csv", "retinanet.md"]
