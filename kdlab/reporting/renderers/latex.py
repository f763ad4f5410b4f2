"""Table -> LaTeX: a document that compiles alone around a tabular to paste."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kdlab.reporting.tables import Cell, Column, Mark, Table

_LANDSCAPE_FROM = 10
"""Columns from which on the page lies on its side."""
_MARKS: dict[Mark, str] = {"": "{}", "bold": r"\textbf{{{}}}", "underline": r"\underline{{{}}}", "dim": "{}"}
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#%_"},
    # after the end of a row these would belong to it
    **{character: f"{{{character}}}" for character in "[]*"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}
_MINUS = re.compile(r"(?<![^\s(\[])-(?=[\s\d.])")
_LAST_OF_LATIN = 0x17F
_TYPESET_ANYWAY = "–—‘’‚“”„†‡•…‰€™"
"""Characters beyond Latin that LaTeX's usual fonts have."""
_DOCUMENT = r"""\documentclass{{article}}
\usepackage[T1]{{fontenc}}
\usepackage[utf8]{{inputenc}}
\usepackage{{textcomp}}
\IfFileExists{{lmodern.sty}}{{\usepackage{{lmodern}}}}{{}}
\usepackage[a4paper, margin=2cm{orientation}]{{geometry}}
% the tabular needs these two
\usepackage{{booktabs}}
\usepackage{{adjustbox}}
{declared}\pagestyle{{empty}}
\setlength{{\parindent}}{{0pt}}
\begin{{document}}
\raggedright
\textbf{{{title}}}

\medskip
% ---- to paste: from here ...
{tabular}
% ---- ... to here

\medskip
{notes}
\end{{document}}
"""


def to_latex(table: Table) -> str:
    """A page with a booktabs tabular that shrinks to the text's width, title above, footnotes below."""
    texts = [table.title, *table.footnotes, *(column.title for column in table.columns)]
    texts += [cell.text for row in table.rows for cell in row]
    # of a character that pdflatex does not know, which then is a question mark and no error
    declared = [
        rf"\ifdefined\DeclareUnicodeCharacter\DeclareUnicodeCharacter{{{ord(character):04X}}}{{?}}\fi"
        for character in sorted({*"".join(texts)} - {*_ESCAPES, *_TYPESET_ANYWAY})
        if ord(character) > _LAST_OF_LATIN
    ]
    notes = "\n".join(rf"{{\footnotesize {_escaped(note)}\par}}" for note in table.footnotes)
    tabular = "\n".join(_tabular(table))
    return _DOCUMENT.format(
        orientation=", landscape" if len(table.columns) >= _LANDSCAPE_FROM else "",
        declared="".join(f"{line}\n" for line in declared),
        title=_escaped(table.title),
        tabular=tabular,
        notes=notes,
    )


def _tabular(table: Table) -> Iterator[str]:
    yield r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.85\textheight}"
    sides = "".join("l" if column.digits is None else "r" for column in table.columns)
    yield rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}"
    yield r"\toprule"
    headings = []
    for column in table.columns:
        stacked = r" \\ ".join(map(_escaped, column.lines))
        headings.append(stacked if len(column.lines) == 1 else rf"\shortstack[r]{{{stacked}}}")
    yield _line(headings)
    yield r"\midrule"
    texts = enumerate(table.columns)
    tails = [column.tail(row[place].text for row in table.rows) for place, column in texts]
    for row in table.rows:
        yield _line([_cell(*parts) for parts in zip(table.columns, row, tails, strict=True)])
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}")


def _line(fields: list[str]) -> str:
    return rf"{' & '.join(fields)} \\"


def _cell(column: Column, cell: Cell, widest: str) -> str:
    """A cell, followed by the room that what follows the numbers of its column takes."""
    if cell.text == "-":
        shown, tail = "--", ""
    else:
        shown, tail = _escaped(cell.text), column.split(cell.text)[1]
    room = rf"\hphantom{{{_escaped(widest)}}}" if widest and not tail and cell.text else ""
    return _MARKS[cell.mark].format(shown) + room


def _escaped(text: str) -> str:
    """`text` for LaTeX, with minus signs and arrows where they are meant and no ligature of hyphens."""
    text = _MINUS.sub("−", re.sub(r"\s+", " ", text)).replace("->", "→")
    return re.sub("-(?=-)", "-{}", "".join(_ESCAPES.get(character, character) for character in text))
