"""kdlab logs: what a job printed, also while it runs."""

from __future__ import annotations

import os
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import JobName
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.jobs.paths import Runs

LINES = 100
_LOOK_EVERY_S, _ASK_EVERY_S = 0.2, 1.0
_BLOCK = 1 << 16
_NEWLINE = ord("\n")


def logs(
    screen: Screen,
    job: JobName,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the job ends, or Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("-n", "--lines", metavar="LINES", min=0, help="How many of the last; 0 for all.")
    ] = LINES,
) -> None:
    """Show what a job printed: all its output, of all its attempts.

    JOB is an id or the beginning of one, or a label of the newest plan.

    \b
    Examples:
      $ kdlab logs teacher -n 0
      2026-03-02 10:01:26 starting on core 0
      ...
      $ kdlab logs 'rm+pfi seed 0' -f -n 0
      2026-03-02 10:04:38 starting on core 1
      ...
    """
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs

    runs = Runs.here()
    plan, (name,) = store.chosen(runs, [job])
    seen, path = PlanStatus.read(plan, runs), runs.job(name).log
    if not path.exists() and (not follow or _ended(seen, name, runs)):
        status = seen.jobs[name]
        what = f"{status.job.label} has printed nothing yet: it is {status.state}"
        raise UsageError(what, where=str(path), fix="kdlab status" if follow else screen.command() + " -f")
    try:
        for text in _texts(path, lines, (lambda: _ended(seen, name, runs)) if follow else None):
            if screen.json:
                screen.emit(job=name, log=str(path), lines=text.splitlines())
            else:
                # a bar that redrew itself is a line for each time
                screen.text(text.replace("\r\n", "\n").replace("\r", "\n"))
    except KeyboardInterrupt:
        return
    screen.next("kdlab status")


def _ended(seen: PlanStatus, name: str, runs: Runs) -> bool:
    """Whether no process will write into the job's log any more, as far as can be told."""
    seen.look(runs)
    status = seen.jobs[name]
    if status.state.startable and seen.driven:
        return runs.job(name).stop_request.exists()
    return not status.at_work


def _texts(path: Path, lines: int, ended: Callable[[], bool] | None) -> Iterator[str]:
    """The end of a log and, with `ended`, what comes until that is true."""
    while ended and not path.exists():
        if ended():
            return
        time.sleep(_ASK_EVERY_S)
    decoder, asked, over = getincrementaldecoder("utf-8")("replace"), 0.0, ended is None
    with path.open("rb") as file:
        file.seek(_begin_of_last(file, lines))
        yield decoder.decode(file.read())
        while not over:
            time.sleep(_LOOK_EVERY_S)
            if ended and time.monotonic() - asked > _ASK_EVERY_S:
                asked, over = time.monotonic(), ended()
            if text := decoder.decode(file.read()):
                yield text


def _begin_of_last(file: BinaryIO, lines: int) -> int:
    """The byte at which the last lines begin; 0 lines are all."""
    at, found = file.seek(0, os.SEEK_END), 0
    end = at
    while lines and at:
        begin = max(0, at - _BLOCK)
        file.seek(begin)
        block = file.read(at - begin)
        for place in range(len(block) - 1, -1, -1):
            # the newline that ends the file begins no further line
            if block[place] == _NEWLINE and begin + place != end - 1 and (found := found + 1) == lines:
                return begin + place + 1
        at = begin
    return 0
