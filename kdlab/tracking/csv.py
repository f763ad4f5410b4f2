"""Plain CSV files in `csv/<plan>/` of runs: `jobs.csv`, and a folder a job with its curves and settings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.jobs.events import JobEvaluated, JobProgress
from kdlab.jobs.files import csv_text, write_text
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.status import State
from kdlab.tracking.base import News, flat, values


class Csv:
    """The files of a plan. A line of a curve is an event, with its time in Unix seconds.

    Curves grow by whole checkpoints. The first command after a kill replaces them by what the log says.

    Args:
        runs: where the jobs are.
    """

    def __init__(self, runs: Runs) -> None:
        self._folder = runs.folder / "csv"

    def sent(self, plan: Plan) -> set[str]:
        """The marks in the settings of jobs."""
        files = [self._folder / plan.id / planned.job.id / "settings.csv" for planned in plan.jobs]
        # without a mark, as in a damaged file, the job is told again from its beginning
        return {row["mark"] for path in files if path.exists() for row in _rows(path)[:1] if "mark" in row}

    def job(self, plan: Plan, news: News) -> None:
        """Add to the curves, then write the settings, which hold the mark."""
        job, folder = news.job, self._folder / plan.id / news.job.id
        folder.mkdir(parents=True, exist_ok=True)
        for name, kind in (("training", JobProgress), ("evaluation", JobEvaluated)):
            events = [event for event in news.events if isinstance(event, kind) and values(event)]
            rows = [
                {"time": each.time, "epoch": each.epoch, "iteration": each.iteration, **values(each)}
                for each in events
            ]
            _add(folder / f"{name}.csv", rows, afresh=news.afresh)
        told = {"mark": news.mark, "job": job.id, "arm": job.arm, "seed": job.seed, "state": news.state}
        write_text(folder / "settings.csv", _text([told | flat(job.spec.model_dump(mode="json"))]))

    def plan(self, plan: Plan, states: Mapping[str, State], mark: str, files: Sequence[Path]) -> None:
        """Write which jobs there are."""
        jobs = [each.job for each in plan.jobs]
        rows = [
            {"job": job.id, "kind": job.kind, "arm": job.arm, "seed": job.seed, "state": states[job.id]}
            for job in jobs
        ]
        (self._folder / plan.id).mkdir(parents=True, exist_ok=True)
        write_text(self._folder / plan.id / "jobs.csv", _text(rows))


def _add(path: Path, rows: Sequence[Mapping[str, Any]], *, afresh: bool) -> None:
    """Append to a file; it is replaced where it begins afresh or gets another column."""
    old = [] if afresh or not path.exists() else _rows(path)
    if afresh or not old or {*old[0]} != {key for row in rows for key in row}:
        write_text(path, _text([*old, *rows]))
    elif rows:
        with path.open("a", newline="") as file:
            file.write(csv_text([row.get(name, "") for name in old[0]] for row in rows))


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none of one that is damaged."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        return []
    return rows if all(None not in row and None not in row.values() for row in rows) else []


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of all their columns."""
    names = [*dict.fromkeys(key for row in rows for key in row)]
    return csv_text([names, *([row.get(name, "") for name in names] for row in rows)])
