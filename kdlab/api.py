"""kdlab from Python, as notebooks use it: load a recipe, plan it, run it, report on it.

    import kdlab

    done = kdlab.run("digits/quickstart", "seeds=[0,1,2]")
    done.to_frame()
    done.figures()["gains"]

Everything is in the same folders as on the command line: what `kdlab run` has finished is reused here.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import catalog, prepared, session
from kdlab.errors import Fault, JobError
from kdlab.jobs import store
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobReused,
    JobSkipped,
    JobStarted,
    JobWaiting,
)
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.prepared import Prepared
from kdlab.recipe import loader
from kdlab.recipe.settings import Recipe
from kdlab.reporting import comparison as comparisons
from kdlab.reporting import comparison_table
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Planned", "Report", "load", "plan", "report", "run"]

# of tqdm in a notebook without ipywidgets, which MLflow imports and kdlab does not show
warnings.filterwarnings("ignore", message="IProgress not found")

BAR, WIDTH = 20, 78
"""Characters of the progress bar, and of its line."""


def load(recipe: str | Path, *overrides: str) -> Recipe:
    """A recipe with all its values.

    Args:
        recipe: its name in the catalog, in this folder or below `recipes/`; or its file.
        overrides: as `--set` takes them: "seeds=[0,1]", "arms.rm.rm.weight=2".

    Raises:
        UsageError: there is none, or something in it is wrong; all faults at once.
    """
    return loader.load(str(recipe), overrides)


@dataclass(frozen=True)
class Planned:
    """What a run would do, as `plan` gives it; `asked` are recipe, executor and GPUs."""

    prepared: Prepared
    asked: tuple[Recipe, str, Sequence[int] | None]

    @property
    def plan(self) -> Plan:
        """Its jobs, with what each costs and why it is to be run."""
        return self.prepared.plan

    def to_frame(self) -> DataFrame:
        """A row a job: "job", "arm", "seed", "done", "why", "cost_s" (seconds) and "cost_source"."""
        import pandas

        rows = [
            {
                "job": one.job.id,
                "arm": one.job.arm,
                "seed": one.job.seed if one.job.is_student else None,
                "done": one.done,
                "why": one.why,
                "cost_s": one.cost_s,
                "cost_source": one.cost_source,
            }
            for one in self.plan.jobs
        ]
        return pandas.DataFrame(rows).astype({"seed": "Int64", "cost_s": "float64"})

    def _repr_html_(self) -> str:
        return self.to_frame().to_html()

    def __repr__(self) -> str:
        jobs = self.plan.jobs
        done = sum(one.done for one in jobs)
        return f"plan {self.plan.id} of {self.plan.recipe['name']}: {len(jobs)} jobs, {done} done"


def plan(
    recipe: str | Path | Recipe,
    *overrides: str,
    executor: str = "local",
    gpus: Sequence[int] | None = None,
) -> Planned:
    """What a run would do, reuse and cost; nothing is trained.

    Args:
        recipe: as `load` takes or gives it.
        overrides: as `load` takes them; none beside a recipe that is loaded.
        executor: key of `kdlab ls executors`.
        gpus: numbers of those to use; None for all that are free.

    Raises:
        KdlabError: the recipe, the data, the models or the machine do not allow it.
        TypeError: there are overrides beside a recipe that is loaded.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise TypeError("overrides belong to load(), which made this recipe")
    else:
        recipe = load(recipe, *overrides)
    return Planned(prepared.prepare(recipe, executor, gpus), (recipe, executor, gpus))


@dataclass(frozen=True)
class Report:
    """The comparison of what was run, as `run` and `report` give it; `pool` as for `report`."""

    comparison: Comparison
    pool: bool = False

    @cached_property
    def table(self) -> Table:
        """A row an arm, with the columns that are usual and its footnotes."""
        return comparison_table.table(self.comparison).usual()

    def to_frame(self, columns: Sequence[str] = ()) -> DataFrame:
        """The table for pandas, its numbers not rounded; `attrs` has title and footnotes.

        Args:
            columns: as `kdlab report --cols` takes them; by default the usual ones.

        Raises:
            UsageError: the table has no such column; names all.
        """
        table = comparison_table.table(self.comparison).only(columns) if columns else self.table
        return table.to_frame()

    def by_class(self) -> DataFrame:
        """AP of each class, a column an arm."""
        return comparison_table.by_class(self.comparison).to_frame()

    def figures(self) -> dict[str, Figure]:
        """The plots that there are numbers for, by name: "gains", "ap_by_epoch", ..."""
        from kdlab.reporting import plots

        if shell := _notebook():
            # else a notebook shows no figure before pyplot is imported
            from IPython.core.pylabtools import select_figure_formats

            select_figure_formats(shell, {"png"})
        return {name: plot.figure for name, plot in plots.draw(self._with_curves).items()}

    @cached_property
    def _with_curves(self) -> Comparison:
        return comparisons.of_plan(self.comparison.plan, Runs.here(), pool=self.pool, curves=True)

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<li>{escape(note)}</li>" for note in self.table.footnotes)
        cells = [[escape(cell.text) for cell in row] for row in self.table.rows]
        head = "".join(f"<th>{escape(column.title)}</th>" for column in self.table.columns)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
        title = escape(self.table.title)
        return f"<table><caption>{title}</caption><tr>{head}</tr>{body}</table><ul>{notes}</ul>"

    def __repr__(self) -> str:
        from kdlab.reporting import renderers

        return renderers.to_markdown(self.table)


def report(what: str | Path | Planned | None = None, *, pool: bool = False) -> Report:
    """The comparison of what was run so far.

    Args:
        what: a recipe that was run, the id of a plan, or one that `plan` gave; None for the newest plan.
        pool: average seeds that ran in micro-batches with those that ran whole.

    Raises:
        UsageError: nothing of it was run.
    """
    runs = Runs.here()
    if isinstance(what, Planned):
        found = what.plan
    elif what is None:
        found = store.newest_plan(runs, comparing=True)
    else:
        found = store.plan(runs, str(what), comparing=True, recipes=catalog.recipes())
    return Report(comparisons.of_plan(found, runs, pool=pool), pool)


def run(
    recipe: str | Path | Recipe | Planned,
    *overrides: str,
    executor: str = "local",
    gpus: Sequence[int] | None = None,
    jobs: int | None = None,
    fail_fast: bool = False,
    progress: bool = True,
) -> Report:
    """Train what is missing of a recipe and compare its arms.

    An interrupt lets the jobs at work write a checkpoint; the same call again goes on from there.

    Args:
        recipe: as `plan` takes or gives it.
        overrides: as `plan` takes them.
        executor: as for `plan`.
        gpus: as for `plan`.
        jobs: how many may run side by side; None for what the devices allow.
        fail_fast: end everything after the first failure.
        progress: whether to print what is trained, and a line for each job that ends.

    Raises:
        KdlabError: as `plan`.
        JobError: jobs failed; `report` has the others.
        KeyboardInterrupt: it was interrupted.
    """
    made = recipe
    if not isinstance(made, Planned):
        made = plan(made, *overrides, executor=executor, gpus=gpus)
    while True:
        outcome = _driven(made, jobs, fail_fast, progress)
        if outcome.complete or outcome.stopped_by or not prepared.smaller(made.prepared):
            break
        again = Planned(prepared.prepare(*made.asked), made.asked)
        if again.plan.id == made.plan.id:
            break
        made = again
    if outcome.stopped_by:
        raise KeyboardInterrupt
    if not outcome.complete:
        raise JobError(faults=_faults(made.plan, outcome.ends))
    return report(made)


def _driven(made: Planned, jobs: int | None, fail_fast: bool, progress: bool) -> session.Outcome:
    own = made.prepared
    observers = [_Lines(own.plan)] if progress else []
    command = own.plan.recipe.get("command", "")
    before = {*os.environ}
    try:
        return session.drive(
            own.plan,
            own.executor,
            own.runs,
            observers,
            fail_fast=fail_fast,
            jobs_at_once=jobs,
            command=command,
        )
    finally:
        # a tracker's patience is not that of the notebook's own MLflow
        for name in {*os.environ} - before:
            if name.startswith("MLFLOW_"):
                del os.environ[name]


def _faults(made: Plan, ends: Mapping[str, Event]) -> list[Fault]:
    """Why jobs did not finish, each cause once."""
    labels = {one.job.id: f"{one.job.label} ({one.job.id})" for one in made.jobs}
    causes: dict[str, list[JobFailed]] = {}
    for end in ends.values():
        if isinstance(end, JobFailed):
            causes.setdefault(end.what, []).append(end)
    told = []
    for what, failures in causes.items():
        whose = ", ".join(labels[failure.job] for failure in failures)
        first = failures[0]
        told.append(Fault(what, whose, first.got, first.known, first.fix or f"kdlab logs {first.job}"))
    cancelled = [labels[job] for job, end in ends.items() if isinstance(end, JobCancelled)]
    if cancelled:
        told.append(Fault("stopped by another command", ", ".join(cancelled)))
    return told or [Fault("jobs were not finished", made.id)]


class _Lines:
    """A line for each job that ends and, below them, one that is written over."""

    def __init__(self, plan: Plan) -> None:
        self._labels = {one.job.id: one.job.label for one in plan.jobs}
        self._lines: dict[str, str] = {}
        self._show = _in_notebook() or _InTerminal()

    def __call__(self, event: Event) -> None:
        label, now = self._labels.get(event.job, event.job), ""
        match event:
            case JobReused() | JobFinished():
                ap = event.metrics.get("AP")
                told = f"{label}: {'reused' if isinstance(event, JobReused) else 'done'}"
                self._lines[event.job] = told if ap is None else f"{told}, AP {ap:.1f}"
            case JobFailed():
                self._lines[event.job] = f"{label}: failed, {event.what}"
            case JobCancelled() | JobSkipped():
                self._lines[event.job] = f"{label}: not run"
            case JobProgress():
                now = f"{label}, epoch {event.epoch} of {event.epochs}"
            case JobEvaluated():
                now = f"{label}, AP {event.metrics.get('AP', 0.0):.1f} after epoch {event.epoch}"
            case JobStarted():
                now = f"{label} begins"
            case JobWaiting():
                now = f"{label} waits: {event.why}"
            case _:
                return
        done, of = len(self._lines), len(self._labels)
        full = BAR * done // max(1, of)
        bar = f"[{'#' * full}{'.' * (BAR - full)}] {done} of {of}  {now}".rstrip()
        cut = bar if len(bar) <= WIDTH else f"{bar[: WIDTH - 3]}..."
        self._show([*self._lines.values()], cut)


class _InTerminal:
    """Shows lines and below them the last one, which it writes over, until no more is to come."""

    def __init__(self) -> None:
        self._shown, self._last = 0, ""

    def __call__(self, lines: Sequence[str], last: str) -> None:
        for line in lines[self._shown :]:
            sys.stdout.write(f"\r{line.ljust(len(self._last))}\n")
            self._last = ""
        self._shown = len(lines)
        if last != self._last:
            sys.stdout.write(f"\r{last.ljust(len(self._last))}")
            self._last = last
        if "." not in last.partition("]")[0]:
            sys.stdout.write("\n")
        sys.stdout.flush()


def _in_notebook() -> Callable[[Sequence[str], str], None] | None:
    """The same in one output of a cell, which stays clean in files too; None outside of a notebook."""
    if not _notebook():
        return None
    from IPython.display import Pretty, display

    handle = display(Pretty(""), display_id=True)
    return lambda lines, last: handle.update(Pretty("\n".join([*lines, last])))


def _notebook() -> Any:
    """IPython's shell where it is that of a notebook's kernel; else None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if getattr(shell, "kernel", None) else None
