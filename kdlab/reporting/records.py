"""Plan -> Records: what became of each job, read from the files of the jobs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdlab import catalog
from kdlab.errors import MachineError, UsageError, suggestion
from kdlab.jobs.events import Event, JobCancelled, JobFailed, JobQueued, JobSkipped, last_in
from kdlab.jobs.job import Job
from kdlab.jobs.lease import holder
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.result import JobResult
from kdlab.reporting.index import Index

State = Literal["pending", "running", "interrupted", "done", "failed", "cancelled", "skipped"]

_QUICKSTART = "kdlab run digits/quickstart"


@dataclass(frozen=True)
class Record:
    """A job of a plan and what is known of it.

    Args:
        job: as planned; its arm counts, for a result shared by several recipes keeps its first one's names.
        state: how far the job got.
        result: what it found, None unless `state` is "done".
    """

    job: Job
    state: State
    result: JobResult | None


def collect(plan: Mapping[str, Any], runs: Runs, index: Index | None = None) -> list[Record]:
    """One record a job of a plan, in the plan's order; the finished ones carry their result.

    Args:
        plan: content of the plan's file.
        runs: where the jobs are.
        index: where to take results from, without their history and losses; None reads them whole.
    """
    jobs = [Job.from_dict(planned["job"]) for planned in plan["jobs"]]
    if index is None:
        read = {job.id: JobResult.read(runs.job(job.id)) for job in jobs}
        results = {job: result for job, result in read.items() if result is not None}
    else:
        results = index.results(job.id for job in jobs)
    return [
        Record(job, "done" if job.id in results else job_state(runs.job(job.id)), results.get(job.id))
        for job in jobs
    ]


def job_state(paths: JobPaths) -> State:
    """How far a job got by its files; "interrupted" where its process died without a word."""
    if paths.result.exists():
        return "done"
    last = last_event(paths)
    match last:
        case JobFailed():
            return "failed"
        case JobCancelled():
            return "cancelled"
        case JobSkipped():
            return "skipped"
    if paths.failure.exists():
        return "failed"
    if last is None or isinstance(last, JobQueued):
        return "pending"
    return "running" if holder(paths) else "interrupted"


def last_event(paths: JobPaths) -> Event | None:
    """The last thing a job said, None where it said nothing yet; reads the end of its log only."""
    return last_in(paths.events)


def newest_plan(runs: Runs, *, searches: bool = True) -> dict[str, Any] | None:
    """The plan that was saved last, None where nothing was run yet.

    Args:
        runs: where the plans are.
        searches: False passes over those of `kdlab tune`, which compare nothing.
    """
    plans = map(_read, _plan_files(runs))
    return next((plan for plan in plans if searches or not _is_search(plan)), None)


def all_plans(runs: Runs) -> list[dict[str, Any]]:
    """All plans, the newest first."""
    return [_read(path) for path in _plan_files(runs)]


def load_plan(runs: Runs, name: str, *, searches: bool = True) -> dict[str, Any]:
    """The plan whose id begins with `name`, else the newest plan of the recipe called `name`.

    Args:
        runs: where the plans are.
        name: of a recipe, or the beginning of an id.
        searches: as for `newest_plan`.

    Raises:
        UsageError: no plan fits, or the beginning of an id fits several.
    """
    files = _plan_files(runs)
    fitting = [path for path in files if name and path.stem.startswith(name)]
    if len(fitting) > 1:
        known = [path.stem for path in fitting]
        what = f"{name} begins the ids of {len(fitting)} plans"
        raise UsageError(what, got=name, known=", ".join(known), fix=f"name one: {known[0]}")
    if fitting:
        return _compared(_read(fitting[0]), searches)
    plans = [plan for plan in map(_read, files) if searches or not _is_search(plan)]
    for plan in plans:
        if plan["recipe"]["name"] == name:
            return plan
    known = [*dict.fromkeys(plan["recipe"]["name"] for plan in plans), *(path.stem for path in files)]
    raise UsageError(
        f"no plan in {runs.plans} is called {name!r}",
        got=name,
        known=", ".join(known) or "none yet",
        fix=_run_it(name) or suggestion(name, known) or ("kdlab ls runs" if known else _QUICKSTART),
    )


def _is_search(plan: Mapping[str, Any]) -> bool:
    return "study" in plan["recipe"]


def _compared(plan: dict[str, Any], searches: bool) -> dict[str, Any]:
    if _is_search(plan) and not searches:
        what = f"plan {plan['id']} is a search: its trials are compared by kdlab tune"
        raise UsageError(what, got=plan["id"], fix=plan["recipe"]["command"])
    return plan


def _run_it(name: str) -> str:
    return f"kdlab run {name}" if name in catalog.recipes() else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        fix = "remove it, and run its recipe again: what is trained is reused"
        raise MachineError("a plan's file is damaged", where=str(path), got=str(error), fix=fix) from error
    return plan


def _plan_files(runs: Runs) -> list[Path]:
    """The files of all plans, the newest first."""
    return sorted(runs.plans.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
