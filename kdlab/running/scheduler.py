"""Plan + executor -> events: order, reuse, adoption, retry and stopping live here and only here."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from kdlab.errors import Fault, MachineError
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobQueued,
    JobRetried,
    JobReused,
    JobSkipped,
    JobWaiting,
)
from kdlab.jobs.lease import holder
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.running import backfill
from kdlab.running.backfill import Request
from kdlab.running.executors.base import Executor, ExecutorRegistry
from kdlab.running.task import Task

GRACE_S = 120.0
LOOK_S = 1.0
"""Between two looks for free devices while nothing ends."""
UNKNOWN_S = 3600.0
"""Expected length of a job where nothing is known of any."""

Feed = Callable[[int], Sequence[PlannedJob]]
"""Told how many jobs wait and run, gives more or, for now, none; what they need is known already."""


def run(
    plan: Plan,
    executor: Executor,
    runs: Runs,
    *,
    fail_fast: bool = False,
    jobs_at_once: int | None = None,
    retries: int = 2,
    poll_s: float = 0.2,
    grace_s: float = GRACE_S,
    stop: threading.Event | None = None,
    kill: threading.Event | None = None,
    feed: Feed = lambda active: (),
) -> Generator[Event, None, None]:
    """Bring every job of a plan to its result; ends when all are done, failed, cancelled or skipped.

    First each job is `JobQueued` or `JobReused`. Then come the events of the jobs as they run, from the start
    of their history for those that ran already and were adopted. Each queued job ends in exactly one of
    `JobFinished`, `JobReused` (another scheduler did it), `JobFailed`, `JobCancelled` or `JobSkipped`, unless
    `stop` left it queued. A teacher that misses what its recipe expects has failed, and nothing more starts.
    Closing the iterator stops the running jobs, but for those of another command that is still there;
    SIGKILL of this process stops none.

    Args:
        plan: what to run; a job that has a result is reused whatever the plan says of it.
        executor: how to run it.
        runs: where the job folders are.
        fail_fast: end everything after the first failure.
        jobs_at_once: how many jobs may run side by side; None for what the devices allow.
        retries: how often a job goes on from its checkpoint after its process was killed.
        poll_s: seconds between two looks at the running jobs.
        grace_s: seconds a job has to write its checkpoint when it is stopped.
        stop: set it to stop the running jobs and end.
        kill: set it to kill the running jobs and end.
        feed: asked for more jobs at first and whenever one has ended, until it gives none and nothing runs.

    Raises:
        MachineError: a job never fits on this machine, or the runs folder cannot be written.
    """
    schedule = _Schedule(
        executor,
        runs,
        fail_fast,
        jobs_at_once or sys.maxsize,
        retries,
        grace_s,
        stop or threading.Event(),
        kill or threading.Event(),
        feed,
    )
    try:
        yield from schedule.admit(plan.jobs)
        yield from schedule.ask_for_more()
        while not schedule.over:
            yield from schedule.step()
            # Not stop.wait(): it can deadlock with a signal handler that sets the event in this thread.
            time.sleep(0 if schedule.over else poll_s)
    except OSError as error:
        raise MachineError(
            "the runs folder cannot be used",
            where=str(runs.folder),
            got=f"{error.strerror or error}: {error.filename or runs.folder}",
            fix="make room or get permission there, or choose another folder with KDLAB_RUNS",
        ) from error
    finally:
        schedule.abandon(poll_s)


@dataclass
class _Schedule:
    """The jobs of one `run`, with its arguments: those that wait, those that run, those that are done."""

    executor: Executor
    runs: Runs
    fail_fast: bool
    jobs_at_once: int
    retries: int
    grace_s: float
    stop: threading.Event
    kill: threading.Event
    feed: Feed
    _tasks: dict[str, Task] = field(default_factory=dict)
    _costs: dict[str, float] = field(default_factory=dict)
    _urgency: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, Task] = field(default_factory=dict)
    _running: dict[str, Task] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    _look_at: float = 0.0
    _held: dict[str, str] = field(default_factory=dict)
    _failed: bool = False
    _teacher_missed: bool = False

    def __post_init__(self) -> None:
        self._registry = ExecutorRegistry(self.executor)

    @property
    def ending(self) -> bool:
        """Whether nothing more should start."""
        return self.stop.is_set() or self.kill.is_set() or (self.fail_fast and self._failed)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return not self._running and (self.ending or not self._waiting)

    def admit(self, jobs: Sequence[PlannedJob]) -> Iterator[Event]:
        """Take stock of new jobs: which are done, which others run already, which are left to start."""
        new = [Task(each.job, self.runs.job(each.job.id)) for each in jobs]
        self._tasks |= {task.job.id: task for task in new}
        costs = _costs_s(jobs, self._tasks)
        self._costs |= costs
        requests = [Request(each.job.id, 1.0, costs[each.job.id], each.job.parents) for each in jobs]
        self._urgency |= _urgency_s(jobs, requests)
        stock, left = [], []
        for task in new:
            if reused := task.reused():
                self._done.add(task.job.id)
            else:
                left.append(task)
            stock.append(reused or task.says(JobQueued))
        histories = [task.adopt(self._registry) for task in left]
        self._check_fit(left)
        for task in left:
            if task.handle:
                self._running[task.job.id] = task
            else:
                self._waiting[task.job.id] = task
                task.prepare()
        yield from chain(stock, *histories)
        for task in left:
            if task.job.id in self._waiting and (missed := task.missed()):
                yield from self._settle(task, missed)

    def ask_for_more(self) -> Iterator[Event]:
        """Admit what the feed gives, as long as it gives any; what is done already makes room at once."""
        while not self.ending and (more := self.feed(len(self._waiting) + len(self._running))):
            yield from self.admit(more)

    def step(self) -> Iterator[Event]:
        """One look at everything."""
        if self.ending:
            self._cancel_all()
        for task in self._running.values():
            yield from task.follow()
        for job, code in self._ended().items():
            task = self._running.pop(job)
            yield from task.follow()
            yield from self._settle(task, task.outcome(code, self.retries))
            self._look_at = 0.0
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            for task in self._ready():
                # somebody asked it to stop before it started
                if task.paths.stop_request.exists():
                    del self._waiting[task.job.id]
                    end = task.says(JobCancelled, iteration=task.status.saved)
                    yield from self._settle(task, end)
            yield from self.ask_for_more()
            yield from self._start()
            # what another scheduler has done by now has made room
            yield from self.ask_for_more()

    def abandon(self, poll_s: float) -> None:
        """Stop what still runs and wait for its end."""
        while self._running:
            self._cancel_all()
            for job in self._ended():
                del self._running[job]
            time.sleep(poll_s)

    def _check_fit(self, tasks: Sequence[Task]) -> None:
        faults = [
            Fault(
                "the job does not fit on this machine",
                where=f"{task.job.label} ({task.job.id})",
                got=f"gpus: {task.job.resources.gpus}, threads: {task.job.resources.threads}",
                fix="lower schedule.gpus, or see what is there: kdlab doctor",
            )
            for task in tasks
            if task.handle is None and self.executor.slots(task.job) == 0
        ]
        if faults:
            raise MachineError(faults=faults)

    def _start(self) -> Iterator[Event]:
        """Start what is ready and fits, in the order of backfill scheduling."""
        machine, costs = self.executor.machine, self._costs
        running = [
            Request(job, backfill.size_of(task.job, machine), task.left_s(costs[job]))
            for job, task in self._on_machine().items()
        ]
        ready = [
            Request(task.job.id, backfill.size_of(task.job, machine), costs[task.job.id])
            for task in sorted(self._ready(), key=lambda task: -self._urgency[task.job.id])
        ]
        for request in backfill.startable(ready, running, backfill.capacity_of(machine)):
            if self.ending or len(self._on_machine()) >= self.jobs_at_once:
                return
            task = self._tasks[request.id]
            events = task.begin(self.executor, self._registry)
            if task.handle:
                self._running[request.id] = self._waiting.pop(request.id)
            elif not events:
                yield from self._waits(task)
                # its devices are in other hands; what would overtake it could keep them so
                if self._on_machine():
                    return
            for event in events:
                yield from self._settle(task, event)
                # another scheduler has done it, and maybe what comes next too
                self._look_at = 0.0

    def _on_machine(self) -> dict[str, Task]:
        """The running jobs that have devices of this machine, whoever started them; others are elsewhere."""
        is_own = self._registry.is_own
        return {job: task for job, task in self._running.items() if task.handle and is_own(task.handle)}

    def _waits(self, task: Task) -> Iterator[Event]:
        """Tell who has the devices of a job, once it has waited for the same from one look to the next."""
        why = self.executor.waits_for(task.job)
        if why and why == self._held.get(task.job.id) and why != task.status.waits_for:
            event = task.says(JobWaiting, why=why)
            task.status.see(event)
            yield event
        self._held[task.job.id] = why

    def _ready(self) -> list[Task]:
        """Those that wait for devices alone."""
        return [task for task in self._waiting.values() if self._done.issuperset(task.job.parents)]

    def _settle(self, task: Task, event: Event) -> Iterator[Event]:
        """Tell an event and draw what follows from it for the other jobs."""
        yield event
        match event:
            case JobReused() | JobFinished():
                self._waiting.pop(task.job.id, None)
                self._done.add(task.job.id)
            case JobRetried():
                self._waiting[task.job.id] = task
            case JobFailed():
                self._failed = True
                self._teacher_missed |= task.missed() is not None
                yield from self._skip(task, "failed")
            case JobCancelled():
                yield from self._skip(task, "was cancelled")

    def _skip(self, lost: Task, word: str) -> Iterator[Event]:
        """Give up what needs a lost job; all that waits with `fail_fast` or for want of a teacher."""
        self._waiting.pop(lost.job.id, None)
        gone = {lost.job.id}
        name = f"{lost.job.label} ({lost.job.id})"
        for task in [task for job, task in self._tasks.items() if job in self._waiting]:
            if not gone.isdisjoint(task.job.parents):
                why = f"it needs {name}, which {word}"
            elif self._teacher_missed:
                why = f"{name} misses teacher.expect_ap"
            elif self.fail_fast and self._failed:
                why = f"{name} {word}, and --fail-fast is on"
            else:
                continue
            gone.add(task.job.id)
            del self._waiting[task.job.id]
            yield task.says(JobSkipped, why=why)

    def _ended(self) -> dict[str, int | None]:
        """Exit codes of the running jobs that have ended.

        Those on other hosts or in a notebook are known by their leases; `kill` lets go of them.
        """
        handles = {job: task.handle for job, task in self._running.items() if task.handle}
        ended = self._registry.ended(handles)
        for job, handle in handles.items():
            if self._registry.of(handle) is None and (
                self.kill.is_set() or not holder(self._tasks[job].paths)
            ):
                ended[job] = None
        return ended

    def _cancel_all(self) -> None:
        grace_s = 0.0 if self.kill.is_set() else self.grace_s
        for job, task in [*self._running.items()]:
            handle = task.handle
            if handle is None or handle.is_anothers:
                # who started it goes on with it
                del self._running[job]
                continue
            task.cancelled = True
            executor = self._registry.of(handle)
            if executor:
                executor.cancel(handle, grace_s)
            if executor is None or not handle.here:
                # a signal may not reach it, or only after a while
                task.paths.stop_request.touch()


def _costs_s(jobs: Sequence[PlannedJob], known_jobs: Collection[str]) -> dict[str, float]:
    """Expected seconds of each job; what is not known is like the others.

    Raises:
        ValueError: a job needs one that is not among the known ones.
    """
    known = [planned.cost_s for planned in jobs if planned.cost_s]
    usual = sum(known) / len(known) if known else UNKNOWN_S
    costs = {each.job.id: usual if each.cost_s is None else each.cost_s for each in jobs}
    # what is done waits for nothing
    needed = {parent for each in jobs if not each.done for parent in each.job.parents}
    if unknown := needed - set(known_jobs):
        raise ValueError(f"the plan lacks jobs that others need: {', '.join(sorted(unknown))}")
    return costs


def _urgency_s(jobs: Sequence[PlannedJob], requests: Sequence[Request]) -> dict[str, float]:
    """Backfill's, with baselines as urgent as the longest arm: without them no arm has a gain."""
    found = backfill.urgency(requests)
    students = [each.job for each in jobs if each.job.is_student]
    longest = max((found[job.id] for job in students if job.parents), default=0.0)
    return found | {job.id: max(longest, found[job.id]) for job in students if not job.parents}
