"""Table -> CSV: numbers for another program."""

from __future__ import annotations

from kdlab.jobs.files import csv_text
from kdlab.reporting.tables import Column, Table


def _plain(column: Column, value: float) -> str:
    # no p is 0
    return f"{value:.1e}" if column.key in ("p", "p_holm") and 0 < value < 10**-3 else column.plain(value)


def to_csv(table: Table) -> str:
    """Plain numbers with the decimals of the other formats, in the columns of `Table.flat`.

    Title and footnotes are leading `#` lines: `pandas.read_csv(path, comment="#")` reads the rest, unless
    names of classes hold a `#`. A name that a spreadsheet would run as a formula has an apostrophe before it.
    """
    columns = []
    for name, column, values in table.flat():
        plain = [_plain(column, value) if isinstance(value, float | int) else value for value in values]
        columns.append([name, *plain])
    return csv_text(zip(*columns, strict=True), (table.title, *table.footnotes))
