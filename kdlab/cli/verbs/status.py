"""kdlab status: how far a plan is, also from another shell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from kdlab.cli.screen import pick
from kdlab.cli.screen.console import Screen, duration, styled
from kdlab.cli.screen.options import PlanName

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

    from kdlab.cli.screen.snapshot import Seen, Snapshot

_EVERY_S = 1.0
_BAR, _NOTE = 6, 28
_ALWAYS = ("done", "running", "queued", "failed")
_SOMETIMES = ("interrupted", "skipped")
_COLUMNS = ("state", "slot", "id", "label", "epoch", "AP", "ETA")
_WATCHED = ("state", "slot", "id", "label", "epoch", "AP", "bar", "ETA")
_DROPPED_FIRST = ("bar", "id", "epoch", "slot", "AP", "ETA")


def status(
    screen: Screen,
    plan: PlanName = None,
    watch: Annotated[
        bool, typer.Option("-w", "--watch", help="Redraw every second until all has ended, or Ctrl-C.")
    ] = False,
) -> None:
    """Show how far a plan is: each job's state, place, epoch, AP and time left.

    Reads files alone, so it serves in any shell that sees the runs folder. With -v whole ids, and what is
    known of failures.

    \b
    Examples:
      $ kdlab status
      plan 70e4  digits/quickstart  done 5  running 0  queued 0  failed 0
        all done
        done  teacher-8653  teacher          AP 36.2  ...
        done  student-937e  baseline seed 0  AP 18.8  ...
        ...
      $ kdlab status digits/quickstart --json
      {"schema": 1, "plan": ...
    """
    from kdlab.cli.screen.snapshot import Snapshot
    from kdlab.jobs.paths import Runs

    runs = Runs.here()
    snapshot = Snapshot(pick.plan(runs, plan), runs)
    shown = watch and screen.live
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(screen, snapshot)
    elif screen.json:
        screen.emit(**snapshot.to_dict())
    if not screen.json and not shown:
        for line in lines(snapshot, screen.out.width, whole_ids=screen.verbose):
            screen.data(line)
    if screen.verbose and not screen.json:
        for line in _failures(snapshot):
            screen.data(line)
    screen.next(_next(snapshot))


def lines(
    snapshot: Snapshot, width: int, room: int | None = None, *, whole_ids: bool = False
) -> Iterator[Text]:
    """A plan as it stands: counts, who drives it, and a row a job.

    Args:
        snapshot: the plan.
        width: of the terminal, in characters.
        room: rows that there are; jobs that do not fit are counted. None for any number.
        whole_ids: whether ids are shown in full.
    """
    from kdlab.cli.screen.rows import line, rows

    yield _head(snapshot, width)
    yield line([("note", f"  {_drive(snapshot)}")], width)
    jobs = list(snapshot.jobs)
    shown = jobs if room is None or len(jobs) <= room - 2 else jobs[: max(1, room - 3)]
    now = time.time()
    cells = [_cells(seen, now, whole_id=whole_ids) for seen in shown]
    reserved = {"bar": _BAR, "note": min(_NOTE, max(len(cell["note"]) for cell in cells))}
    yield from rows(cells, width, reserved, _COLUMNS if room is None else _WATCHED, _DROPPED_FIRST)
    if left := len(jobs) - len(shown):
        yield line([("note", f"  and {left} more")], width)


def _head(snapshot: Snapshot, width: int) -> Text:
    from kdlab.cli.screen.rows import GAP, line

    counts, left = snapshot.counts, snapshot.left_s(time.time())
    parts = {"id": f"plan {snapshot.plan.id[:4]}", "name": snapshot.plan.recipe["name"]}
    parts |= {state: f"{state} {counts[state]}" for state in _ALWAYS}
    parts |= {state: f"{state} {counts[state]}" for state in _SOMETIMES if counts[state]}
    if left:
        parts["ETA"] = f"ETA {duration(left)}"
    for name in ("id", "name", "queued", "skipped"):
        if len(GAP.join(parts.values())) > width:
            parts.pop(name, None)
    return line(
        [("failed" if name == "failed" and counts[name] else "", parts[name]) for name in parts], width
    )


def _drive(snapshot: Snapshot) -> str:
    """Whether somebody brings the plan to its end, else how to go on."""
    if snapshot.driven and (driver := snapshot.driver):
        return f"driven by process {driver.process.pid} on {driver.process.host}: {driver.command}"
    if not snapshot.counts.keys() - {"done"}:
        return "all done"
    return f"no kdlab run drives it: {snapshot.command} goes on"


def _cells(seen: Seen, now: float, *, whole_id: bool) -> dict[str, str]:
    from kdlab.cli.screen.rows import row

    view, running = seen.view, seen.view.state == "running"
    cells = row(view, seen.place, now) | {"state": f"  {view.state}", "note": seen.note}
    if not running:
        cells |= {"ETA": "", "bar": "0"}
    if not running and (view.state == "done" or not view.started):
        cells["epoch"] = ""
    return cells | ({"id": view.job.id} if whole_id else {})


def _failures(snapshot: Snapshot) -> Iterator[Text]:
    """The boxes that `kdlab run` ends in."""
    from kdlab.cli.screen.failures import boxes
    from kdlab.jobs.events import JobFailed

    ends = [seen.view.end for seen in snapshot.jobs if seen.view.state == "failed"]
    labels = {seen.view.job.id: f"{seen.view.job.label} ({seen.view.job.id})" for seen in snapshot.jobs}
    yield from map(styled, boxes([end for end in ends if isinstance(end, JobFailed)], labels))


def _next(snapshot: Snapshot) -> str:
    if snapshot.driven or snapshot.counts["running"]:
        return "kdlab status -w"
    done = snapshot.counts["done"] == len(snapshot.plan.jobs)
    report = f"kdlab report --table {snapshot.plan.recipe['name']}"
    return report if done and not snapshot.searches else snapshot.command


class _Frame:
    """The state of a plan as a terminal shows it, in as many rows as it has."""

    def __init__(self, snapshot: Snapshot) -> None:
        from kdlab.cli.screen.rows import Resized

        self._snapshot, self._resized = snapshot, Resized()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._resized.clearing(options.max_width)
        yield from lines(self._snapshot, options.max_width, console.height - 1)


def _watch(screen: Screen, snapshot: Snapshot) -> None:
    """Show the plan until nothing more happens: a frame on a terminal, elsewhere a line a change."""
    if not screen.live:
        _tell_changes(screen, snapshot)
        return
    from rich.live import Live

    with Live(_Frame(snapshot), console=screen.err, auto_refresh=False) as live:
        while not snapshot.over:
            time.sleep(_EVERY_S)
            snapshot.look()
            live.refresh()


def _tell_changes(screen: Screen, snapshot: Snapshot) -> None:
    told: dict[str, str] = {}
    while True:
        for seen in snapshot.jobs:
            if told.get(seen.view.job.id) != seen.view.state:
                told[seen.view.job.id] = seen.view.state
                _tell(screen, seen)
        if snapshot.over:
            return
        time.sleep(_EVERY_S)
        snapshot.look()


def _tell(screen: Screen, seen: Seen) -> None:
    if screen.json:
        screen.emit(**seen.to_dict(time.time()))
        return
    where = seen.place.told if seen.place else ""
    from kdlab.cli.screen.rows import short

    parts = (time.strftime("%F %T"), short(seen.view.job.id), seen.view.job.label, seen.view.state, where)
    screen.say("  ".join(part for part in (*parts, seen.note) if part))
