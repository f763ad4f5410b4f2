from __future__ import annotations

import shutil
import subprocess

import pytest

from kdlab.reporting.renderers import to_latex
from kdlab.reporting.tables import Cell, Column, Table

WORDS, NUMBER = Column("arm", "arm", digits=None), Column("AP", "AP")
NASTY = "[a]* \\end{tabular} $x$ 5 % #1 {_^~<|>`'\" -- --- !` ?` ,, -> ± é Δ 中 😀 - 1"


def table(*rows, title="t", columns=(WORDS, NUMBER), footnotes=()):
    return Table(title, columns, rows, footnotes)


def body(made):
    return to_latex(made).partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()


def compiled(made, folder):
    (folder / "table.tex").write_text(to_latex(made))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_gain_below_zero_has_a_minus_and_a_name_keeps_its_hyphen():
    assert body(table((Cell("cwd-neck"), Cell("-0.4", -0.4)))) == [r"cwd-neck & $-$0.4 \\"]


def test_missing_number_is_a_dash_of_its_own_kind():
    assert body(table((Cell("rm"), Cell("-")))) == [r"rm & -- \\"]


def test_number_without_a_deviation_leaves_the_room_of_one():
    rows = [(Cell("a"), NUMBER.cell(30.0)), (Cell("b"), NUMBER.cell(31.0, 0.2)), (Cell("c"), Cell())]
    assert body(table(*rows)) == [
        r"a & 30.0\hphantom{ $\pm$ 0.2} \\",
        r"b & 31.0 $\pm$ 0.2 \\",
        r"c &  \\",
    ]


def test_many_columns_lie_on_their_side():
    few, many = ((WORDS, *[NUMBER] * count) for count in (8, 9))
    assert "landscape" not in to_latex(table(columns=few))
    assert "landscape" in to_latex(table(columns=many))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
@pytest.mark.parametrize("columns", [1, 16])
def test_page_compiles_alone_and_fits(tmp_path, columns):
    row = (Cell(NASTY), *[NUMBER.cell(1234.5, 0.2)] * columns)
    made = table(*[row] * 22, title=NASTY, columns=(WORDS, *[NUMBER] * columns), footnotes=[NASTY] * 20)
    assert "Overfull" not in compiled(made, tmp_path)
    assert (tmp_path / "table.pdf").exists()
