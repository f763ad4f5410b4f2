"""Table -> an account of how each of its numbers was made."""

from __future__ import annotations

import textwrap

from kdlab.reporting.tables import Table

_WIDTH = 80


def to_explain(table: Table) -> str:
    """A paragraph a row and a line a cell, what it says and how that came about; then the footnotes."""
    wide = max((len(column.title) for column in table.columns[1:]), default=0)
    indent = " " * (wide + 4)
    lines = [*textwrap.wrap(table.title, _WIDTH)]
    for name, *row in table.rows:
        lines += ["", *textwrap.wrap(name.text, _WIDTH)]
        for column, cell in zip(table.columns[1:], row, strict=True):
            how = cell.how or column.reading.partition(": ")[2]
            if cell.text:
                lines += _wrapped(cell.text, f"  {column.title:<{wide}}  ", indent)
                lines += _wrapped(how, indent, indent)
    lines += ["", *(line for note in table.footnotes for line in _wrapped(note, "- ", "  "))]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    """Lines of a text, none of an empty one."""
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
