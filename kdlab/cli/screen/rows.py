"""What a board shows of a job: its cells, and rows of them whose columns stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.control import Control
from rich.text import Text

from kdlab.cli.screen.console import duration
from kdlab.cli.screen.places import Place
from kdlab.cli.screen.progress import JobView, PlanView
from kdlab.jobs.events import JobCancelled, JobFailed, JobFinished, JobReused, JobSkipped

GAP = "  "
_BAR_MIN, _BAR_MAX = 6, 24
COLUMNS = ("slot", "id", "label", "epoch", "bar", "AP", "det", "terms", "ETA")
DROPPED_FIRST = ("id", "slot", "bar", "det", "terms", "epoch", "AP", "ETA")
DROPPED_FIRST_WITH_GPUS = ("id", "bar", "det", "terms", "epoch", "AP", "ETA")
_OF_RUNNING = {"bar", "ETA"}
STYLES = {
    **{"slot": "dim", "id": "dim", "bar": "cyan", "AP": "bold", "terms": "magenta", "note": "dim"},
    **{"done": "green", "failed": "bold red", "cancelled": "yellow", "skipped": "dim", "pruned": "dim"},
    **{"running": "cyan", "interrupted": "yellow"},
}


def short(job: str) -> str:
    """ "student-3fa2": enough of an id to tell the jobs of a plan apart."""
    kind, _, digits = job.rpartition("-")
    return f"{kind}-{digits[:4]}"


def row(view: JobView, place: Place | None, now: float) -> dict[str, str]:
    """The cells of a running job; that of the bar is a fraction, for its width is not known here."""
    det, terms = view.losses
    left = view.left_s(now)
    return {
        "slot": place.told if place else "",
        "id": short(view.job.id),
        "label": view.job.label,
        "epoch": _stage(view, place),
        "bar": str(view.fraction),
        "AP": "" if view.ap is None else f"AP {view.ap:.1f}",
        "det": "" if det is None else f"det {_loss(det)}",
        "terms": GAP.join(f"{name} {_loss(value)}" for name, value in terms.items()),
        "ETA": f"ETA {'?' if left is None else duration(left)}",
    }


def _stage(view: JobView, place: Place | None) -> str:
    """How far a job is: "ep 5/12", "step 7/30" or "images 80/200"; "starts" before its process spoke."""
    if not view.started:
        return place.waits if place and place.waits else "starts"
    if view.job.spec.counts == "epochs":
        return f"ep {view.epoch}"
    at = view.last or view.started
    unit = "step" if view.job.spec.counts == "steps" else "images"
    return f"{unit} {at.iteration}/{at.iterations}"


def reserved_widths(view: PlanView) -> dict[str, int]:
    """Characters that each column will need, so that the columns stay where they are while the plan runs."""
    jobs = [known.job for known in view.jobs.values()]
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
    wide = {
        name: max([reserved.get(name, 0), *(len(cell.get(name, "")) for cell in cells)])
        for name in columns
        if cells
    }
    kept = {name for name in columns if wide.get(name)}

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
    shown = {**cell, "bar": _bar(float(cell.get("bar", 0)), wide.get("bar", 0))}
    filled = [name for name in wide if name not in _OF_RUNNING or shown[name] or not cell.get("note")]
    styles = {name: cell[name].strip() if name == "state" else name for name in filled}
    marked = [(styles[name], f"{shown[name]:<{wide[name]}}") for name in filled]
    note = "failed" if styles.get("state") == "failed" else "note"
    return line([*marked, (note, cell.get("note", ""))], width)


def _bar(fraction: float, width: int) -> str:
    filled = round(fraction * width)
    return f"{'=' * (filled - 1)}>" if filled else ""


class Resized:
    """Notices that a terminal was resized.

    What stood there may have wrapped then, so that a redraw would leave pieces of it.
    """

    def __init__(self) -> None:
        self._width = 0

    def clearing(self, width: int) -> Iterator[Control]:
        """What to put before a frame of this width: nothing, or the clearing of the screen."""
        if self._width not in (0, width):
            yield Control.clear()
            yield Control.home()
        self._width = width


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


def _measured(metrics: Mapping[str, float]) -> str:
    """ "AP 31.8, "; nothing of a job that measures no detector."""
    return f"AP {metrics['AP']:.1f}, " if "AP" in metrics else ""


def ending(view: JobView) -> str:
    """What came of a job that ended, in a clause; "" of one that goes on."""
    if view.state == "pruned":
        return f"AP {view.ap or 0:.1f} after epoch {view.measured} promised too little"
    match event := view.end:
        case JobFinished():
            return f"{_measured(event.metrics)}{duration(event.wall_s)}"
        case JobReused():
            return f"{_measured(event.metrics)}by another kdlab run"
        case JobFailed():
            return event.what
        case JobCancelled():
            return f"keeps its checkpoint of iteration {event.iteration}"
        case JobSkipped():
            return event.why
    return ""
