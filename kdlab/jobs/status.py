"""Status of jobs: the one fold over a job's events and the other files of its folder.

A board pushes events into it as they happen; whoever comes from another shell has it read the files, each
time from where it stopped before. Both get the same object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from kdlab.errors import Fault
from kdlab.jobs import gate
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobCheckpointed,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobProgress,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobStarted,
    JobWaiting,
    read_from,
)
from kdlab.jobs.files import read_if_whole
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process, holder, newest_attempt
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.result import JobResult

TAIL_LINES = 15
_TAIL_BYTES = 16384
_END_BYTES = 1 << 16
"""Of a log, where its last events are."""


class State(StrEnum):
    """States of a job, in the order in which a person wants to see them."""

    RUNNING = "running"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    QUEUED = "queued"
    SKIPPED = "skipped"
    PRUNED = "pruned"
    DONE = "done"

    @property
    def active(self) -> bool:
        """Whether the job will go on by itself while its plan is driven."""
        return self in (State.RUNNING, State.QUEUED)

    @property
    def startable(self) -> bool:
        """Whether a `kdlab run` starts the job, for the first time or again."""
        return self in (State.QUEUED, State.INTERRUPTED, State.CANCELLED)


_STATES: dict[type[Event], State] = {
    JobQueued: State.QUEUED,
    JobRetried: State.QUEUED,
    JobStarted: State.RUNNING,
    JobProgress: State.RUNNING,
    JobReused: State.DONE,
    JobFinished: State.DONE,
    JobFailed: State.FAILED,
    JobCancelled: State.CANCELLED,
    JobSkipped: State.SKIPPED,
}


@dataclass
class JobStatus:
    """What is known of one job. One thread may fold events into it while another draws it.

    Args:
        job: as planned; its arm counts, for a result shared by several recipes keeps its first one's names.
        cost_s: what the plan expects it to take, None where it does not know.
        state: how far it is.
        attempt: the number of its newest process, 0 before the first.
        started: how that process began, None before it has said so.
        last: its last report on training.
        ap: of the last evaluation, 0 to 100.
        measured: the epoch of that; 0 before the first one.
        best_ap: the highest so far, and `best_epoch` the epoch of that.
        saved: the last iteration that was checkpointed.
        end: the event that ended it.
        pruned: whether a search has ended it.
        result: what it found, once its files were read.
        handle: its newest start, whether that still runs or not.
        process: what works on it now.
        in_queue: whether a cluster has it in its queue.
        waits_for: devices that it needs and who holds them, where that keeps it.
        offset: the byte of its log up to which events were read.
    """

    job: Job
    cost_s: float | None = None
    state: State = State.QUEUED
    attempt: int = 0
    started: JobStarted | None = None
    last: JobProgress | None = None
    ap: float | None = None
    measured: int = 0
    best_ap: float = 0.0
    best_epoch: int = 0
    saved: int = 0
    end: Event | None = None
    pruned: bool = False
    result: JobResult | None = None
    handle: Handle | None = None
    process: Process | None = None
    in_queue: bool = False
    waits_for: str = ""
    offset: int = field(default=0, repr=False)

    def see(self, event: Event) -> None:
        """Fold in an event of this job."""
        self.state = _STATES.get(type(event), self.state)
        self.waits_for = event.why if isinstance(event, JobWaiting) else ""
        match event:
            case JobStarted():
                self.started, self.last, self.end = event, None, None
                self.saved = event.iteration
            case JobProgress():
                self.last = event
            case JobEvaluated(metrics=metrics, epoch=epoch):
                self.ap, self.measured = metrics.get("AP"), epoch
                self.best_ap, self.best_epoch = max(
                    (self.best_ap, self.best_epoch), (metrics.get("AP", 0.0), epoch)
                )
            case JobCheckpointed(iteration=iteration):
                self.saved = iteration
            case JobReused(metrics=metrics) | JobFinished(metrics=metrics):
                self.ap, self.end = metrics.get("AP"), event
            case JobFailed() | JobSkipped():
                self.end = event
            case JobCancelled(iteration=iteration):
                self.saved, self.end = iteration, event
                if self.pruned:
                    self.state = State.PRUNED

    def follow(self, paths: JobPaths) -> list[Event]:
        """Fold in what the job's log holds beyond `offset`; these events."""
        log = read_from(paths.events, self.offset)
        self.offset = log.offset
        # another job's log may lie here, as a copy that went wrong
        own = [event for event in log.events if event.job == self.job.id]
        for event in own:
            self.see(event)
        return own

    def forget(self) -> None:
        """Drop what an earlier process said of itself: another one begins."""
        self.started = self.last = self.end = None

    def locate(self, paths: JobPaths) -> None:
        """Find who has the job now: a process, or a cluster that has yet to start one."""
        handle, process = Handle.read(paths), None
        if handle and handle.process and not handle.in_process and handle.process.alive():
            process = handle.process
        # loader processes of a killed leader can hold its lock a while
        elif (info := holder(paths)) and not (info.process.here and not info.process.alive()):
            process = info.process
        self.attempt, self.handle, self.process = newest_attempt(paths), handle, process
        self.in_queue = False
        if handle and handle.ref and not process and not paths.stop_request.exists():
            # no process took the lease since the job was handed in
            began_ns = paths.lease.stat().st_mtime_ns if self.attempt else 0
            self.in_queue = began_ns < paths.handle.stat().st_mtime_ns

    def look(self, paths: JobPaths) -> None:
        """Bring all up to date from the job's folder; of a job that is done its result tells all."""
        if self.result or self._finished(paths):
            return
        self.follow(paths)
        self.locate(paths)
        if self.process:
            if self.state is not State.RUNNING:
                self.forget()
            self.state = State.RUNNING
        elif self.in_queue and not paths.failure.exists():
            self.state = State.QUEUED
        # a process that ended just now may have left a result since
        elif self._finished(paths):
            return
        elif failure := self.failure(paths):
            self.see(failure)
        elif isinstance(self.end, JobCancelled):
            self.state = State.CANCELLED
        else:
            begun = self.at or self.handle
            self.state = State.INTERRUPTED if begun else State.QUEUED

    def finish(self, result: JobResult) -> None:
        """Take in what the job found; a teacher that misses what is expected has failed."""
        self.result, self.process, self.in_queue = result, None, False
        fault = gate.fault(self.job, result.metrics)
        if fault:
            self.see(JobFailed(job=self.job.id, **asdict(fault), after_s=result.wall_s))
        else:
            self.see(JobFinished(job=self.job.id, metrics=result.metrics, wall_s=result.wall_s))

    def failed(self, paths: JobPaths, fault: Fault, after_s: float, kind: str = "") -> JobFailed:
        """How the job failed: the fault, where training stood, and the end of the log."""
        stood = f"iteration {self.iteration}" if self.iteration else "before the first step"
        return JobFailed(
            job=self.job.id,
            attempt=newest_attempt(paths),
            **asdict(fault) | {"where": fault.where or stood},
            kind=kind,
            after_s=after_s,
            log=str(paths.log),
            tail=_tail(paths.log),
        )

    def failure(self, paths: JobPaths) -> JobFailed | None:
        """How the job says that it failed, in `failure.json` or its last event; None where it does not."""
        data = read_if_whole(paths.failure, dict)
        if not data and isinstance(self.end, JobFailed):
            data = asdict(self.end)
        if not data:
            return None
        fault = Fault(**{part.name: str(data.get(part.name) or "") for part in fields(Fault)})
        after_s = data.get("after_s")
        known_s = float(after_s) if isinstance(after_s, int | float) else 0.0
        return self.failed(paths, fault, known_s, str(data.get("kind") or ""))

    @property
    def at_work(self) -> bool:
        """Whether somebody has the job: a process, or a cluster in its queue."""
        return self.process is not None or self.in_queue

    @property
    def away(self) -> bool:
        """Whether it is, or will be, on a host that need not be this one."""
        cluster = self.handle is not None and bool(self.handle.ref)
        return self.at_work and (cluster or self.process is None or not self.process.here)

    @property
    def devices(self) -> tuple[str, ...]:
        """Core numbers or GPU UUIDs of this machine that it has."""
        handle, process = self.handle, self.process
        here = handle and process and process.here and process == handle.process
        return handle.devices if handle and here else ()

    @property
    def lost(self) -> bool:
        """Whether what needs it cannot run."""
        return self.state in (State.FAILED, State.SKIPPED)

    @property
    def at(self) -> JobStarted | JobProgress | None:
        """Its last report on training, or how its process began; None before that."""
        return self.last or self.started

    @property
    def iteration(self) -> int:
        """The last iteration that was reported."""
        return self.at.iteration if self.at else 0

    @property
    def fraction(self) -> float:
        """How much of the training or measuring is done, 0 to 1."""
        return self.at.iteration / self.at.iterations if self.at and self.at.iterations else 0.0

    @property
    def epoch(self) -> str:
        """The epoch under way, "5/12"; "" before the first process began."""
        if self.at is None:
            return ""
        done = self.at.iteration * self.at.epochs // max(1, self.at.iterations)
        return f"{min(self.at.epochs, done + 1)}/{self.at.epochs}"

    @property
    def ends_at(self) -> float | None:
        """When it will end as it says itself, in Unix seconds."""
        return self.last.time + self.last.eta_s if self.last else None

    def left_s(self, now: float) -> float | None:
        """Seconds until it ends, by its own word or else its cost; None where nobody knows."""
        if not self.state.active:
            return 0.0
        if self.state is State.RUNNING and self.ends_at:
            return max(0.0, self.ends_at - now)
        if self.cost_s is None or self.started is None:
            return self.cost_s
        return max(0.0, self.cost_s * (1 - self.fraction))

    def _finished(self, paths: JobPaths) -> bool:
        """Take the result in, if there is one."""
        if result := JobResult.read(paths):
            self.finish(result)
        return result is not None


def of_plan(plan: Plan, runs: Runs) -> list[JobStatus]:
    """Status of each job of a plan, in its order, as its files tell it now."""
    found = {planned.job.id: JobStatus(planned.job, planned.cost_s) for planned in plan.jobs}
    look_at(plan, runs, found)
    return list(found.values())


def look_at(plan: Plan, runs: Runs, jobs: Mapping[str, JobStatus]) -> None:
    """Bring the jobs of a plan up to date, and draw from each what follows for the others.

    Args:
        plan: which.
        runs: where its jobs are.
        jobs: their status by id, parents before children.
    """
    for status in jobs.values():
        paths = runs.job(status.job.id)
        status.look(paths)
        lost = [jobs[parent] for parent in status.job.parents if parent in jobs and jobs[parent].lost]
        if lost and status.state is State.QUEUED and not status.in_queue:
            word = "failed" if lost[0].state is State.FAILED else "was skipped"
            why = f"it needs {lost[0].job.label}, which {word}"
            status.see(JobSkipped(job=status.job.id, why=why))
        stopped = status.state in (State.CANCELLED, State.INTERRUPTED) and paths.stop_request.exists()
        if plan.is_search and stopped and not any(paths.checkpoints.glob("*")):
            status.state = State.PRUNED


def state_of(job: Job, paths: JobPaths) -> State:
    """State of a job alone, from the end of its log: cheap, however often one asks and however long it is."""
    if paths.result.exists():
        return State.DONE
    size = paths.events.stat().st_size if paths.events.exists() else 0
    status = JobStatus(job, offset=max(0, size - _END_BYTES))
    status.look(paths)
    return status.state


def _tail(log: Path) -> tuple[str, ...]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(lines[-TAIL_LINES:])
