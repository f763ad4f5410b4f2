"""Table -> CSV: numbers for another program."""

from __future__ import annotations

import csv
import io

from kdlab.reporting.tables import Table


def to_csv(table: Table) -> str:
    """Plain numbers with the decimals of the other formats, in the columns of `Table.flat`.

    Title and footnotes are leading `#` lines: `pandas.read_csv(path, comment="#")` reads the rest, unless
    names of classes hold a `#`.
    """
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in (table.title, *table.footnotes))
    columns = []
    for name, column, values in table.flat():
        plain = [column.plain(value) if isinstance(value, float | int) else value for value in values]
        columns.append([name, *plain])
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()
