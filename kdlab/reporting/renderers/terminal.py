"""Table -> terminal: what fits the width at hand."""

from __future__ import annotations

from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from kdlab.reporting.tables import Table

_DROPPED_FIRST = (
    *("score_r", "score_gap", "box_iou", "both_find"),
    *("other_images", "best_AP", "method_x", "APm", "APs", "APl", "VOC12", "VOC07", "step_x", "AP75", "AP50"),
    *("top-1_iou", "top-1_both", "tau_iou", "tau_both"),
    *("params_m", "latency_ms", "n", "gap_closed", "p_holm", "interval", "p", "dAP"),
)
_GAP = 2


def to_terminal(table: Table) -> RenderableType:
    """What rich prints in the width at hand; the least important columns are left out, by name, to fit."""
    return _Fitted(table)


class _Fitted:
    """A table that takes the width of the console it is printed on."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        hidden = _too_wide(self._table, options.max_width)
        # commas part the names here
        left_out = [column.title.replace(", ", " ") for column in self._table.columns if column.key in hidden]
        table = self._table.only([one.key for one in self._table.columns if one.key not in hidden])
        grid = RichTable(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
        for column in table.columns:
            side: Literal["left", "right"] = "left" if column.digits is None else "right"
            grid.add_column(Text("\n".join(column.lines)), justify=side, overflow="fold")
        for row in table.rows:
            grid.add_row(*(Text(cell.text, style=cell.mark) for cell in row))
        notes = [f"not shown in this width: {', '.join(left_out)}"] if left_out else []
        yield Text(table.title)
        yield grid
        yield from (Text(note, style="dim") for note in (*notes, *table.footnotes))


def _too_wide(table: Table, width: int) -> set[str]:
    """Keys of the columns to leave out so that the others fit into `width` characters."""
    wide = {
        column.key: max(len(text) for text in (*column.lines, *(row[index].text for row in table.rows)))
        for index, column in enumerate(table.columns)
    }
    hidden: set[str] = set()
    keys = [column.key for column in table.columns]
    for key in (*_DROPPED_FIRST, *reversed(keys[1:])):
        if key == "AP":
            continue
        kept = [size for name, size in wide.items() if name not in hidden]
        if sum(kept) + _GAP * (len(kept) - 1) <= width:
            break
        hidden.add(key)
    return hidden & set(wide)
