"""A cell's text in two parts, so that numbers stand under numbers whatever follows them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kdlab.reporting.tables import Column

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def split(column: Column, text: str) -> tuple[str, str]:
    """A number and what follows it (" ± 0.1", " %", " of 3"); a text without a number is whole."""
    found = None if column.digits is None else _NUMBER.match(text)
    return (text, "") if found is None else (found[0], text[found.end() :])


def widest_tail(column: Column, texts: Iterable[str]) -> str:
    """The longest of what follows a number in a column, "" where nothing does."""
    return max((split(column, text)[1] for text in texts), key=len, default="")
