"""One job on its way to a result: its events and its end, judged by its files alone.

So it does not matter which scheduler started it, or whether one was there when it ended.
"""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdlab.errors import Fault
from kdlab.jobs import gate, store
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobRetried,
    JobReused,
    settled,
)
from kdlab.jobs.files import DISK_FULL, disk_full, write_json
from kdlab.jobs.handle import PREEMPTED, Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process, holder, newest_attempt, try_lock
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.jobs.status import JobStatus
from kdlab.planning import out_of_memory as memory
from kdlab.running.executors.base import Executor, ExecutorRegistry


@dataclass
class Task:
    """A job under a scheduler.

    Args:
        job: what it is.
        paths: its folder.
        handle: its process, while it runs.
        kills: how often its process was killed since it last got further.
        saved_before: the last iteration that was checkpointed when it was last killed.
        cancelled: this scheduler asked it to stop.
        status: what it said so far, since this scheduler knows it.
        begun: Unix seconds at which it was started here.
    """

    job: Job
    paths: JobPaths
    handle: Handle | None = None
    kills: int = 0
    saved_before: int = 0
    cancelled: bool = False
    status: JobStatus = field(init=False)
    begun: float = field(init=False, default_factory=time.time)

    def __post_init__(self) -> None:
        self.status = JobStatus(self.job)

    def says(self, kind: type[Event], /, **told: Any) -> Event:
        """An event of this job in its newest attempt."""
        return kind(job=self.job.id, attempt=newest_attempt(self.paths), **told)

    def left_s(self, cost_s: float) -> float:
        """Seconds until it ends: as it says itself, else as its cost lets one expect."""
        return max(0.0, (self.status.ends_at or self.began + cost_s) - time.time())

    @property
    def began(self) -> float:
        """Unix seconds at which the attempt began: as it says itself, else when it was started here."""
        return self.status.started.time if self.status.started else self.begun

    def prepare(self) -> None:
        """Write down what the job is, and forget an earlier wish to stop it."""
        self.paths.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.paths.job, self.job.to_dict())
        self.paths.stop_request.unlink(missing_ok=True)

    def reused(self) -> Event | None:
        """`JobReused` where there is a result already, and one that serves."""
        result = JobResult.read(self.paths)
        if result is None or gate.fault(self.job, result.metrics):
            return None
        remove_states(self.paths)
        return self.says(JobReused, metrics=result.metrics)

    def missed(self) -> Event | None:
        """`JobFailed` where there is a result and it is not what the recipe expects."""
        result = JobResult.read(self.paths)
        if result and (fault := gate.fault(self.job, result.metrics)):
            return self.says(JobFailed, **asdict(fault), after_s=result.wall_s)
        return None

    def adopt(self, registry: ExecutorRegistry) -> list[Event]:
        """Follow the job where it runs already: its history. `handle` is set then."""
        self.status.locate(self.paths)
        handle, process = self.status.handle, self.status.process
        starter = handle.starter if handle else None
        self.handle = Handle("", process, starter=starter) if process else None
        if process and handle and handle.process == process:
            self.handle = handle
        if handle and handle.ref:
            # one that has yet to take its lease is known by its cluster alone
            executor = registry.of(handle)
            if executor and not executor.poll({self.job.id: handle}):
                self.handle = handle
        if self.handle is None:
            return []
        return _without_ends(settled(self.status.follow(self.paths)))

    def begin(self, executor: Executor, registry: ExecutorRegistry) -> list[Event]:
        """Start the job, unless another scheduler did or even brought it to its end.

        Returns:
            What there is to tell at once. `handle` is set where it runs now; it waits where both are empty.
        """
        # a lock keeps other schedulers from starting it meanwhile
        with self.paths.handle.with_suffix(".lock").open("ab") as lock:
            if not try_lock(lock.fileno(), fcntl.LOCK_EX):
                return []
            if reused := self.reused():
                return [reused]
            history = self.adopt(registry)
            if self.handle:
                return history
            self.paths.failure.unlink(missing_ok=True)
            self.status.forget()
            self.status.offset = self.paths.events.stat().st_size if self.paths.events.exists() else 0
            self.begun = time.time()
            self.handle = executor.start(self.job, self.paths)
        return []

    def follow(self) -> list[Event]:
        """Events of the job since the last call; its end is left to `outcome`."""
        return _without_ends(self.status.follow(self.paths))

    def outcome(self, code: int | None, retries: int) -> Event:
        """The end of the process.

        Args:
            code: as `Executor.poll` gives it.
            retries: how many kills are forgiven without a checkpoint between them.

        Returns:
            `JobFinished`, `JobFailed` or `JobCancelled`; `JobRetried` where it should go on.
        """
        handle, self.handle = self.handle, None
        followed = handle is not None and not handle.ref and not (handle.executor and handle.here)
        known_dead = followed and self.kills > 0
        if missed := self.missed():
            return missed
        if result := JobResult.read(self.paths):
            remove_states(self.paths)
            if isinstance(self.status.end, JobFinished):
                return self.status.end
            return self.says(JobFinished, metrics=result.metrics, wall_s=result.wall_s)
        end = self._failed_by_itself(code) or self._stopped(code, handle)
        return end or self._died(code, retries, counts=not known_dead)

    def _failed_by_itself(self, code: int | None) -> Event | None:
        if code == PREEMPTED or _signal(code) == signal.SIGTERM:
            # who ended it ended its loader processes too, and it took their loss for a failure of its own
            return None
        failure = self.status.failure(self.paths)
        if failure and (shortage := store.shortage(self.paths)):
            if memory.crowded(self.job, shortage):
                self.job = replace(self.job, resources=replace(self.job.resources, share=1))
                return self.says(JobRetried, why="the GPU that it shared was full, so it gets one to itself")
            return replace(failure, fix=memory.advice(self.job, shortage))
        return failure

    def _stopped(self, code: int | None, handle: Handle | None) -> Event | None:
        wished = self.cancelled or self.paths.stop_request.exists()
        # a cluster that takes a job away asks it to stop just as a person does
        told = isinstance(self.status.end, JobCancelled) and code != PREEMPTED
        if not (wished or told or _signal(code) in (signal.SIGINT, signal.SIGTERM)):
            return None
        # a command that ends stops the jobs that it started; a person who means this one asks by file
        starter = handle.starter if handle and not handle.ref else None
        if starter and starter != Process.current() and not wished:
            return self.says(JobRetried, why="the command that started it stopped it")
        return self.says(JobCancelled, iteration=self.status.saved)

    def _died(self, code: int | None, retries: int, *, counts: bool) -> Event:
        number, after_s = _signal(code), time.time() - self.began
        fix = "the end of its log may tell"
        if code == DISK_FULL:
            return self.status.failed(self.paths, disk_full(self.paths.folder), after_s)
        if code not in (None, PREEMPTED) and number is None:
            # a scheduler that was killed between the start of a job and the note of it leaves its process
            if (other := holder(self.paths)) and other.shows_life():
                return self.says(JobRetried, why="another process works on it already")
            what = f"the process ended with exit code {code}, without a result and without a reason"
            return self.status.failed(self.paths, Fault(what, fix=fix), after_s)
        # the lease of a lost host, which was followed until it was stale, is no second loss
        if self.status.saved > self.saved_before:
            self.kills = 1
        else:
            self.kills += counts
        self.saved_before = self.status.saved
        how = "vanished" if code is None else "lost its machine or its GPU"
        if number:
            how = f"was killed ({number.name})"
        if self.kills <= retries:
            return self.says(JobRetried, why=f"the process {how}")
        times = f" {self.kills} times without getting further" if self.kills > 1 else ""
        fix += "; kdlab run again goes on from the last checkpoint"
        if code == PREEMPTED:
            fix += "; kdlab doctor and nvidia-smi, whether its GPU is broken"
        elif number in (signal.SIGKILL, None):
            fix = "most often the memory is full: run fewer jobs at once (-j 1) or lower schedule.batch_size"
        return self.status.failed(self.paths, Fault(f"the process {how}{times}", fix=fix), after_s)


def remove_states(paths: JobPaths) -> None:
    """Remove the training states of a job that nobody will go on with."""
    with suppress(OSError):
        for state in paths.checkpoints.glob("[0-9]*-*.pth"):
            state.unlink(missing_ok=True)


def _signal(code: int | None) -> signal.Signals | None:
    """The signal that ended a process, also in the form in which shells report it."""
    try:
        return signal.Signals(-code if code < 0 else code - 128) if code else None
    except ValueError:
        return None


def _without_ends(events: Iterable[Event]) -> list[Event]:
    """Events of a job but for its end, which `Task.outcome` judges."""
    return [event for event in events if not isinstance(event, JobFinished | JobFailed | JobCancelled)]
