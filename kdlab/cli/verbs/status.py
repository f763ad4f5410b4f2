"""kdlab status: how far a plan is, also from another shell."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen, duration, styled
from kdlab.cli.screen.options import PlanName

if TYPE_CHECKING:
    from rich.text import Text

    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.cli.screen.rows import Frame
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.status import JobStatus, State

_EVERY_S = 1.0
_BAR, _NOTE = 6, 28
_SOMETIMES = ("interrupted", "cancelled", "skipped")
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
      plan 47ed  digits/quickstart  done 5  running 0  queued 0  failed 0
        all done
        done  evaluate-edde  teacher          AP 76.6  ...
        done  student-c6d3   baseline seed 0  AP 53.6  ...
        ...
      $ kdlab status digits/quickstart --json
      {"schema": 1, "plan": ...
    """
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.jobs import store
    from kdlab.jobs.paths import Runs

    runs = Runs.here()
    seen = PlanStatus.read(store.plan(runs, plan, recipes=catalog.recipes()), runs)
    if watch:
        with suppress(KeyboardInterrupt):
            _watch(screen, seen, runs)
    elif screen.json:
        screen.emit(**_as_data(seen))
    if not screen.json and not (watch and screen.live):
        for line in lines(seen, screen.out.width, whole_ids=screen.verbose):
            screen.data(line)
    if screen.verbose and not screen.json:
        _show_failures(screen, seen, runs)
    if seen.driven or seen.counts["running"]:
        screen.next("kdlab status -w")
    elif seen.counts["done"] == len(seen.plan.jobs) and not seen.plan.is_search:
        verb = {"diagnoses": "diagnose", "benches": "bench"}.get(seen.plan.about, "report --table")
        screen.next(f"kdlab {verb} {shlex.quote(seen.plan.recipe['name'])}")
    else:
        screen.next(seen.command)


def lines(
    seen: PlanStatus, width: int, room: int | None = None, *, whole_ids: bool = False
) -> Iterator[Text]:
    """A plan as it stands: counts, who drives it, and a row a job.

    Args:
        seen: the plan.
        width: of the terminal, in characters.
        room: rows that there are; jobs that do not fit are counted. None for any number.
        whole_ids: whether ids are shown in full.
    """
    from kdlab.cli.screen.rows import heading, line, note, row, rows
    from kdlab.jobs.status import State

    left = eta_s(seen)
    yield heading(seen.plan, seen.counts, _SOMETIMES, f"ETA {duration(left)}" if left else "", width)
    drive = f"no kdlab run drives it: {seen.command} goes on"
    if seen.driven and (driver := seen.driver):
        drive = f"driven by process {driver.process.pid} on {driver.process.host}: {driver.command}"
    elif not seen.counts.keys() - {"done"}:
        drive = "all done"
    yield line([("note", f"  {drive}")], width)
    if seen.driven and seen.driver and seen.driver.waits:
        yield line([("note", f"  waits for {seen.driver.waits}")], width)
    jobs, now, numbers = _by_state(seen), time.time(), seen.gpus
    shown = jobs if room is None or len(jobs) <= room - 2 else jobs[: max(1, room - 3)]
    cells = []
    for status in shown:
        cell = row(status, now, numbers) | {"state": f"  {status.state}", "note": note(status)}
        if status.state is not State.RUNNING:
            cell |= {"ETA": "", "bar": "0"}
            if status.state is State.DONE or not status.started:
                cell["epoch"] = ""
        if whole_ids:
            cell["id"] = status.job.id
        cells.append(cell)
    reserved = {"bar": _BAR, "note": min(_NOTE, max((len(cell["note"]) for cell in cells), default=0))}
    yield from rows(cells, width, reserved, _COLUMNS if room is None else _WATCHED, _DROPPED_FIRST)
    if len(jobs) > len(shown):
        yield line([("note", f"  and {len(jobs) - len(shown)} more")], width)


def eta_s(seen: PlanStatus) -> float | None:
    """Seconds until the plan ends; None where nobody knows, nobody drives it, or a cluster has it."""
    if not seen.driven or any(status.away for status in seen.jobs.values()):
        return None
    return seen.left_s(time.time())


def _by_state(seen: PlanStatus) -> list[JobStatus]:
    """The jobs, first those that somebody should look at, else in the plan's order."""
    from kdlab.jobs.status import State

    order = list(State)
    return sorted(seen.jobs.values(), key=lambda status: order.index(status.state))


def _as_data(seen: PlanStatus) -> dict[str, Any]:
    """The plan's state as plain data."""
    from kdlab.cli.screen.places import place
    from kdlab.jobs.status import State

    now, gpus = time.time(), seen.gpus
    return {
        "plan": seen.plan.id,
        "recipe": seen.plan.recipe["name"],
        "driven": seen.driven,
        "command": seen.command,
        "waits": seen.driver.waits if seen.driver and seen.driven else "",
        "counts": {state: seen.counts[state] for state in State},
        "eta_s": eta_s(seen),
        "jobs": [_job_as_data(status, now, place(status, gpus)) for status in _by_state(seen)],
    }


def _job_as_data(status: JobStatus, now: float, where: str) -> dict[str, Any]:
    from kdlab.cli.screen.rows import note
    from kdlab.jobs.status import State

    return {
        "id": status.job.id,
        "label": status.job.label,
        "arm": status.job.arm,
        "seed": status.job.seed,
        "state": status.state,
        "where": where,
        "epoch": status.epoch,
        "iteration": status.iteration,
        "iterations": status.at.iterations if status.at else None,
        "AP": status.ap,
        "eta_s": status.left_s(now) if status.state is State.RUNNING else None,
        "attempt": status.attempt,
        "note": note(status),
    }


def _show_failures(screen: Screen, seen: PlanStatus, runs: Runs) -> None:
    """How jobs failed; of those that ran out of memory with what would fit."""
    from kdlab.cli.screen.failures import boxes
    from kdlab.jobs import store
    from kdlab.jobs.events import JobFailed
    from kdlab.planning import out_of_memory as memory

    labels, failures = {}, []
    for job, status in seen.jobs.items():
        labels[job] = f"{status.job.label} ({job})"
        if isinstance(status.end, JobFailed):
            shortage = store.shortage(runs.job(job))
            fix = memory.advice(status.job, shortage) if shortage else status.end.fix
            failures.append(replace(status.end, fix=fix))
    for text in boxes(failures, labels):
        screen.data(styled(text))


def frame(seen: PlanStatus) -> Frame:
    """A plan on a terminal, as it stands whenever this is drawn."""
    from kdlab.cli.screen.rows import Frame

    return Frame(lambda width, height: lines(seen, width, height - 1))


def _watch(screen: Screen, seen: PlanStatus, runs: Runs) -> None:
    """Show the plan until nothing more happens: a frame on a terminal, elsewhere a line a change."""
    if not screen.live:
        _tell_changes(screen, seen, runs)
        return
    from rich.live import Live

    with Live(frame(seen), console=screen.err, auto_refresh=False) as live:
        while not seen.over:
            time.sleep(_EVERY_S)
            seen.look(runs)
            live.refresh()


def _tell_changes(screen: Screen, seen: PlanStatus, runs: Runs) -> None:
    from kdlab.cli.screen.places import place
    from kdlab.cli.screen.rows import note, short

    told: dict[str, State] = {}
    while True:
        for status in _by_state(seen):
            job, where = status.job, place(status, seen.gpus)
            if told.get(job.id) == status.state:
                continue
            told[job.id] = status.state
            if screen.json:
                screen.emit(**_job_as_data(status, time.time(), where))
            else:
                parts = (time.strftime("%F %T"), short(job.id), job.label, status.state, where, note(status))
                screen.say("  ".join(filter(None, parts)))
        if seen.over:
            return
        time.sleep(_EVERY_S)
        seen.look(runs)
