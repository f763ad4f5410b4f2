"""Streams of the terminal: data on stdout, all else on stderr, colour only where a person looks.

Whatever is printed passes here: secrets are masked, and characters that a terminal would obey are shown.
"""

from __future__ import annotations

import json as json_module
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdlab.errors import UsageError
from kdlab.redaction import masked

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

SCHEMA = 1
UNLIMITED = 10_000
"""Columns of a stream that is no terminal: a file or a program gets every column of a table."""


class Screen:
    """Output of a verb.

    Args:
        argv: what the person typed after `kdlab`.
        json: stdout takes JSON, and stderr errors only.
        quiet: stderr takes errors only.
        verbose: whether to say more.
    """

    def __init__(
        self, argv: Sequence[str] = (), *, json: bool = False, quiet: bool = False, verbose: bool = False
    ) -> None:
        self.argv, self.json, self.verbose = tuple(argv), json, verbose
        self.silent = json or quiet

    @cached_property
    def out(self) -> Console:
        """Stdout."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """Stderr."""
        return _console(stderr=True)

    @property
    def live(self) -> bool:
        """True where stderr is a terminal that a person looks at and that can move its cursor."""
        plain = self.err.no_color or self.err.is_dumb_terminal or self.silent
        return self.err.is_terminal and sys.stderr.isatty() and not plain

    def data(self, renderable: RenderableType) -> None:
        """Show data, the answer of the verb, on stdout."""
        _put(self.out, renderable)

    def text(self, text: str) -> None:
        """Write data to stdout as it is: a file in the making."""
        from kdlab.cli.screen.terminal import visible

        sys.stdout.write(visible(masked(text)))
        sys.stdout.flush()

    def emit(self, **value: Any) -> None:
        """One JSON object on a line of stdout, for a program to read."""
        print(json_module.dumps({"schema": SCHEMA, **masked(value)}), flush=True)

    def say(self, renderable: RenderableType) -> None:
        """Tell the person something on stderr."""
        if not self.silent:
            _put(self.err, renderable)

    def next(self, command: str) -> None:
        """The last line of a success: what to type now."""
        self.say(f"next: {command}")

    def command(self, *without: str) -> str:
        """The command line without some flags, ready to be typed again but for the secrets in it.

        One that takes a value goes with that value's beginning: "--set seeds=", "--seeds ".
        """
        values = dict(one.split(" ", 1) for one in without if " " in one)
        kept, words = ["kdlab"], iter(self.argv)
        for word in words:
            name, equals, value = word.partition("=")
            if name in values:
                given = [word] if equals else [word, next(words, "")]
                kept += [] if (value or given[-1]).startswith(values[name]) else given
            elif word not in without:
                kept.append(word)
        return shlex.join(map(masked, kept))

    def next_plan(self, recipe: str, overrides: Sequence[str]) -> None:
        """`next`: to plan a recipe as it was typed, but for the secrets in it."""
        words = [recipe, *(word for one in overrides for word in ("--set", one))]
        self.next(f"kdlab plan {shlex.join(map(masked, words))}")

    def ask(self, why: str) -> bool:
        """Ask the person at the terminal whether to go on, and say why one might not.

        Raises:
            UsageError: nobody can be asked here.
        """
        if self.json or not (sys.stdin.isatty() and self.err.is_terminal):
            raise UsageError(f"{why}, and nobody can be asked here", fix=f"{self.command()} -y")
        self.err.print(f"{why}. Go on? [y/N] ", end="")
        return input().strip().lower() in ("y", "yes")

    @contextmanager
    def working(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show that something takes its time; call what is given to say what it is at."""
        if not self.live:
            yield self.say
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=self.err, transient=True) as progress:
            task = progress.add_task(text)
            yield lambda text: progress.update(task, description=text)


def _console(*, stderr: bool) -> Console:
    from kdlab.cli.screen.terminal import Terminal

    console = Terminal(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNLIMITED
    return console


def _put(console: Console, renderable: RenderableType) -> None:
    """Print; text is never wrapped, and off a terminal no line ends in blanks."""
    if isinstance(renderable, str):
        # the word belongs to `show_error`: no name with a newline in it forges one
        renderable = re.sub("^error:", " error:", masked(renderable), flags=re.MULTILINE)
    if console.is_terminal:
        console.print(renderable, soft_wrap=isinstance(renderable, str))
        return
    with console.capture() as text:
        console.print(renderable, soft_wrap=isinstance(renderable, str))
    console.file.write("".join(f"{line.rstrip()}\n" for line in text.get().splitlines()))
    console.file.flush()


def grid(
    rows: Sequence[Sequence[str | Text]], *, wrap: Collection[int] = (), right: Collection[int] = ()
) -> Table:
    """Rows in columns without rules.

    Args:
        rows: cells from left to right.
        wrap: numbers of the columns that continue below where the width ends; others lose their end.
        right: numbers of those that are flush right.
    """
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for number in range(max(map(len, rows), default=0)):
        wraps = number in wrap
        table.add_column(
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
            justify="right" if number in right else "left",
        )
    for row in rows:
        table.add_row(*row)
    return table


def show_error(text: str) -> None:
    """Print an error in the form of `kdlab.errors` to stderr."""
    console = _console(stderr=True)
    # not splitlines(), which finds ends of lines where a terminal does not
    for line in masked(text).split("\n"):
        console.print(styled(line), soft_wrap=True)


def styled(line: str) -> Text:
    """A line of an error, its first word marked: "error:" in red, the name of a field dim."""
    from rich.text import Text

    text = Text(line)
    if line.startswith("error:"):
        text.stylize("bold red", 0, len("error:"))
    elif line.startswith("  "):
        text.stylize("dim", 0, len(line) - len(line.lstrip().partition(" ")[2]))
    return text


def duration(seconds: float) -> str:
    """ "38s", "4m12s", "5h10m", "3d04h"."""
    whole = round(seconds)
    for size, part, units in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= size:
            return f"{whole // size}{units[0]}{whole % size // part:02d}{units[1]}"
    return f"{whole}s"
