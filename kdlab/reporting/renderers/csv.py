"""Table -> CSV: numbers for another program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from kdlab.reporting.tables import Cell, Column, Table


def to_csv(table: Table) -> str:
    """Plain numbers with the decimals of the other formats; what is around one in columns of its own.

    These are `<key>_sd` for a deviation, `<key>_low` and `<key>_high` for the ends of an interval.

    Title and footnotes are leading `#` lines: `pandas.read_csv(path, comment="#")` reads the rest, unless
    names of classes hold a `#`.
    """
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in (table.title, *table.footnotes))
    columns = [fields for column, cells in _by_column(table) for fields in _fields(column, cells)]
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()


def _fields(column: Column, cells: Sequence[Cell]) -> Iterator[list[str]]:
    """One column of a table as those of CSV that have a number in some cell, or as one; the heading first."""
    if column.digits is None:
        yield [column.key, *(cell.text for cell in cells)]
        return
    parts = {
        "": [cell.value for cell in cells],
        "_sd": [cell.deviation for cell in cells],
        "_low": [cell.low for cell in cells],
        "_high": [cell.high for cell in cells],
    }
    known = {suffix for suffix, numbers in parts.items() if any(number is not None for number in numbers)}
    for suffix, numbers in parts.items():
        if suffix in (known or {""}):
            texts = ("" if number is None else column.plain(number) for number in numbers)
            yield [f"{column.key}{suffix}", *texts]


def _by_column(table: Table) -> list[tuple[Column, list[Cell]]]:
    return [(column, [row[index] for row in table.rows]) for index, column in enumerate(table.columns)]
