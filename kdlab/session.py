"""Runs a plan: the loop over its events, its observers, and the signals that stop it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from kdlab.errors import MachineError
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobReused,
    JobSkipped,
    JobStarted,
    JobWaiting,
)
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.running import scheduler
from kdlab.running.driver import driving
from kdlab.running.executors.base import Executor
from kdlab.running.executors.inline import Inline
from kdlab.running.scheduler import Feed
from kdlab.tracking.base import Follower, Lacking, followers

TRACKING_S = 5.0
_ENDS = (JobReused, JobFinished, JobFailed, JobCancelled, JobSkipped)


@dataclass(frozen=True)
class Outcome:
    """The end of a plan.

    Args:
        ends: the last event of each job that ended, by id.
        complete: whether every job has a result.
        stopped_by: SIGINT or SIGTERM; None where it ran to its end.
        lacking: what trackers did not get.
    """

    ends: dict[str, Event]
    complete: bool
    stopped_by: signal.Signals | None
    lacking: tuple[Lacking, ...] = ()

    @property
    def failures(self) -> list[JobFailed]:
        """The jobs that failed."""
        return [event for event in self.ends.values() if isinstance(event, JobFailed)]


def drive(
    plan: Plan,
    executor: Executor,
    runs: Runs,
    observers: Sequence[Callable[[Event], None]] = (),
    *,
    fail_fast: bool = False,
    jobs_at_once: int | None = None,
    on_stop: Callable[[], None] = lambda: None,
    publish: Callable[[Outcome], Sequence[Path]] = lambda outcome: (),
    command: str = "",
    feed: Feed = lambda active: (),
) -> Outcome:
    """Bring a plan to its end, with the trackers of its recipe among the observers.

    The first Ctrl-C or SIGTERM lets the running jobs write a checkpoint and end, the second kills them.

    Args:
        plan: what to run.
        executor: how to run it.
        runs: where the job folders are.
        observers: each is called with every event.
        fail_fast: end everything after the first failure.
        jobs_at_once: how many jobs may run side by side; None for what the devices allow.
        on_stop: called at the first such signal, inside its handler.
        publish: called once the jobs have ended, before trackers get their last seconds; returns files to
            attach to the plan there.
        command: what a person types to go on, for `kdlab status` and `kdlab stop` in another shell.
        feed: gives the plan more jobs while it runs.

    Raises:
        MachineError: a job never fits on this machine, or the runs folder cannot be written.
    """
    _save(plan, runs)
    trackers = followers(plan, runs)

    def grow(active: int) -> Sequence[PlannedJob]:
        nonlocal plan
        if more := feed(active):
            known = {planned.job.id for planned in plan.jobs}
            new = [planned for planned in more if planned.job.id not in known]
            plan = replace(plan, jobs=(*plan.jobs, *new))
            _save(plan, runs)
            for tracker in trackers:
                tracker.plan = plan
        return more

    files: Sequence[Path] = ()
    try:
        with _Signals(on_stop) as signals, driving(plan.id, runs, command, jobs_at_once) as say:

            def tell_others(event: Event) -> None:
                if isinstance(event, JobWaiting | JobStarted):
                    say(event.why if isinstance(event, JobWaiting) else "")

            events = scheduler.run(
                plan,
                executor,
                runs,
                fail_fast=fail_fast,
                jobs_at_once=jobs_at_once,
                stop=signals.stop,
                kill=signals.kill,
                feed=grow,
            )
            ends = _watched(
                events, (*observers, tell_others, *trackers), signals, isinstance(executor, Inline)
            )
        done = [event for event in ends.values() if isinstance(event, JobReused | JobFinished)]
        outcome = Outcome(ends, len(done) == len(plan.jobs), signals.first)
        files = publish(outcome)
    finally:
        lacking = _closed(trackers, time.monotonic() + TRACKING_S, files)
    return replace(outcome, lacking=lacking)


def catch_up(plans: Iterable[Plan], runs: Runs, limit_s: float = math.inf) -> tuple[Lacking, ...]:
    """Tell trackers what they lack of plans, until one fails or the time is over; what they still lack."""
    until = time.monotonic() + limit_s
    for plan in plans:
        if lacking := _closed(followers(plan, runs), until):
            return lacking
    return ()


def _closed(trackers: Sequence[Follower], until: float, files: Sequence[Path] = ()) -> tuple[Lacking, ...]:
    return tuple(lacking for tracker in trackers if (lacking := tracker.close(until, files)))


def _save(plan: Plan, runs: Runs) -> None:
    try:
        plan.save(runs)
    except OSError as error:
        raise MachineError(
            "the runs folder cannot be written",
            where=str(runs.folder),
            got=str(error),
            fix="make room or get permission there, or choose another folder with KDLAB_RUNS",
        ) from error


class _Signals:
    """Ctrl-C and SIGTERM inside a `with`; threads other than the main one get none and change nothing."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self.stop, self.kill = threading.Event(), threading.Event()
        self.first: signal.Signals | None = None
        self._on_stop = on_stop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self.heed)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal handler: stop the jobs at the first call, kill them at the next."""
        if self.first:
            self.kill.set()
            return
        self.first = signal.Signals(number)
        self.stop.set()
        self._on_stop()


def _watched(
    events: Iterator[Event], observers: Sequence[Callable[[Event], None]], signals: _Signals, inline: bool
) -> dict[str, Event]:
    """Tell the observers every event; the last one of each job that ended."""
    ends: dict[str, Event] = {}
    # An observer that raises must not leave the jobs running until the iterator is collected.
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, _ENDS):
                ends[event.job] = event
            if inline and isinstance(event, JobCancelled) and not signals.first:
                # A job in this very process takes Ctrl-C for itself and then ends without a signal.
                signals.heed(signal.SIGINT)
            for observe in observers:
                observe(event)
    return ends
