"""Table -> an account of how each of its numbers was made."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from kdlab.reporting.tables import Cell, Column, Table

_WIDTH = 80


def to_explain(table: Table) -> str:
    """A paragraph a row and a line a cell, what it says and how that came about; then the footnotes."""
    readings = {column.key: _reading(table, column) for column in table.columns}
    lines = [*textwrap.wrap(table.title, _WIDTH)]
    for name, *row in table.rows:
        lines += ["", *textwrap.wrap(name.text, _WIDTH)]
        for column, cell in zip(table.columns[1:], row, strict=True):
            lines += _cell(table, column, cell, cell.how or readings[column.key])
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


def _reading(table: Table, column: Column) -> str:
    """What the footnotes say of a column, "" where none begins with its title."""
    starts = (f"{column.title}: ", "* ") if column.title.endswith("*") else (f"{column.title}: ",)
    notes = (note for note in table.footnotes if note.startswith(starts))
    return next((note.partition(" ")[2] if note[0] == "*" else note.partition(": ")[2] for note in notes), "")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
