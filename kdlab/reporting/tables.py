"""A table as plain data: cells with their numbers, columns with what they mean, and footnotes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

from kdlab.errors import UsageError, suggestion, visible
from kdlab.reporting.statistics import Interval

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
"""Of a table as plain data."""

_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")

Mark = Literal["", "bold", "underline", "dim"]


def printable(text: str) -> str:
    """A text on one line; what a terminal would obey, or LaTeX or UTF-8 cannot hold, is written out."""
    return visible(_BREAKS.sub(" ", text))


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Args:
        text: as people read it; "-" where a number is missing, "" where there can be none.
        value: the number in `text`, not rounded; None in a cell of words.
        deviation: sample standard deviation over seeds, where `text` shows one.
        low: lower end of the 95 % interval, where `text` shows one.
        high: its upper end.
        mark: how it stands out.
        how: how the number was made, for `--format explain`; "" where the column says it all.
    """

    text: str = ""
    value: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    mark: Mark = ""
    how: str = ""


NONE = Cell("-", mark="dim")


@dataclass(frozen=True)
class Column:
    """What the cells of a column have in common.

    Args:
        key: the column's name in CSV and JSON.
        title: its heading for people.
        digits: decimals shown; None for a column of words.
        significant: whether `digits` counts from the first that is not 0, for numbers of any size.
        signed: whether a gain shows its plus.
        unit: what follows the number.
        reading: how to read it, a footnote of the tables that show it; "" where the title says it all.
        usual: False for one that is shown on demand only.
    """

    key: str
    title: str
    digits: int | None = 1
    significant: bool = False
    signed: bool = False
    unit: str = ""
    reading: str = ""
    usual: bool = True

    @property
    def lines(self) -> list[str]:
        """The title as a heading: a long one breaks at its comma."""
        return self.title.replace(", ", ",\n").splitlines()

    def plain(self, number: float) -> str:
        """`number` with the digits of this column and nothing else; never "-0.0"."""
        if self.significant and self.digits is not None:
            # never with an exponent: "0.0123", "1230"
            return f"{Decimal(f'{number:.{self.digits}g}') + 0:f}"
        return f"{round(number, self.digits) + 0.0:.{self.digits}f}"

    def shown(self, number: float) -> str:
        """`number` as people read it: with its plus where the column has gains."""
        text = self.plain(number)
        return f"+{text}" if self.signed and not text.startswith("-") else text

    def cell(
        self, value: float, deviation: float | None = None, interval: Interval | None = None, how: str = ""
    ) -> Cell:
        """The cell that shows a number and, if given, its deviation or its interval."""
        spread = "" if deviation is None else f" ± {self.plain(deviation)}"
        ends = "" if interval is None else f" {self._ends(interval)}"
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        return Cell(f"{self.shown(value)}{self.unit}{spread}{ends}", value, deviation, low, high, how=how)

    def over(self, values: Collection[float], how: str = "") -> Cell:
        """The mean, with its sample deviation where there are several; "-" where there is none."""
        if not values:
            return NONE
        return self.cell(fmean(values), stdev(values) if len(values) > 1 else None, how=how)

    def span(self, interval: Interval, how: str = "") -> Cell:
        """The cell that shows an interval alone."""
        return Cell(self._ends(interval), low=interval.low, high=interval.high, how=how)

    def split(self, text: str) -> tuple[str, str]:
        """A number and what follows it (" ± 0.1", " %", " of 3"); a text without a number is whole."""
        found = None if self.digits is None else _NUMBER.match(text)
        return (text, "") if found is None else (found[0], text[found.end() :])

    def tail(self, texts: Iterable[str]) -> str:
        """The longest of what follows the numbers of a column, "" where nothing does."""
        return max((self.split(text)[1] for text in texts), key=len, default="")

    def _ends(self, interval: Interval) -> str:
        return f"[{self.shown(interval.low)}, {self.shown(interval.high)}]"


def _cleaned(cell: Cell) -> Cell:
    return cell if cell.text.isprintable() else replace(cell, text=printable(cell.text))


@dataclass(frozen=True)
class Table:
    """A comparison as plain data; `renderers` turns it into text.

    Args:
        title: what is compared.
        columns: headings, without columns that nobody can fill.
        rows: the teacher, then the arms as in the recipe; a cell a column.
        footnotes: what a reader must know to trust the numbers, a sentence each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footnotes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Keep every text to what all formats can hold: names of classes and of files are of others."""
        clean = {
            "title": printable(self.title),
            "columns": tuple(replace(one, title=printable(one.title)) for one in self.columns),
            "rows": tuple(tuple(map(_cleaned, row)) for row in self.rows),
            "footnotes": tuple(map(printable, self.footnotes)),
        }
        for name, value in clean.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data, the cells of a row by the keys of their columns."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "columns": [
                {"key": column.key, "title": column.title, "reading": column.reading}
                for column in self.columns
            ],
            "rows": [
                {column.key: asdict(cell) for column, cell in zip(self.columns, row, strict=True)}
                for row in self.rows
            ],
            "footnotes": list(self.footnotes),
        }

    def flat(self) -> Iterator[tuple[str, Column, list[str] | list[float | None]]]:
        """Columns whose cells are one word or one number each, for other programs.

        A column of numbers has `<key>_sd` beside it where a cell shows a deviation, `<key>_low` and
        `<key>_high` where one shows an interval; where no cell shows a single number, these alone.
        """
        for place, column in enumerate(self.columns):
            cells = [row[place] for row in self.rows]
            if column.digits is None:
                yield column.key, column, [cell.text for cell in cells]
                continue
            parts = {
                column.key: [cell.value for cell in cells],
                f"{column.key}_sd": [cell.deviation for cell in cells],
                f"{column.key}_low": [cell.low for cell in cells],
                f"{column.key}_high": [cell.high for cell in cells],
            }
            known = [name for name, numbers in parts.items() if any(one is not None for one in numbers)]
            for name in known or [column.key]:
                yield name, column, parts[name]

    def to_frame(self) -> DataFrame:
        """The table for pandas, with the columns of CSV: words as text, numbers as floats and not rounded.

        `attrs` has the title and the footnotes.
        """
        import pandas

        kinds = {name: "str" if column.digits is None else "float64" for name, column, _ in self.flat()}
        frame = pandas.DataFrame({name: values for name, _, values in self.flat()}).astype(kinds)
        frame.attrs = {"title": self.title, "footnotes": list(self.footnotes)}
        return frame

    def sorted_by(self, key: str) -> Table:
        """The rows by one column, the highest first and what has no number last; words by the alphabet.

        Raises:
            UsageError: the table has no such column.
        """
        place = self._place(key)

        def rank(row: tuple[Cell, ...]) -> tuple[bool, float, str]:
            cell = row[place]
            number = cell.value if cell.value is not None else cell.low
            return number is None, -(number or 0.0), cell.text

        return replace(self, rows=tuple(sorted(self.rows, key=rank)))

    def only(self, keys: Sequence[str]) -> Table:
        """The first column and these, in this order.

        Raises:
            UsageError: the table has no such column.
        """
        places = list(dict.fromkeys([0, *(self._place(key) for key in keys)]))
        shown = tuple(self.columns[place] for place in places)
        hidden = {column.reading for column in self.columns} - {column.reading for column in shown}
        return replace(
            self,
            columns=shown,
            rows=tuple(tuple(row[place] for place in places) for row in self.rows),
            footnotes=tuple(note for note in self.footnotes if note not in hidden),
        )

    def usual(self) -> Table:
        """Without the columns that are shown on demand only."""
        return self.only([column.key for column in self.columns if column.usual])

    def _place(self, key: str) -> int:
        keys = [column.key for column in self.columns]
        if key not in keys:
            alike = [known for known in keys if known.lower() == key.lower()]
            fix = f"did you mean {alike[0]}?" if alike else suggestion(key, keys)
            raise UsageError("the table has no such column", got=key, known=", ".join(keys), fix=fix)
        return keys.index(key)
