"""A running plan as numbers: its events folded, and what is left of it in seconds.

One thread folds while another draws, so what is drawn reads each value once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from kdlab.devices import Machine
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobStarted,
)
from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.running import backfill as packing

_STATES: dict[type[Event], str] = {
    JobQueued: "queued",
    JobRetried: "queued",
    JobStarted: "running",
    JobReused: "done",
    JobFinished: "done",
    JobFailed: "failed",
    JobCancelled: "cancelled",
    JobSkipped: "skipped",
}


@dataclass
class JobView:
    """What is known of one job.

    Args:
        job: what it is.
        cost_s: what the plan expects it to take, None where it does not know.
        state: queued, running, done, failed, cancelled, skipped, or pruned by a search.
        started: how its newest process began.
        last: its last report on training.
        ap: of its last evaluation, 0 to 100.
        measured: the epoch of that; 0 before the first one.
        end: the event that ended it.
        hopeless: whether a search has ended it.
    """

    job: Job
    cost_s: float | None
    state: str = "queued"
    started: JobStarted | None = None
    last: JobProgress | None = None
    ap: float | None = None
    measured: int = 0
    end: Event | None = None
    hopeless: bool = False

    def see(self, event: Event) -> None:
        """Take an event of this job in."""
        if state := _STATES.get(type(event)):
            self.state = "pruned" if self.hopeless and state == "cancelled" else state
        match event:
            case JobStarted():
                self.started, self.last, self.end = event, None, None
            case JobProgress():
                self.last = event
            case JobEvaluated(metrics=metrics, epoch=epoch):
                self.ap, self.measured = metrics.get("AP"), epoch
            case JobReused(metrics=metrics) | JobFinished(metrics=metrics):
                self.ap, self.end = metrics.get("AP"), event
            case JobFailed() | JobCancelled() | JobSkipped():
                self.end = event

    @property
    def measures(self) -> bool:
        """Whether the job counts images that it measures on, and not steps of training."""
        return self.job.spec.counts == "images"

    @property
    def fraction(self) -> float:
        """How much of the training or measuring is done, 0 to 1."""
        at = self.last or self.started
        return at.iteration / at.iterations if at and at.iterations else 0.0

    @property
    def epoch(self) -> str:
        """The epoch under way, "5/12"; "" before the first process began."""
        at = self.last or self.started
        if at is None:
            return ""
        done = at.iteration * at.epochs // max(1, at.iterations)
        return f"{min(at.epochs, done + 1)}/{at.epochs}"

    @property
    def losses(self) -> tuple[float | None, dict[str, float]]:
        """The detector's own loss, and the weighted losses of the methods by instance."""
        last = self.last
        given = last.losses if last else {}
        if "loss" not in given:
            return None, {}
        names = [key.removeprefix("raw_") for key in given if key.startswith("raw_")]
        terms = {name: given[f"loss_{name}"] for name in names if f"loss_{name}" in given}
        return given["loss"] - sum(terms.values()), terms

    def left_s(self, now: float) -> float | None:
        """Seconds until it ends, None where nobody knows."""
        if self.state not in ("queued", "running"):
            return 0.0
        if self.state == "running" and (last := self.last):
            return max(0.0, last.eta_s - (now - last.time))
        if self.cost_s is None or self.started is None:
            return self.cost_s
        return max(0.0, self.cost_s * (1 - self.fraction))


@dataclass
class PlanView:
    """What is known of a plan.

    Args:
        plan: what runs.
        machine: what it runs on.
        jobs_at_once: a limit beside the machine's.
        to_come: jobs like its last one that it does not hold yet.
    """

    plan: Plan
    machine: Machine
    jobs_at_once: int | None = None
    to_come: int = 0
    jobs: dict[str, JobView] = field(init=False)
    ended: list[JobView] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        costs = {planned.job.id: planned.cost_s for planned in self.plan.jobs}
        self.jobs = {
            planned.job.id: JobView(planned.job, costs[planned.job.id]) for planned in self.plan.jobs
        }

    def grow(self, more: Sequence[PlannedJob], to_come: int) -> None:
        """Take in that the plan holds more jobs now, and how many are still to come."""
        new = {planned.job.id: JobView(planned.job, planned.cost_s) for planned in more}
        # another thread may be going through the old ones
        self.jobs, self.to_come = {**self.jobs, **new}, to_come

    def see(self, event: Event) -> JobView:
        """Take an event in; the job that it is about."""
        view = self.jobs[event.job]
        view.see(event)
        if isinstance(event, JobFinished):
            self._learn(view.job)
        if view.end is event and not isinstance(event, JobReused):
            self.ended.append(view)
        return view

    def of_state(self, state: str) -> list[JobView]:
        """The jobs in a state, in the plan's order."""
        return [view for view in self.jobs.values() if view.state == state]

    @property
    def counts(self) -> Counter[str]:
        """How many jobs there are in each state."""
        return Counter(view.state for view in self.jobs.values()) + Counter(queued=self.to_come)

    def left_s(self, now: float) -> float | None:
        """Seconds until the last job ends, None where one of them is unknown."""
        active = [view for view in self.jobs.values() if view.state in ("running", "queued")]
        left = {view.job.id: view.left_s(now) for view in active}
        known = {job: seconds for job, seconds in left.items() if seconds is not None}
        coming = self._coming()
        if len(known) < len(left) or coming is None:
            return None
        running = [view.job.id for view in active if view.state == "running"]
        jobs = [*(view.job for view in active), *(job for job, _ in coming)]
        known |= {job.id: cost_s for job, cost_s in coming}
        return makespan_s(known, jobs, self.machine, self.jobs_at_once, running)

    def _coming(self) -> list[tuple[Job, float]] | None:
        """Stand-ins for the jobs to come, with what such jobs took so far; None where none has ended."""
        if not self.to_come:
            return []
        last = [*self.jobs.values()][-1].job
        ended = [view for view in self.ended if view.job.kind == last.kind]
        times = [view.end.time - view.started.time for view in ended if view.end and view.started]
        if not times:
            return None
        return [
            (replace(last, id=f"to come {number}", parents=()), fmean(times))
            for number in range(self.to_come)
        ]

    def _learn(self, done: Job) -> None:
        """A job that ended tells what other seeds of its arm take, where the plan did not know."""
        walls = [
            view.end.wall_s
            for view in self.jobs.values()
            if view.job.arm == done.arm and isinstance(view.end, JobFinished)
        ]
        for view in self.of_state("queued"):
            if view.job.arm == done.arm and view.cost_s is None:
                view.cost_s = fmean(walls)


def makespan_s(
    left_s: Mapping[str, float],
    jobs: Sequence[Job],
    machine: Machine,
    jobs_at_once: int | None = None,
    running: Sequence[str] = (),
) -> float:
    """Seconds until all jobs are done, as the scheduler packs them.

    Args:
        left_s: seconds that each job still takes, by id.
        jobs: a parent that is not among them is done.
        machine: what there is to lease.
        jobs_at_once: a limit beside the machine's.
        running: ids of those that run already.
    """
    pieces = [
        packing.Piece(job.id, packing.size_of(job, machine), left_s[job.id], job.parents) for job in jobs
    ]
    held = {job: left_s[job] for job in running}
    return packing.makespan_s(pieces, packing.capacity_of(machine), held, jobs_at_once)
