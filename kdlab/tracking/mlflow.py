"""MLflow's server or database, with live curves.

This file alone imports mlflow, which takes seconds, and only where it must.

MLflow knows a point by run, key, time, step and value, so one that is sent again counts once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from kdlab.jobs.events import (
    Event,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobProgress,
    JobStarted,
    last_in,
)
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.result import JobResult
from kdlab.jobs.status import State
from kdlab.redaction import masked
from kdlab.tracking.base import News, Refused, Unfit, flat, ms, one_line, settled_events, values

SPACING_S = 5.0
"""Of the points of one training curve in this many seconds, the last one is kept."""
STATUS = {"queued": "SCHEDULED", "running": "RUNNING", "done": "FINISHED", "failed": "FAILED"}
"""What MLflow calls the states of a job; KILLED are the others."""
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # a server that is away must not hold up the end of a plan; the next turn tries again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
_TAG_CHARACTERS, _PARAM_CHARACTERS = 5000, 6000
_SENT = "kdlab.sent"

Point = tuple[str, float, int, int]
"""Key, value, Unix milliseconds and step, which is the iteration."""


class Mlflow:
    """Runs of one plan: one for the plan and, below it, one for each job that said anything.

    A job that another plan sent stays there, and the plan names it in the tag `kdlab.reuses`.

    Args:
        runs: where the jobs are and, without `MLFLOW_TRACKING_URI`, `mlflow.db`.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs, self.database = runs, runs.folder.resolve() / "mlflow.db"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.database}"
        self.local = self.uri == f"sqlite:///{self.database}"
        self._known: dict[str, Any] = {}
        self._homes: dict[str, str] = {}
        self._shown: dict[str, Any] = {}

    @cached_property
    def client(self) -> Any:
        """A client that prints nothing and soon gives up; the database is made where there is none."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in ("alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=r"mlflow\b")
        from mlflow import MlflowClient

        if self.local and {*"%?"} & {*str(self.database)}:
            # an address has no other way to name the file, and MLflow would try for minutes
            fix = "set KDLAB_RUNS or MLFLOW_TRACKING_URI to a place without them"
            raise Unfit(f"no database of MLflow can lie below a folder with % or ?: {self.database}", fix)
        with self._alone():
            if self.local and not self.database.exists():
                # under another name until it is whole: who dies in a migration leaves no broken database
                draft = self.database.with_suffix(".draft")
                draft.unlink(missing_ok=True)
                MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
                draft.rename(self.database)
        client = MlflowClient(self.uri)
        with suppress(OSError):  # some versions make it where they stand, and leave it empty
            Path("mlruns").rmdir()
        return client

    def sent(self, plan: Plan) -> set[str]:
        """The marks in the database, read without mlflow; of a server, the one of the plan's run."""
        if not self.local:
            found = self.search(_plan_filter(plan))
            return {run.data.tags.get(_SENT, "") for run in found}
        marks: dict[str, str] = {}
        query = (
            "select sent.value, home.value "
            "from runs join tags sent using (run_uuid) join tags home using (run_uuid) "
            "where sent.key = ? and home.key = 'kdlab.plan' and lifecycle_stage = 'active'"
        )
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)) as database,
        ):
            marks = dict(database.execute(query, (_SENT,)))
        self._homes |= {mark.split()[0]: home for mark, home in marks.items()}
        return set(marks)

    def job(self, plan: Plan, news: News) -> None:
        """Send points, and the state with what an ended job left behind."""
        try:
            run = self._job_run(plan, news)
            if run.data.tags.get(_SENT) == news.mark:
                return
            self._send(run, metrics=points(news.events))
            if not news.state.active:
                # two plans may share the job, and MLflow refuses a tag that two set at once
                with self._alone():
                    self._end(run, news)
            elif self._shown.get(news.job.id) != news.state:
                self.client.update_run(run.info.run_id, status=STATUS[news.state])
                self.client.set_tag(run.info.run_id, _SENT, news.mark)
            self._shown[news.job.id] = news.state
        except Exception as error:
            if getattr(error, "error_code", "") in REFUSALS:
                raise Refused(one_line(error)) from error
            raise

    def plan(self, plan: Plan, states: Mapping[str, State], mark: str, files: Sequence[Path]) -> None:
        """Attach files, link what other plans sent, and say how far the plan is."""
        status, jobs = plan_status(states.values()), [planned.job.id for planned in plan.jobs]
        reuses = ",".join(job for job in jobs if self._homes.get(job, plan.id) != plan.id)
        shown = status, reuses, status != "RUNNING" and mark
        if self._shown.get(plan.id) == shown:
            return
        run = self._plan_run(plan)
        # looked for again where this fails: it may have been deleted by hand
        del self._known[plan.id]
        run_id = run.info.run_id
        for path in files:
            self.client.log_artifact(run_id, str(path))
        if reuses:
            self.client.set_tag(run_id, "kdlab.reuses", reuses[:_TAG_CHARACTERS])
        if status == "RUNNING":
            self.client.update_run(run_id, status=status)
            self.client.set_tag(run_id, _SENT, status)
        else:
            ends = [ms(event) for job in jobs if (event := last_in(self._runs.job(job).events))]
            self.client.set_terminated(run_id, status, end_time=max(ends, default=None))
            self.client.set_tag(run_id, _SENT, mark)
        self._known[plan.id], self._shown[plan.id] = run, shown

    def experiment_id(self, plan: Plan) -> str | None:
        """Id of the experiment of a plan's recipe, None where there is none."""
        found = self.client.get_experiment_by_name(f"kdlab/{plan.recipe['name']}")
        return str(found.experiment_id) if found else None

    def search(self, wanted: str) -> Iterator[Any]:
        """The runs in kdlab's experiments that MLflow's filter lets through, the newest first."""
        experiments = self.client.search_experiments(filter_string="name LIKE 'kdlab/%'")
        ids, token = [each.experiment_id for each in experiments], None
        newest = ["attributes.start_time DESC"]
        while ids:
            page = self.client.search_runs(ids, wanted, order_by=newest, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _job_run(self, plan: Plan, news: News) -> Any:
        """The run of a job's log: the one whose log began as this one did, or a new one."""
        job, began = news.job, str(ms(news.first))
        if not news.afresh and job.id in self._known:
            return self._known[job.id]
        tags = {
            "kdlab.kind": job.kind,
            "kdlab.job": job.id,
            "kdlab.began": began,
            "kdlab.plan": plan.id,
            "kdlab.arm": job.arm,
            "kdlab.seed": str(job.seed),
            "mlflow.parentRunId": self._plan_run(plan).info.run_id,
        }
        # a log that lost its beginning goes on in the newest run; a job can fail before it begins to train
        match news.first:
            case JobStarted(iteration=iteration):
                goes_on = iteration > 0
            case first:
                goes_on = not isinstance(first, JobFailed)

        def is_it(run: Any) -> bool:
            return goes_on or run.data.tags["kdlab.began"] == began

        wanted, settings = f"tags.`kdlab.job` = '{job.id}'", flat(job.spec.model_dump(mode="json"))
        new = {"start_time": int(began), "tags": tags, "run_name": job.label}
        run = self._run(plan, wanted, is_it, settings, **new)
        self._known[job.id], self._homes[job.id] = run, run.data.tags["kdlab.plan"]
        return run

    def _plan_run(self, plan: Plan) -> Any:
        if plan.id not in self._known:
            name = plan.recipe["name"]
            tags = {
                "kdlab.kind": "plan",
                "kdlab.plan": plan.id,
                "kdlab.recipe": name,
                "mlflow.source.name": f"kdlab run {shlex.quote(name)}",
            }
            new = {"tags": tags, "run_name": f"{name} {plan.id}"}
            self._known[plan.id] = self._run(
                plan, _plan_filter(plan), bool, flat(plan.recipe, depth=2), **new
            )
        return self._known[plan.id]

    def _run(
        self, plan: Plan, wanted: str, is_it: Callable[[Any], bool], settings: Mapping[str, str], **new: Any
    ) -> Any:
        """The newest run that fits, or a new one, complete with its parameters."""
        client = self.client
        with self._alone():
            run = next(filter(is_it, self.search(wanted)), None)
            if run is None:
                home = (self.database.parent / "mlartifacts").as_uri() if self.local else None
                name = f"kdlab/{plan.recipe['name']}"
                found = client.get_experiment_by_name(name)
                if found and found.lifecycle_stage != "active":
                    at, number = shlex.quote(masked(self.uri)), found.experiment_id
                    restore = f"MLFLOW_TRACKING_URI={at} mlflow experiments restore -x {number}"
                    fix = f"{restore}, then kdlab ui sends it"
                    raise Unfit(f"its experiment {name} was deleted", fix)
                experiment = found.experiment_id if found else client.create_experiment(name, home)
                run = client.create_run(experiment, **new)
            # two plans may share the job, and a database refuses a parameter that two write at once
            params = {key(name): text[:_PARAM_CHARACTERS] for name, text in settings.items()}
            self._send(run, params=[pair for pair in params.items() if pair[0] not in run.data.params])
        return run

    def _send(self, run: Any, params: Sequence[tuple[str, str]] = (), metrics: Iterable[Point] = ()) -> None:
        """Send parameters and points, as many at once as MLflow takes."""
        from mlflow.entities import Metric, Param

        run_id, lines = run.info.run_id, [Param(*one) for one in params]
        told = [Metric(*one) for one in metrics]
        for start in range(0, len(lines), 100):
            self.client.log_batch(run_id, params=lines[start : start + 100])
        for start in range(0, len(told), 1000):
            self.client.log_batch(run_id, metrics=told[start : start + 1000])

    def _end(self, run: Any, news: News) -> None:
        """Send how a job ended and what it left behind, and last of all the mark."""
        paths, run_id = news.paths, run.info.run_id
        if result := JobResult.read(paths):
            _, events, _ = settled_events(paths.events, 0, finished=True)
            last = next((event for event in reversed(events) if isinstance(event, JobEvaluated)), None)
            if last is not None:
                classes, when = result.last.per_class, (ms(last), last.iteration)
                keys = zip(class_keys([*classes]), classes.values(), strict=True)
                self._send(run, metrics=[(key(f"val/AP/{name}"), ap, *when) for name, ap in keys])
            for name in ("commit", "device"):
                self.client.set_tag(run_id, f"kdlab.{name}", str(result.environment.get(name, "")))
        for path in (paths.config, paths.result, paths.log):
            if path.exists():
                self.client.log_artifact(run_id, str(path))
        ended = last_in(paths.events) or news.first
        self.client.set_terminated(run_id, STATUS.get(news.state, "KILLED"), end_time=ms(ended))
        self.client.set_tag(run_id, _SENT, news.mark)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other command here make what this one looks for; not to be entered twice."""
        with (self._runs.folder / "mlflow.lock").open("ab") as file:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def points(events: Iterable[Event]) -> list[Point]:
    """The points of curves: of training the last ones in `SPACING_S` and before a checkpoint.

    Thinned by the log alone: whoever reads it, at once or from checkpoint to checkpoint, finds the same ones.
    """
    kept: dict[tuple[str, int, int], Point] = {}
    part = 0
    for event in events:
        part += isinstance(event, JobCheckpointed)
        if isinstance(event, JobProgress | JobEvaluated):
            place = int(event.time / SPACING_S) if isinstance(event, JobProgress) else event.iteration
            for name, value in values(event).items():
                kept[name, part, place] = key(name), value, ms(event), event.iteration
    return list(kept.values())


@cache
def key(name: str) -> str:
    """`name` in the characters that MLflow takes for keys ("cwd@neck" becomes "cwd:neck"), cut at 250."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", ":"))[:250]


def class_keys(names: Sequence[str]) -> list[str]:
    """Names of classes as parts of keys: no path, as "." and "w/" are to MLflow, and no two alike."""
    words = [re.sub(r"[/.]", "_", key(name)) for name in names]
    same = Counter(words)
    return [f"{word}_{place}" if same[word] > 1 else word for place, word in enumerate(words)]


def plan_status(states: Collection[State]) -> str:
    """What MLflow calls the state of a plan: that of its worst job, once none is running."""
    if {*states} == {"done"}:
        return "FINISHED"
    if "failed" in states and "running" not in states:
        return "FAILED"
    killed = {"cancelled", "interrupted", "skipped"} & {*states}
    return "KILLED" if killed and "running" not in states else "RUNNING"


def _plan_filter(plan: Plan) -> str:
    return f"tags.`kdlab.kind` = 'plan' and tags.`kdlab.plan` = '{plan.id}'"
