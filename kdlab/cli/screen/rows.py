"""What a board shows of a job: its cells, and rows of them whose columns stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.text import Text

from kdlab.cli.screen.console import duration
from kdlab.cli.screen.places import place
from kdlab.jobs.events import JobFailed, JobFinished, JobReused, JobSkipped
from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan
from kdlab.jobs.status import JobStatus, State

GAP = "  "
_BAR_MIN, _BAR_MAX = 6, 24
_FIRST_TO_GO = ("id", "name", "queued", "skipped", "cancelled", "pruned")
_ALWAYS = ("done", "running", "queued", "failed")
COLUMNS = ("slot", "id", "label", "epoch", "bar", "AP", "det", "terms", "ETA")
DROPPED_FIRST = ("id", "slot", "bar", "det", "terms", "epoch", "AP", "ETA")
DROPPED_FIRST_WITH_GPUS = ("id", "bar", "det", "terms", "epoch", "AP", "ETA")
_OF_RUNNING = {"bar", "ETA"}
_UNITS = {"images": "images", "steps": "step", "epochs": "ep"}
NO_GPUS: Mapping[str, int] = {}
STYLES = {
    **{"slot": "dim", "id": "dim", "bar": "cyan", "AP": "bold", "terms": "magenta", "note": "dim"},
    **{"done": "green", "failed": "bold red", "cancelled": "yellow", "skipped": "dim", "pruned": "dim"},
    **{"running": "cyan", "interrupted": "yellow"},
}


def short(job: str) -> str:
    """ "student-3fa2": enough of an id to tell the jobs of a plan apart."""
    kind, _, digits = job.rpartition("-")
    return f"{kind}-{digits[:4]}"


def row(status: JobStatus, now: float, numbers: Mapping[str, int] = NO_GPUS) -> dict[str, str]:
    """The cells of a running job; that of the bar is a fraction, for its width is not known here.

    How far it is: "ep 5/12", "step 7/30" or "images 80/200"; "starts" before its process spoke.

    Args:
        status: of the job.
        now: Unix seconds.
        numbers: of this machine's GPUs, by UUID.
    """
    det, terms = losses(status)
    at, left, counts = status.at, status.left_s(now), status.job.spec.counts
    stage = note(status) if status.in_queue else "starts"
    if at:
        done = status.epoch if counts == "epochs" else f"{at.iteration}/{at.iterations}"
        stage = f"{_UNITS[counts]} {done}"
    return {
        "slot": place(status, numbers),
        "id": short(status.job.id),
        "label": status.job.label,
        "epoch": stage,
        "bar": f"{status.fraction:.4f}",
        "AP": "" if status.ap is None else f"AP {status.ap:.1f}",
        "det": "" if det is None else f"det {_loss(det)}",
        "terms": GAP.join(f"{name} {_loss(value)}{_share(status, name)}" for name, value in terms.items()),
        "ETA": f"ETA {'?' if left is None else duration(left)}",
    }


def _share(status: JobStatus, name: str) -> str:
    """ " (4 %)", a method's share of the gradient; nothing where nobody looked."""
    share = status.last.losses.get(f"share_{name}") if status.last else None
    return "" if share is None else f" ({share:.0f} %)"


def losses(status: JobStatus) -> tuple[float | None, dict[str, float]]:
    """The detector's own loss, and the weighted losses of the methods by instance."""
    given = status.last.losses if status.last else {}
    if "loss" not in given:
        return None, {}
    names = [key.removeprefix("raw_") for key in given if key.startswith("raw_")]
    terms = {name: given[f"loss_{name}"] for name in names if f"loss_{name}" in given}
    return given["loss"] - sum(terms.values()), terms


def heading(plan: Plan, counts: Mapping[str, int], others: Sequence[str], clock: str, width: int) -> Text:
    """First line of a plan: its name, its jobs by state, and a clock; what the width lacks is left out.

    Args:
        plan: which.
        counts: jobs by state.
        others: states that are shown where a job is in them.
        clock: how long it takes; "" for nothing.
        width: of the terminal, in characters.
    """
    states = [*_ALWAYS, *(state for state in others if counts[state])]
    parts = {"id": f"plan {plan.id[:4]}", "name": plan.recipe["name"]}
    parts |= {state: f"{state} {counts[state]}" for state in states}
    if clock:
        parts["clock"] = clock
    for name in _FIRST_TO_GO:
        if len(GAP.join(parts.values())) > width:
            parts.pop(name, None)
    red = "failed" if counts["failed"] else ""
    return line([(red if name == "failed" else "", part) for name, part in parts.items()], width)


def reserved_widths(jobs: Sequence[Job]) -> dict[str, int]:
    """Characters that each column will need, so that the columns stay where they are while the plan runs."""
    terms = [[f"{name} 0.05" for name in getattr(job.spec, "methods", ())] for job in jobs]
    return {
        "label": max((len(job.label) for job in jobs), default=0),
        "epoch": len("starts"),
        "bar": _BAR_MIN,
        "AP": len("AP 31.8"),
        "det": len("det 0.81"),
        "terms": max((len(GAP.join(names)) for names in terms), default=0),
        "ETA": len("ETA 1h05m"),
    }


def rows(
    cells: Sequence[Mapping[str, str]],
    width: int,
    reserved: Mapping[str, int],
    columns: Sequence[str] = COLUMNS,
    dropped_first: Sequence[str] = DROPPED_FIRST,
) -> list[Text]:
    """A row for each of `cells`, its columns aligned; the least important ones give way.

    Args:
        cells: by column; one without "label" is a place where no job is, and shows its "note" alone.
        width: of the terminal, in characters.
        reserved: characters that a column has at least.
        columns: those to show, from left to right.
        dropped_first: those that go where the width does not suffice.
    """
    if not cells:
        return []
    wide = {}
    for name in columns:
        wide[name] = max(len(cell.get(name, "")) for cell in cells)
        wide[name] = max(wide[name], reserved.get(name, 0))
    kept = {name for name in columns if wide[name]}

    def spare() -> int:
        # a note stands where the last columns of its row are empty
        notes = max(0, reserved.get("note", 0) - sum(wide[name] for name in kept & _OF_RUNNING))
        return width - notes - sum(wide[name] for name in kept) - len(GAP) * (len(kept) - 1)

    dropped = []
    for name in dropped_first:
        if spare() < 0 and name in kept:
            kept.remove(name)
            dropped.append(name)
    # where a wide column had to go there may be room again for a narrow one that went before
    for name in reversed(dropped):
        if spare() >= wide[name] + len(GAP):
            kept.add(name)
    wide["bar"] = min(_BAR_MAX, _BAR_MIN + max(0, spare()))
    return [_row(cell, {name: wide[name] for name in columns if name in kept}, width) for cell in cells]


def _row(cell: Mapping[str, str], wide: Mapping[str, int], width: int) -> Text:
    if "label" not in cell:
        return line([("slot", f"{cell['slot']:<{wide.get('slot', 0)}}"), ("note", cell["note"])], width)
    filled = round(float(cell.get("bar", 0)) * wide.get("bar", 0))
    shown = {**cell, "bar": f"{'=' * (filled - 1)}>" if filled else ""}
    names = [name for name in wide if name not in _OF_RUNNING or shown[name] or not cell.get("note")]
    styles = {name: cell[name].strip() if name == "state" else name for name in names}
    marked = [(styles[name], f"{shown[name]:<{wide[name]}}") for name in names]
    note = "failed" if styles.get("state") == "failed" else "note"
    return line([*marked, (note, cell.get("note", ""))], width)


class Frame:
    """What a live display redraws; a terminal that was resized is cleared first.

    What stood there may have wrapped then, so that a redraw would leave pieces of it.

    Args:
        draw: gives the lines for a width and a height.
    """

    def __init__(self, draw: Callable[[int, int], Iterable[Text]]) -> None:
        self._draw, self._width = draw, 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._width not in (0, options.max_width):
            yield Control.clear()
            yield Control.home()
        self._width = options.max_width
        yield from self._draw(options.max_width, console.height)


OVERFIT_AP = 2.0
"""Points that a teacher may lose after its best epoch before that is remarked."""
_OVERFITS = "; it had AP {0.best_ap:.1f} after epoch {0.best_epoch}: lower {1}"


def line(parts: Sequence[tuple[str, str]], width: int) -> Text:
    """One line of marked parts, cut at `width`."""
    text = Text(GAP).join(Text(part, style=STYLES.get(name, "")) for name, part in parts)
    text.rstrip()
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def _loss(value: float) -> str:
    """Four characters for all that is usual, so that the columns stay: "5e-4", "0.81", "12.3", "123"."""
    size = abs(value)
    if 0 < size < 0.005:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:.0f}"


def overfits(status: JobStatus) -> bool:
    """Whether a teacher, from whose end students learn, had clearly more AP in an earlier epoch."""
    return status.job.is_teacher and status.best_ap > (status.ap or 0.0) + OVERFIT_AP


def ending(status: JobStatus) -> str:
    """What came of a job that ended, in a clause."""
    measured = f"AP {status.ap:.1f}, " if status.state is State.DONE and status.ap is not None else ""
    return measured + note(status)


def note(status: JobStatus) -> str:
    """Why a job is in its state, or what came of it; "" where there is nothing to say."""
    match status.state:
        case State.RUNNING:
            return f"attempt {status.attempt}" if status.attempt > 1 else ""
        case State.QUEUED:
            return f"queued in {status.handle.executor}" if status.in_queue and status.handle else ""
        case State.INTERRUPTED | State.CANCELLED:
            return f"checkpoint at iteration {status.saved}" if status.saved else "no checkpoint yet"
        case State.PRUNED:
            return f"AP {status.ap or 0:.1f} after epoch {status.measured} promised too little"
    match status.end:
        case JobFinished(wall_s=wall_s):
            own = status.job.spec.is_teacher
            epochs = "teacher.schedule.epochs" if own else "schedule.epochs of the recipe that it comes from"
            return duration(wall_s) + (_OVERFITS.format(status, epochs) if overfits(status) else "")
        case JobReused():
            return "by another kdlab run"
        case JobFailed(what=what):
            return what
        case JobSkipped(why=why):
            return why
    return ""
