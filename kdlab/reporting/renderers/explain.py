"""Table -> an account of how each of its numbers was made."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from kdlab.reporting.tables import Cell, Column, Table

_WIDTH = 80


def to_explain(table: Table) -> str:
    """A paragraph a row and a line a cell, what it says and how that came about; then the footnotes."""
    lines = [*textwrap.wrap(table.title, _WIDTH)]
    for name, *row in table.rows:
        lines += ["", *textwrap.wrap(name.text, _WIDTH)]
        for column, cell in zip(table.columns[1:], row, strict=True):
            lines += _cell(table, column, cell, cell.how or column.reading.partition(": ")[2])
    lines += ["", *(line for note in table.footnotes for line in _wrapped(note, "- ", "  "))]
    return "\n".join(lines) + "\n"


def _cell(table: Table, column: Column, cell: Cell, how: str) -> Iterator[str]:
    """The column's title, the text and, under the text, how it was made; nothing for an empty cell."""
    if not cell.text:
        return
    wide = max(len(other.title) for other in table.columns[1:])
    indent = " " * (wide + 4)
    yield from _wrapped(cell.text, f"  {column.title:<{wide}}  ", indent)
    if how:
        yield from _wrapped(how, indent, indent)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
