"""Tables -> one HTML page that needs nothing else, sorts by click and fits a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdlab.reporting.tables import Column, Table


@dataclass(frozen=True)
class Picture:
    """A plot on a page.

    Args:
        svg: the whole SVG file as text.
        title: what it shows; read aloud in its place.
        caption: how to read it; shown on narrow screens, where that part of the picture may be out of sight.
    """

    svg: str
    title: str
    caption: str = ""

    @property
    def address(self) -> str:
        """The picture as a `data:` URL: its scripts do not run, its ids clash with no other picture's."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True)
class Section:
    """A table and its plots."""

    table: Table
    pictures: Sequence[Picture] = ()

    def room(self, column: Column) -> int:
        """Characters that follow the numbers of a column in its widest cell."""
        place = self.table.columns.index(column)
        return len(column.tail(row[place].text for row in self.table.rows))


def to_html(table: Table) -> str:
    """A page with one table."""
    return page([Section(table)])


def page(sections: Sequence[Section]) -> str:
    """A page with tables and, below each, its plots.

    Everything is in the one file: style, script and pictures. Colours follow the reader's choice of light
    or dark; a narrow screen scrolls the table beside its first column.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(sections=sections) + "\n"
