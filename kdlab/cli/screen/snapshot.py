"""A plan as it stands, by the files of its jobs alone: nobody needs to run it for that."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdlab import catalog
from kdlab.cli.screen.console import duration
from kdlab.cli.screen.places import Place, place
from kdlab.cli.screen.progress import JobView, PlanView
from kdlab.devices import Machine, detect
from kdlab.jobs.events import JobFailed, JobFinished
from kdlab.jobs.lease import LeaseInfo
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.running.driver import Driver
from kdlab.running.task import Task

STATES = ("running", "failed", "interrupted", "queued", "skipped", "pruned", "done")
"""In the order in which a person wants to see them."""


@dataclass(frozen=True)
class Seen:
    """A job as it was last seen.

    Args:
        view: what is known of it; its state is one of `STATES`.
        place: where it runs or waits, None where nobody has it.
        attempt: the number of its newest process, 0 before the first.
        note: why it is in that state, or what came of it.
    """

    view: JobView
    place: Place | None
    attempt: int
    note: str

    def to_dict(self, now: float) -> dict[str, Any]:
        """The job as plain data."""
        view, at = self.view, self.view.last or self.view.started
        running = view.state == "running"
        return {
            "id": view.job.id,
            "label": view.job.label,
            "arm": view.job.arm,
            "seed": view.job.seed,
            "state": view.state,
            "where": self.place.told if self.place else "",
            "epoch": view.epoch,
            "iteration": at.iteration if at else 0,
            "iterations": at.iterations if at else None,
            "AP": view.ap,
            "eta_s": view.left_s(now) if running else None,
            "attempt": self.attempt,
            "note": self.note,
        }


class Snapshot:
    """A plan that can be looked at again and again; each look reads what is new.

    Args:
        plan: which.
        runs: where its jobs are.
    """

    def __init__(self, plan: Plan, runs: Runs) -> None:
        self.plan, self._runs = plan, runs
        self._tasks = {each.job.id: Task(each.job, runs.job(each.job.id)) for each in plan.jobs}
        self.view = PlanView(plan, Machine(()))
        self.driver: Driver | None = None
        self._seen: dict[str, Seen] = {}
        self.look()

    def look(self) -> None:
        """Bring everything up to date."""
        self.driver = Driver.of(self.plan.id, self._runs)
        for job, task in self._tasks.items():
            if job not in self._seen or self._seen[job].view.state != "done":
                self._seen[job] = self._look_at(task)

    @property
    def driven(self) -> bool:
        """Whether a `kdlab run` brings the plan to its end now."""
        return self.driver is not None and self.driver.at_work

    @property
    def over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return not self.driven and all(seen.place is None for seen in self._seen.values())

    @property
    def counts(self) -> Counter[str]:
        """How many jobs there are in each state."""
        return self.view.counts

    @property
    def jobs(self) -> Sequence[Seen]:
        """The jobs, first those that somebody should look at, else in the plan's order."""
        return sorted(self._seen.values(), key=lambda seen: STATES.index(seen.view.state))

    def of(self, job_id: str) -> Seen:
        """One job."""
        return self._seen[job_id]

    def left_s(self, now: float) -> float | None:
        """Seconds until the plan ends; None where nobody knows, nobody drives it, or a cluster has it."""
        away = any(seen.place and seen.place.away for seen in self._seen.values())
        if away or not self.driven:
            return None
        self.view.machine = self._machine
        return self.view.left_s(now)

    def to_dict(self) -> dict[str, Any]:
        """The plan's state as plain data."""
        now = time.time()
        return {
            "plan": self.plan.id,
            "recipe": self.plan.recipe["name"],
            "driven": self.driven,
            "command": self.command,
            "counts": {state: self.counts[state] for state in STATES},
            "eta_s": self.left_s(now),
            "jobs": [seen.to_dict(now) for seen in self.jobs],
        }

    @property
    def command(self) -> str:
        """What a person types to go on with the plan."""
        told = self.plan.recipe
        if self.driver and self.driver.command:
            return self.driver.command
        named = told["name"] in catalog.recipes() or not Path(told.get("path", "")).is_file()
        verb = "tune" if self.searches else "run"
        return f"kdlab {verb} {told['name'] if named else told['path']}"

    @property
    def searches(self) -> bool:
        """Whether the plan is that of a search."""
        return "study" in self.plan.recipe

    def _look_at(self, task: Task) -> Seen:
        view = self.view.jobs[task.job.id]
        # of a job that is done its result tells all
        done = task.paths.result.exists()
        for event in () if done else task.follow():
            view.see(event)
        where = None if done else place(task.job, task.paths, self._numbers(task))
        lease = LeaseInfo.read(task.paths)
        attempt = lease.attempt if lease else 0
        if where is None or where.waits:
            return Seen(view, where, attempt, self._at_rest(task, view, where))
        if view.state != "running":
            # what an earlier process said holds no longer
            view.started = view.last = view.end = None
            view.state = "running"
        return Seen(view, where, attempt, f"attempt {attempt}" if attempt > 1 else "")

    def _at_rest(self, task: Task, view: JobView, where: Place | None) -> str:
        """Find the state of a job that nobody works on; the note on it."""
        paths = task.paths
        if where and not (paths.result.exists() or paths.failure.exists()):
            view.state = "queued"
            return where.waits
        # by its files alone a killed job can always go on
        event = task.outcome(None, retries=sys.maxsize)
        if isinstance(event, JobFinished | JobFailed):
            view.see(event)
            return event.what if isinstance(event, JobFailed) else duration(event.wall_s)
        if not view.started and not paths.handle.exists():
            return self._waiting(view)
        if self.searches and paths.stop_request.exists() and not any(paths.checkpoints.glob("*")):
            view.state = "pruned"
            return f"AP {view.ap or 0:.1f} after epoch {view.measured} promised too little"
        view.state = "interrupted"
        return f"checkpoint at iteration {task.saved}" if task.saved else "no checkpoint yet"

    def _waiting(self, view: JobView) -> str:
        """Whether a job still waits for its turn, or has lost a parent."""
        parents = [self.view.jobs[job] for job in view.job.parents if job in self.view.jobs]
        lost = [parent for parent in parents if parent.state in ("failed", "skipped")]
        view.state = "skipped" if lost else "queued"
        return f"it needs {lost[0].job.label}, which {_WORDS[lost[0].state]}" if lost else ""

    def _numbers(self, task: Task) -> dict[str, int]:
        """The numbers of this machine's GPUs, by UUID; nobody is asked before a job has some."""
        if not task.job.resources.gpus or not task.paths.handle.exists():
            return {}
        return {gpu.uuid: gpu.index for gpu in self._machine.gpus}

    @cached_property
    def _machine(self) -> Machine:
        return detect()


_WORDS = {"failed": "failed", "skipped": "was skipped"}
