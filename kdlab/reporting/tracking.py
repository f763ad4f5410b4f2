"""MLflow follows the files of jobs: what it lacks is sent, by whoever comes next, and nothing twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdlab.jobs.events import last_in
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.result import JobResult
from kdlab.jobs.status import State, state_of
from kdlab.reporting import mlflow_store
from kdlab.reporting.ledger import STATUS, Entry, Ledger, plan_status, snapshot
from kdlab.reporting.points import Point, began_ms, key, segments

_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
_TAG_CHARACTERS, _PARAM_CHARACTERS = 5000, 6000


@dataclass(frozen=True)
class SyncReport:
    """What a sync did.

    Args:
        sent: points that the server accepted.
        left: points that are ready and were not sent.
        error: what stopped it, in one line; "" where nothing did.
    """

    sent: int = 0
    left: int = 0
    error: str = ""


def sync(
    plan: Plan,
    runs: Runs,
    *,
    store: str | None = None,
    deadline_s: float | None = None,
    files: Sequence[Path] = (),
) -> SyncReport:
    """Send what the server lacks of a plan: a run for the plan and, below it, one for each job with a log.

    A job that an earlier plan sent stays there; the plan names it in the tag `kdlab.reuses`. Where the
    server has everything this returns without importing mlflow.

    Args:
        plan: which.
        runs: where the jobs are; `tracking/` in it remembers what the server has.
        store: address of the MLflow server or database, by default `MLFLOW_TRACKING_URI`, else
            `mlflow.db` in `runs`.
        deadline_s: seconds after which the rest is left for later; None sends everything.
        files: tables and plots to attach to the run of the plan.

    Returns:
        What was sent. A server that is away or another sync under way is told in it, never raised.
    """
    sender = _Sender(plan, runs, store, deadline_s, files)
    if not sender.behind():
        return SyncReport()
    try:
        with _alone(runs.folder / "tracking.lock") as alone, mlflow_store.no_mlruns_here():
            if not alone:
                return SyncReport(0, sender.left(), "another kdlab command is sending to MLflow")
            sender.send()
    except Exception as error:  # whatever a tracker runs into, training and reports go on
        sender.error = mlflow_store.one_line(error)
    # counting reads every log again: only where something may be left
    return SyncReport(sender.sent, 0 if sender.complete else sender.left(), sender.error)


def left(plan: Plan, runs: Runs, store: str | None = None) -> int:
    """How many points of a plan are ready and not sent."""
    return _Sender(plan, runs, store).left()


class _Sender:
    """One sync of one plan."""

    def __init__(
        self,
        plan: Plan,
        runs: Runs,
        store: str | None,
        deadline_s: float | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        self.sent, self.error, self.complete = 0, "", False
        self._plan, self._name = plan, f"plan-{plan.id}"
        self._jobs = [planned.job for planned in plan.jobs]
        self._runs, self._files = runs, files
        self._ledger = Ledger(runs, store or os.environ.get("MLFLOW_TRACKING_URI") or None)
        self._until = math.inf if deadline_s is None else time.monotonic() + deadline_s

    def behind(self) -> bool:
        """Whether the server lacks anything; looks at a few small files only."""
        return bool(self._jobs_behind()) or self._ledger.read(self._name).seen != self._plan_seen()

    def _jobs_behind(self) -> list[Job]:
        return [job for job in self._jobs if self._ledger.behind(job)]

    def left(self) -> int:
        """How many points are ready and not sent."""
        count = 0
        for job in self._jobs_behind():
            paths, offset = self._runs.job(job.id), self._ledger.read(job.id).offset
            found = segments(paths.events, offset, finished=paths.result.exists())
            count += sum(len(segment.points) for segment in found)
        return count

    def send(self) -> None:
        """Send what is behind until the time is over. What the server refuses for one run stops no other."""
        self._client = mlflow_store.client(self._ledger)
        self._experiment = mlflow_store.experiment(
            self._client, f"kdlab/{self._plan.recipe['name']}", self._ledger
        )
        self._open_plan()
        for job in self._jobs_behind():
            if time.monotonic() < self._until:
                self._trying(job.id, partial(self._send_job, job))
        in_time = time.monotonic() < self._until
        self._trying(self._name, self._send_plan)
        self.complete = in_time and not self.error

    def _trying(self, name: str, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:
            if getattr(error, "error_code", "") not in _REFUSALS:
                raise
            # Its run was deleted by hand, say: the next sync looks for it and else makes another.
            self._ledger.forget(name)
            self.error = self.error or mlflow_store.one_line(error)

    def _send_job(self, job: Job) -> None:
        """Send a job's points, one segment after the other, and its end."""
        paths = self._runs.job(job.id)
        # Looked at before anything is read: what is written from here on is for the next sync.
        seen, state = snapshot(job, paths), state_of(job, paths)
        entry = self._ledger.read(job.id)
        began = began_ms(paths.events, entry.began_ms)
        if began is not None and entry.began_ms != began:
            entry = self._open_job(job, began)
            entry.began_ms = began
            self._ledger.write(job.id, entry)
        for segment in segments(paths.events, entry.offset, finished=state is State.DONE):
            self._log(entry.run_id, segment.points)
            entry.offset = segment.end
            self._ledger.write(job.id, entry)
            if time.monotonic() >= self._until:
                return
        if entry.status != STATUS[state]:
            self._end_job(entry.run_id, paths, state)
        entry.status, entry.seen = STATUS[state], seen
        self._ledger.write(job.id, entry)

    def _open_job(self, job: Job, began: int) -> Entry:
        """The entry of the job's run, which is found by its tags or made."""
        tags = {"kdlab.kind": job.kind, "kdlab.job": job.id, "kdlab.began": str(began)}
        more = {
            "kdlab.plan": self._plan.id,
            "kdlab.arm": job.arm,
            "kdlab.seed": str(job.seed),
            "mlflow.parentRunId": self._ledger.read(self._name).run_id,
        }
        return self._open_run(tags, more, job.label, began, _flat(job.spec.model_dump(mode="json")))

    def _end_job(self, run_id: str, paths: JobPaths, state: State) -> None:
        """Send a job's state and, where it ended, what it left behind."""
        if state.active:
            self._client.update_run(run_id, status=STATUS[state])
            return
        ended = _last_ms(paths)
        result = JobResult.read(paths)
        if result is not None:
            step = int(result.history[-1]["iteration"]) if result.history else 0
            classes = result.per_class.items()
            self._log(run_id, [Point(key(f"val/AP/{name}"), value, ended, step) for name, value in classes])
            for name in ("commit", "device"):
                self._client.set_tag(run_id, f"kdlab.{name}", str(result.environment.get(name, "")))
        for path in (paths.config, paths.result, paths.log):
            if path.exists():
                self._client.log_artifact(run_id, str(path))
        self._client.set_terminated(run_id, STATUS[state], end_time=ended)

    def _plan_seen(self) -> dict[str, Any]:
        """What the run of the plan should show: how far it is, the jobs of earlier plans, the files."""
        plans = {job.id: self._ledger.read(job.id).plan for job in self._jobs}
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files}
        sent = self._ledger.read(self._name).seen or {"files": {}}
        return {
            "status": plan_status({state_of(job, self._runs.job(job.id)) for job in self._jobs}),
            "reuses": [job for job, plan in plans.items() if plan not in ("", self._plan.id)],
            "files": {**sent["files"], **files},
        }

    def _open_plan(self) -> None:
        """Find or make the run of the plan."""
        if self._ledger.read(self._name).run_id:
            return
        recipe = self._plan.recipe
        tags = {"kdlab.kind": "plan", "kdlab.plan": self._plan.id}
        command = f"kdlab run {recipe['name']}"
        name = f"{recipe['name']} {self._plan.id}"
        more = {"kdlab.recipe": recipe["name"], "mlflow.source.name": command}
        settings = _flat(recipe, depth=2)
        entry = self._open_run(tags, more, name, self._saved_ms(), settings)
        self._ledger.write(self._name, entry)

    def _send_plan(self) -> None:
        """Attach files, link what earlier plans sent and say how far the plan is."""
        entry, seen = self._ledger.read(self._name), self._plan_seen()
        if entry.seen == seen:
            return
        for path in self._files:
            self._client.log_artifact(entry.run_id, str(path))
        if seen["reuses"]:
            self._client.set_tag(entry.run_id, "kdlab.reuses", ",".join(seen["reuses"])[:_TAG_CHARACTERS])
        if seen["status"] == "RUNNING":
            self._client.update_run(entry.run_id, status="RUNNING")
        else:
            ended = max(self._saved_ms(), *(_last_ms(self._runs.job(job.id)) for job in self._jobs))
            self._client.set_terminated(entry.run_id, seen["status"], end_time=ended)
        entry.seen = seen
        self._ledger.write(self._name, entry)

    def _saved_ms(self) -> int:
        """When the plan was last written down, in Unix milliseconds."""
        path = self._plan.path(self._runs)
        return round(1000 * (path.stat().st_mtime if path.exists() else time.time()))

    def _open_run(
        self, tags: dict[str, str], more: dict[str, str], name: str, start_ms: int, settings: dict[str, Any]
    ) -> Entry:
        """The entry of the run that has all `tags`, or else of a new one that has `more` besides."""
        wanted = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = next(mlflow_store.runs_of(self._client, wanted), None)
        new = (self._experiment, start_ms, {**tags, **more}, name)
        run = found or self._client.create_run(*new)
        params = {key(setting): text for setting, text in settings.items()}
        lacking = {name: text for name, text in params.items() if name not in run.data.params}
        mlflow_store.log_params(self._client, run.info.run_id, lacking)
        return Entry(self._ledger.store, run.info.run_id, run.data.tags["kdlab.plan"])

    def _log(self, run_id: str, points: Sequence[Point]) -> None:
        for sent in mlflow_store.log_points(self._client, run_id, points):
            self.sent += sent


def _last_ms(paths: JobPaths) -> int:
    """When a job last said something, in Unix milliseconds; 0 where it never did."""
    event = last_in(paths.events)
    return 0 if event is None else round(1000 * event.time)


def _flat(value: Any, prefix: str = "", depth: int = 99) -> dict[str, str]:
    """Nested settings as MLflow's parameters: "schedule.lr" -> "0.01"; deeper ones as JSON."""
    if isinstance(value, dict) and value and depth:
        parts = (
            _flat(inner, f"{prefix}.{name}" if prefix else str(name), depth - 1)
            for name, inner in value.items()
        )
        return {name: text for part in parts for name, text in part.items()}
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return {prefix: text[:_PARAM_CHARACTERS]}


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other process or thread is in here; holds the lock on `path` until the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
