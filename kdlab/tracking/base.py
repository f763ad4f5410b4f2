"""A tracker, and the thread that tells it what jobs say while a plan runs.

What a tracker has is remembered in this process alone. What is in doubt is told again, and must count once.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

from kdlab.deadline import Answer, within
from kdlab.jobs.events import (
    Event,
    JobCheckpointed,
    JobEvaluated,
    JobProgress,
    from_line,
    is_line_end,
    settled,
)
from kdlab.jobs.job import Job
from kdlab.jobs.lease import try_lock
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan
from kdlab.jobs.status import State, state_of
from kdlab.redaction import masked

ANSWER_S = 30.0
"""Seconds in which a tracking server has to answer a command that waits for it, as a whole."""
SENT_LATER = "the next kdlab run or kdlab ui sends it"
REST, LONGEST_REST_S = 40, 30.0
"""A turn is followed by so many times the CPU time that it took, so that many jobs cost no more than few."""


@dataclass(frozen=True)
class News:
    """Events of a job that no resume undoes.

    Args:
        job: whose.
        paths: its folder.
        state: how far it got.
        first: event of the whole log; a job that runs anew begins another log.
        mark: changes with the log and the state.
        events: since the last call, up to a checkpoint; of a finished job up to its end.
        afresh: `events` are all that there are.
    """

    job: Job
    paths: JobPaths
    state: State
    first: Event
    mark: str
    events: Sequence[Event] = ()
    afresh: bool = True

    @classmethod
    def of(cls, job: Job, paths: JobPaths, state: State) -> Self | None:
        """How a job stands, without its events; None where it never said anything."""
        try:
            with paths.events.open("rb") as log:
                first = next((event for line in log if (event := from_line(line)) is not None), None)
                size = log.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return None
        if first is None:
            return None
        return cls(job, paths, state, first, f"{job.id} {ms(first)} {state} {size}")


class Tracker(Protocol):
    """Keeps what jobs say; an instance serves one plan, from one thread."""

    def sent(self, plan: Plan) -> Collection[str]:
        """The marks of jobs and plans that it has whole, as far as it can tell at once."""

    def job(self, plan: Plan, news: News) -> None:
        """Take what a job said, some of it perhaps again, and keep the mark of one that has ended.

        Raises:
            Refused: for this job alone.
            Exception: the tracker is out of reach.
        """

    def plan(self, plan: Plan, states: Mapping[str, State], mark: str, files: Sequence[Path]) -> None:
        """Take how far the jobs are, and files to attach; keep the mark of a plan that has ended."""


class Refused(Exception):  # noqa: N818  what happened, and no fault of ours
    """A tracker does not take what it was told of one job."""


class Unfit(Exception):  # noqa: N818  what is so, until a person changes it
    """A tracker that will take nothing, however often it is told; `fix` says what to do."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(frozen=True)
class Lacking:
    """What a tracker did not get: something of so many `jobs`, `why`, and what sends it."""

    tracker: str
    jobs: int
    why: str
    fix: str = SENT_LATER


def followers(plan: Plan, runs: Runs) -> list[Follower]:
    """A follower at work for each tracker that the recipe names: `mlflow` is `Mlflow` in its file."""
    keys = dict.fromkeys(plan.recipe.get("resources", {}).get("trackers", ["mlflow"]))
    found = {key: getattr(importlib.import_module(f"kdlab.tracking.{key}"), key.title()) for key in keys}
    return [Follower(key, tracker(runs), plan, runs) for key, tracker in found.items()]


class Follower:
    """Observer of a plan that tells a tracker every few seconds, from a thread of its own.

    Where several commands drive one plan, one of them tells the tracker. `plan` may be replaced by one that
    has grown. Two turns are `every_s` apart, at least.
    """

    def __init__(self, key: str, tracker: Tracker, plan: Plan, runs: Runs, every_s: float = 5.0) -> None:
        self.plan = plan
        self._key, self._tracker, self._runs, self._every_s = key, tracker, runs, every_s
        self._touched = {planned.job.id for planned in plan.jobs}
        self._behind: set[str] = set()
        self._states: dict[str, State] = {}
        self._marks: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        self._sent: Collection[str] | None = None
        self._files: Sequence[Path] = ()
        self._lock: IO[bytes] | None = None
        self._why, self._fix = "", SENT_LATER
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"kdlab-{key}", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Note that a job has news; what no checkpoint covers is none yet."""
        if not isinstance(event, JobProgress | JobEvaluated):
            self._touched.add(event.job)

    def close(self, until: float = math.inf, files: Sequence[Path] = ()) -> Lacking | None:
        """Tell the tracker the end, with files to attach to the plan; what it lacks, None where it has all.

        Nothing is waited for after `until`, by `time.monotonic`.
        """
        self._files = files
        self._closing.set()
        self._thread.join(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))
        why = "slow to answer" if self._thread.is_alive() else self._why
        lacks = [job for job in self._behind | self._touched if self._runs.job(job).events.exists()]
        return Lacking(self._key, len(lacks), why, self._fix) if why else None

    def _follow(self) -> None:
        rest_s = self._every_s
        while not self._closing.wait(rest_s):
            began = time.thread_time()
            self._turn()
            rest_s = max(self._every_s, min(LONGEST_REST_S, REST * (time.thread_time() - began)))
        self._turn()
        if self._lock:
            self._lock.close()

    def _turn(self) -> None:
        """Tell the tracker what it lacks, unless another command does."""
        self._why, self._fix = "", SENT_LATER
        try:
            if self._lock is None:
                lock = (self._runs.plans / f"{self.plan.id}.{self._key}.lock").open("ab")
                if not try_lock(lock.fileno(), fcntl.LOCK_EX):
                    lock.close()
                    return
                self._lock = lock
            self._tell(self.plan, self._files)
        except Exception as error:  # whatever a tracker runs into, training goes on
            self._why = one_line(error)
            self._fix = error.fix if isinstance(error, Unfit) else SENT_LATER

    def _tell(self, plan: Plan, files: Sequence[Path]) -> None:
        # before anything is read: what happens from here on is for the next turn
        self._behind |= (touched := self._touched.copy())
        self._touched -= touched
        now = self._stand(plan)
        self._behind &= {news.job.id for news in now}
        self._marks |= {news.job.id: news.mark for news in now}
        parts = [json.dumps(self._marks, sort_keys=True).encode(), *(path.read_bytes() for path in files)]
        mark = " ".join([plan.id, *(hashlib.sha256(part).hexdigest()[:16] for part in parts)])
        if self._sent is None:
            self._sent = self._tracker.sent(plan)
        if any(whole.startswith(mark) for whole in self._sent):
            self._behind.clear()
            return
        for news in now:
            try:
                if news.mark not in self._sent:
                    # where this fails, the next call begins at the first event
                    start = self._offsets.pop(job := news.job.id, 0)
                    finished = news.state is State.DONE
                    start, events, end = settled_events(news.paths.events, start, finished=finished)
                    self._tracker.job(plan, replace(news, events=events, afresh=start == 0))
                    self._offsets[job] = end
                self._behind.discard(news.job.id)
            except Refused as refusal:
                self._why = one_line(refusal)
        jobs = [planned.job.id for planned in plan.jobs]
        self._tracker.plan(plan, {job: self._states.get(job, State.QUEUED) for job in jobs}, mark, files)

    def _stand(self, plan: Plan) -> list[News]:
        """The jobs of which the tracker lacks something, as they stand, but for those that said nothing."""
        jobs = [planned.job for planned in plan.jobs if planned.job.id in self._behind]
        self._states |= {job.id: state_of(job, self._runs.job(job.id)) for job in jobs}
        found = [News.of(job, self._runs.job(job.id), self._states[job.id]) for job in jobs]
        return [news for news in found if news]


def answer(ask: Callable[[], Answer]) -> Answer:
    """What a server answers in `ANSWER_S` as a whole: a timeout of a connection begins anew with every byte.

    Raises:
        TimeoutError: it has not.
        Exception: what asking raises.
    """
    return within(ANSWER_S, ask)


def settled_events(log: Path, start: int, *, finished: bool) -> tuple[int, list[Event], int]:
    """Events that no resume undoes, from byte `start` of a log on; from its first byte where it was cut.

    Those behind the last checkpoint are undone by the next resume, where the job has not finished.

    Returns:
        Where the events begin, the events, and where the next ones will begin.
    """
    with log.open("rb") as file:
        start = end = start if is_line_end(file, start) else 0
        file.seek(start)
        ends: dict[int, tuple[Event, int]] = {}
        for line in file:
            end += len(line)
            if line.endswith(b"\n") and (event := from_line(line)) is not None:
                ends[id(event)] = event, end
    events = settled(event for event, _ in ends.values())
    while events and not (finished or isinstance(events[-1], JobCheckpointed)):
        events.pop()
    return start, events, ends[id(events[-1])][1] if events else start


def values(event: Event) -> dict[str, float]:
    """The points of curves in an event; none where it is no report."""
    match event:
        # a job that only measures has no curve of training
        case JobProgress() if event.losses:
            losses = {f"train/{term}": value for term, value in event.losses.items()}
            return losses | {"lr": event.lr, "step_s": event.step_s, "data_s": event.data_s}
        case JobEvaluated():
            return {f"val/{metric}": value for metric, value in event.metrics.items()}
    return {}


def ms(event: Event) -> int:
    """When something happened, in Unix milliseconds."""
    return round(1000 * event.time)


def flat(value: Any, prefix: str = "", depth: int = 99) -> dict[str, str]:
    """Nested settings by dotted key: "schedule.lr" -> "0.01"; those below `depth` as JSON."""
    if not (isinstance(value, dict) and value and depth):
        return {prefix: value if isinstance(value, str) else json.dumps(value, default=str)}
    found: dict[str, str] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}.{name}" if prefix else str(name), depth - 1)
    return found


def one_line(error: Exception) -> str:
    """What went wrong in one line, without the secrets that an address may hold."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return masked(line.partition(" with exception ")[0])[:200]
