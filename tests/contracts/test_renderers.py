"""Every renderer of a table shows the same cells."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace

import pandas
import pytest
from rich.console import Console

from kdlab.reporting.columns import COLUMNS
from kdlab.reporting.renderers import (
    FORMATS,
    to_csv,
    to_html,
    to_json,
    to_latex,
    to_markdown,
    to_terminal,
    write,
)
from kdlab.reporting.statistics import Interval
from kdlab.reporting.tables import Cell, Column, Table

BY_KEY = {column.key: column for column, _ in COLUMNS}
KEYS = ("arm", "AP", "dAP", "interval", "AP50", "APs", "gap_closed", "n", "step_x", "best_AP")


def row(arm, ap, deviation, gain, mark=""):
    numbers = {"AP50": 56.66, "APs": 20.04, "gap_closed": 146.7, "n": 3, "step_x": 1.333}
    cells = {key: BY_KEY[key].cell(number) for key, number in numbers.items()}
    cells["arm"] = Cell(arm)
    cells["AP"] = replace(BY_KEY["AP"].cell(ap, deviation), mark=mark)
    cells["dAP"] = Cell("-") if gain is None else BY_KEY["dAP"].cell(gain)
    around = None if gain is None else Interval(gain - 0.44, gain + 0.5)
    cells["interval"] = Cell("-") if around is None else BY_KEY["interval"].span(around)
    cells["gap_closed"] = BY_KEY["gap_closed"].cell(146.7, interval=around)
    cells["best_AP"] = BY_KEY["best_AP"].cell(ap + 1, deviation)
    return tuple(cells[key] for key in KEYS)


TABLE = Table(
    title="RetinaNet [R101] -> R50, n=3",
    columns=tuple(BY_KEY[key] for key in KEYS),
    rows=(
        row("baseline", 37.449, 0.1, None),
        row("rm|pfi *_x", 39.55, 0.25, 2.1, mark="bold"),
        row(r"<b>&amp; 5 % \of{$1}~^`'", 30.0, 0.25, 0.0),
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


def cells_of_latex(table):
    body = to_latex(table).partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    rows = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines()]
    return [[plain_of_latex(cell) for cell in row] for row in rows]


def plain_of_latex(cell):
    cell = re.sub(r"\\hphantom\{.*\}$", "", cell)
    cell = re.sub(r"^\\(?:textbf|underline)\{(.*)\}$", r"\1", cell).replace("--", "-")
    words = {"$-$": "-", r"$\pm$": "±", r"\textbackslash{}": "\0", r"\textasciitilde{}": "~"}
    words |= {r"\textasciicircum{}": "^", r"\textasciigrave{}": "`", r"\textquotesingle{}": "'"}
    words |= {r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|"}
    for latex, plain in words.items():
        cell = cell.replace(latex, plain)
    return re.sub(r"\{([\[\]*])\}", r"\1", re.sub(r"\\([{}$&#%_])", r"\1", cell)).replace("\0", "\\")


def cells_of_html(table):
    body = re.search(r"<tbody>(.*?)</tbody>", to_html(table), re.DOTALL)[1]
    rows = [re.findall(r"<t[hd] .*?>(.*)</t[hd]>", row) for row in body.split("</tr>")[:-1]]
    return [[html.unescape(re.sub(r"<.*?>", "", cell)) for cell in row] for row in rows]


def cells_of_explain(table):
    _, *paragraphs, _ = FORMATS["explain"](table).split("\n\n")
    titles = [column.title for column in table.columns[1:]]
    rows = []
    for name, *lines in map(str.splitlines, paragraphs):
        told = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in lines if line[2] != " ")
        rows.append([name, *(told.get(title, "") for title in titles)])
    return rows


CELLS_OF = {
    "terminal": cells_of_terminal,
    "md": cells_of_markdown,
    "json": cells_of_json,
    "latex": cells_of_latex,
    "html": cells_of_html,
    "explain": cells_of_explain,
}


@pytest.mark.parametrize("name", CELLS_OF)
def test_renderer_shows_the_cells_of_the_table(name):
    assert CELLS_OF[name](TABLE) == TEXTS


def test_every_format_is_under_the_contract():
    assert {*CELLS_OF, "csv"} == {*FORMATS, "terminal"}


@pytest.mark.parametrize("name", CELLS_OF)
def test_a_name_that_a_terminal_would_obey_is_shown_on_one_line(name):
    nasty = replace(TABLE, rows=(row("a\nb\x1b[31m \udc80", 1.0, None, None),), footnotes=("c\r\n=d\x00",))
    assert CELLS_OF[name](nasty)[0][0] == r"a b\x1b[31m \udc80"
    shown = printed(nasty, 200) if name == "terminal" else FORMATS[name](nasty)
    shown.encode()
    assert "\n=d" not in shown and not {"\x1b", "\x00", "\r"} & {*shown}


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "＝1"])
def test_csv_holds_no_formula(text):
    words = (Column("class", "class", digits=None), Column(text, text, digits=None), Column("AP", "AP"))
    made = to_csv(Table(text, words, ((Cell(text), Cell("-3.5"), Cell("-0.5", -0.5)),), (f"a\n{text}",)))
    cells = [cell for line in csv.reader(io.StringIO(made)) for cell in line]
    assert not [cell for cell in cells if cell[0] in "=+@＝\t" or cell == text]
    assert cells[-2:] == ["-3.5", "-0.5"], "numbers are numbers"


def test_csv_holds_the_numbers_of_the_cells_with_the_decimals_of_the_cells():
    frame = pandas.read_csv(io.StringIO(to_csv(TABLE)), comment="#", dtype=str, keep_default_na=False)
    for key, column in zip(KEYS, zip(*TEXTS, strict=True), strict=True):
        empty = [""] * len(frame)
        parts = (frame.get(f"{key}{suffix}", empty) for suffix in ("", "_sd", "_low", "_high"))
        shown = [
            value + (f" ± {spread}" if spread else "") + (f" [{low}, {high}]" if low else "")
            for value, spread, low, high in zip(*parts, strict=True)
        ]
        assert [text.strip() for text in shown] == [
            re.sub(r"\+|(?<=\d) %(?= \[|$)|^-$", "", text) for text in column
        ]


def test_a_frame_has_the_columns_of_csv_and_its_numbers_before_rounding():
    frame, csv = TABLE.to_frame(), pandas.read_csv(io.StringIO(to_csv(TABLE)), comment="#")
    assert list(frame.columns) == list(csv.columns)
    assert frame["arm"].tolist() == csv["arm"].tolist()
    numbers = frame.drop(columns="arm")
    assert numbers.dtypes.eq("float64").all()
    for name in numbers:
        half = 0.501 * 10.0 ** -BY_KEY[re.sub("_(sd|low|high)$", "", name)].digits
        assert frame[name].tolist() == pytest.approx(csv[name].tolist(), abs=half, nan_ok=True)
    assert frame["AP"].tolist() == [37.449, 39.55, 30.0, 38.0, 31.0]
    assert frame.attrs == {"title": TABLE.title, "footnotes": list(TABLE.footnotes)}


def test_a_frame_of_cells_without_numbers_has_numbers_that_are_missing():
    frame = replace(TABLE, rows=(row("cwd", 1.0, None, None),)).to_frame()
    assert frame["dAP"].isna().all()
    assert frame["dAP"].dtype == "float64"


def test_csv_columns_are_numbers_for_pandas():
    frame = pandas.read_csv(io.StringIO(to_csv(TABLE)), comment="#")
    assert frame["dAP"].tolist()[1:] == [2.1, 0.0, 0.0, -6.4]
    assert frame.drop(columns="arm").dtypes.map(lambda kind: kind.kind).isin(["i", "f"]).all()


@pytest.mark.parametrize("name", ["terminal", *FORMATS])
def test_renderer_keeps_title_and_footnotes(name):
    text = printed(TABLE, 200) if name == "terminal" else FORMATS[name](TABLE)
    for written, meant in [("\\", ""), ("$rightarrow$", "->"), ("$pm$", "±"), ("textbar{}", "|")]:
        text = text.replace(written, meant)
    text = re.sub(r"\{([\[\]*])\}", r"\1", html.unescape(text))
    assert [line for line in (TABLE.title, *TABLE.footnotes) if line not in text] == []


def test_marks_stand_out_where_the_format_can_show_them():
    terminal, markdown, latex = printed(TABLE, 200, color=True), to_markdown(TABLE), to_latex(TABLE)
    assert ("\x1b[1m" in terminal, "\x1b[4m" in terminal, "\x1b[2m" in terminal) == (True, True, True)
    assert ("**39.5 ± 0.2**" in markdown, "<u>38.0</u>" in markdown) == (True, True)
    assert (r"\textbf{39.5 $\pm$ 0.2}" in latex, r"\underline{38.0}" in latex) == (True, True)
    assert all(f'class="{mark}"' in to_html(TABLE) for mark in ("bold", "underline", "dim"))


def test_brackets_are_no_link_in_markdown():
    named = replace(TABLE, rows=(row("[rank=loc]", 1.0, None, None),), footnotes=("[rank=loc]: n=1 of 3",))
    text = to_markdown(named)
    assert "| \\[rank=loc] |" in text
    assert "- \\[rank=loc]: n=1 of 3" in text


@pytest.mark.parametrize("name", ["rm[rank=loc,score=logit]+pfi[weight=1.5]", "a.b", "[1,2]"])
def test_csv_keeps_any_name_of_an_arm_whole(name):
    frame = pandas.read_csv(
        io.StringIO(to_csv(replace(TABLE, rows=(row(name, 1.0, None, None),)))), comment="#"
    )
    assert frame["arm"].tolist() == [name]


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
    assert "not shown in this width: AP50, APs, step x, best AP" in text
    assert "gap closed" in text
    assert "not shown" not in printed(TABLE, 200)


def test_of_columns_that_no_list_names_the_last_are_left_out():
    columns = [
        Column("trial", "trial"),
        Column("AP", "AP"),
        *(Column(f"m.o{i}", f"m.o{i}") for i in range(9)),
    ]
    wide = Table("t", tuple(columns), (tuple(column.cell(1.0) for column in columns),))
    assert printed(wide, 30).splitlines()[1].split() == ["trial", "AP", "m.o0", "m.o1", "m.o2"]


def test_significant_digits_are_the_same_in_all_formats():
    weight = Column("weight", "weight", digits=3, significant=True)
    sized = Table("t", (Column("arm", "arm", digits=None), weight), ((Cell("a"), weight.cell(0.0000123456)),))
    assert {cells_of(sized)[0][1] for cells_of in CELLS_OF.values()} == {"0.0000123"}
    assert to_csv(sized).splitlines()[-1] == "a,0.0000123"


@pytest.mark.parametrize("name", ["terminal", *sorted(FORMATS.keys() - {"explain"})])
def test_table_without_rows_still_has_its_headings(name):
    empty = replace(TABLE, rows=())
    assert "step" in (printed(empty, 80) if name == "terminal" else FORMATS[name](empty))


def test_account_of_a_table_without_rows_is_its_title_and_footnotes():
    text = FORMATS["explain"](replace(TABLE, rows=()))
    assert text.splitlines() == [TABLE.title, "", *(f"- {note}" for note in TABLE.footnotes)]


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


def test_files_are_written_in_the_formats_asked_for(tmp_path):
    files = write(TABLE, tmp_path, "retinanet", tuple(FORMATS))
    assert [path.suffix for path in files] == [".md", ".tex", ".html", ".csv", ".json", ".txt"]
    assert [path.read_text() for path in files] == [render(TABLE) for render in FORMATS.values()]
