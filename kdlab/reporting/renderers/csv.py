"""Table -> CSV: numbers for another program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from kdlab.reporting.tables import Cell, Column, Table


def to_csv(table: Table) -> str:
    """Plain numbers with the decimals of the other formats; a deviation in a column of its own, `<key>_sd`.

    Title and footnotes are leading `#` lines: `pandas.read_csv(path, comment="#")` reads the rest.
    """
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in (table.title, *table.footnotes))
    columns = [fields for column, cells in _by_column(table) for fields in _fields(column, cells)]
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()


def _fields(column: Column, cells: Sequence[Cell]) -> Iterator[list[str]]:
    """One column of a table as one of CSV, or two where a cell has a deviation; the heading first."""
    if column.digits is None:
        yield [column.key, *(cell.text for cell in cells)]
        return
    yield [column.key, *("" if cell.value is None else column.plain(cell.value) for cell in cells)]
    spreads = [cell.deviation for cell in cells]
    if any(spread is not None for spread in spreads):
        yield [f"{column.key}_sd", *("" if spread is None else column.plain(spread) for spread in spreads)]


def _by_column(table: Table) -> list[tuple[Column, list[Cell]]]:
    return [(column, [row[index] for row in table.rows]) for index, column in enumerate(table.columns)]
