"""Table -> text: the same cells in every format, one file a format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdlab.jobs.files import write_text
from kdlab.reporting.renderers.csv import to_csv
from kdlab.reporting.renderers.explain import to_explain
from kdlab.reporting.renderers.html import to_html
from kdlab.reporting.renderers.json import to_json
from kdlab.reporting.renderers.latex import to_latex
from kdlab.reporting.renderers.markdown import to_markdown
from kdlab.reporting.renderers.terminal import to_terminal
from kdlab.reporting.tables import Table

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "to_csv",
    "to_explain",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_terminal",
    "write",
]

FORMATS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "latex": to_latex,
    "html": to_html,
    "csv": to_csv,
    "json": to_json,
    "explain": to_explain,
}
"""All formats that are text, by the name that people type; `to_terminal` alone needs a console's width."""
SUFFIXES = {**{name: name for name in FORMATS}, "latex": "tex", "explain": "txt"}


def write(table: Table, folder: Path, stem: str, formats: Sequence[str] = ("md", "csv")) -> list[Path]:
    """Write `<stem>.<suffix>` under `folder` for each format of `FORMATS`, each whole or not at all.

    The stem may name folders ("coco/retinanet_r101_r50"), which are made. Returns the files.
    """
    files = [folder / f"{stem}.{SUFFIXES[name]}" for name in formats]
    for path, name in zip(files, formats, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, FORMATS[name](table))
    return files
