"""Table -> Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from kdlab.reporting.tables import Mark, Table

_MARKS: dict[Mark, str] = {"": "{}", "bold": "**{}**", "underline": "<u>{}</u>", "dim": "{}"}


def to_markdown(table: Table) -> str:
    """A table that GitHub, GitLab and most editors show; footnotes as a list below."""
    lines = [
        f"**{_escaped(table.title)}**",
        "",
        _line([_escaped(column.title) for column in table.columns]),
        _line([":--" if column.digits is None else "--:" for column in table.columns]),
        *(_line([_MARKS[cell.mark].format(_escaped(cell.text)) for cell in row]) for row in table.rows),
        "",
        *(f"- {_escaped(note)}" for note in table.footnotes),
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """`text` without what Markdown would take for a mark of its own."""
    for character in "\\`*_<|[":
        text = text.replace(character, f"\\{character}")
    return text


def _line(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"
