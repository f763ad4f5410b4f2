"""Table -> text: the same cells for terminals, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from kdlab.jobs.files import write_text
from kdlab.reporting.tables import Cell, Column, Mark, Table

_DROPPED_FIRST = (
    *("best_AP", "APm", "APs", "APl", "VOC12", "VOC07", "AP75", "AP50"),
    *("step_x", "n", "gap_closed", "dAP"),
)
_GAP = 2


def to_terminal(table: Table) -> RenderableType:
    """What rich prints in the width at hand; the least important columns are left out, by name, to fit."""
    return _Fitted(table)


def to_markdown(table: Table) -> str:
    """A table that GitHub, GitLab and most editors show; footnotes as a list below."""
    lines = [
        f"**{_escaped(table.title)}**",
        "",
        _markdown_row([_escaped(column.title) for column in table.columns]),
        _markdown_row([":--" if column.digits is None else "--:" for column in table.columns]),
        *(
            _markdown_row([_MARKDOWN[cell.mark].format(_escaped(cell.text)) for cell in row])
            for row in table.rows
        ),
        "",
        *(f"- {_escaped(note)}" for note in table.footnotes),
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Plain numbers with the decimals of the other formats; a deviation in a column of its own, `<key>_sd`.

    Title and footnotes are leading `#` lines: `pandas.read_csv(path, comment="#")` reads the rest.
    """
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in (table.title, *table.footnotes))
    columns = [fields for column, cells in _by_column(table) for fields in _csv_columns(column, cells)]
    csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
    return text.getvalue()


def to_json(table: Table) -> str:
    """The table as JSON, numbers not rounded beside the text that people read."""
    return json.dumps(table.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(table: Table, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>.md` and `<stem>.csv` under `folder`, each whole or not at all.

    Args:
        table: what to write.
        folder: where; made if it is not there.
        stem: file name without suffix, may name folders ("coco/retinanet_r101_r50").

    Returns:
        The files.
    """
    files = [folder / f"{stem}.md", folder / f"{stem}.csv"]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, (to_markdown(table), to_csv(table)), strict=True):
        write_text(path, text)
    return files


_MARKDOWN: dict[Mark, str] = {"": "{}", "bold": "**{}**", "underline": "<u>{}</u>", "dim": "{}"}


def _escaped(text: str) -> str:
    """`text` without what Markdown would take for a mark of its own."""
    for character in "\\`*_<|":
        text = text.replace(character, f"\\{character}")
    return text


def _markdown_row(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"


def _csv_columns(column: Column, cells: Sequence[Cell]) -> Iterator[list[str]]:
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


class _Fitted:
    """A table that takes the width of the console it is printed on."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table
        hidden = _too_wide(table, options.max_width)
        grid = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        shown = [index for index, column in enumerate(table.columns) if column.key not in hidden]
        for column in (table.columns[index] for index in shown):
            side: Literal["left", "right"] = "left" if column.digits is None else "right"
            grid.add_column(Text(column.title), justify=side, overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(row[index].text, style=row[index].mark) for index in shown))
        left_out = [column.title for column in table.columns if column.key in hidden]
        notes = [f"not shown in this width: {', '.join(left_out)}"] if left_out else []
        yield Text(table.title)
        yield grid
        yield from (Text(note, style="dim") for note in (*notes, *table.footnotes))


def _too_wide(table: Table, width: int) -> set[str]:
    """Keys of the columns to leave out so that the others fit into `width` characters."""
    wide = {
        column.key: max(len(text) for text in (column.title, *(cell.text for cell in cells)))
        for column, cells in _by_column(table)
    }
    hidden: set[str] = set()
    for key in _DROPPED_FIRST:
        kept = [size for name, size in wide.items() if name not in hidden]
        if sum(kept) + _GAP * (len(kept) - 1) <= width:
            break
        hidden.add(key)
    return hidden & set(wide)
