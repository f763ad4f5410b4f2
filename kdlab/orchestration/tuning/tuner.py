"""Drives a study: feeds its trials to a scheduler as jobs, and tells it how they go.

A trial is a job, and what is known of a job is in its files. So a command that was killed needs no memory of
its own: the next one asks the study which trials began, and the files what became of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobReused,
    JobStarted,
)
from kdlab.jobs.job import Job, JobPaths, JobResult, Runs
from kdlab.jobs.lease import holder
from kdlab.orchestration import memory
from kdlab.orchestration.plan import PlannedJob, with_memory
from kdlab.orchestration.task import remove_states
from kdlab.orchestration.tuning import scale
from kdlab.orchestration.tuning.space import Dimension, published
from kdlab.orchestration.tuning.study import Asked, Study
from kdlab.orchestration.tuning.trials import NO_METHOD, Student, Trials

ALL_FAIL = 3
"""After so many failures and no success nothing more is tried."""


@dataclass
class _Trial:
    """A trial whose job waits or runs."""

    asked: Asked
    job: Job
    began: float | None = None
    failed: bool = False


@dataclass
class Tuner:
    """Feeds a scheduler, whose events it must be shown.

    Args:
        trials: makes the jobs.
        opened: opens the study, once it is known what is searched.
        runs: where the jobs are.
        count: how many trials there shall be, those of earlier commands among them.
        budget_s: seconds of devices after which no trial begins.
        at_once: how many of a job fit on the machine side by side.

    Its `study` is None until the jobs before the first trial are done, `pruned` holds the jobs that it
    ended early, and `driver_s` is what it took of a core itself. `stopping` ends the search and leaves its
    trials to the next command; it must be set before this one stops jobs.
    """

    trials: Trials
    opened: Callable[[tuple[Dimension, ...]], Study]
    runs: Runs
    count: int
    budget_s: float
    at_once: Callable[[Job], int]
    study: Study | None = field(default=None, init=False)
    space: tuple[Dimension, ...] = field(default=(), init=False)
    driver_s: float = field(default=0.0, init=False)
    stopping: bool = field(default=False, init=False)
    pruned: set[str] = field(default_factory=set, init=False)
    _peak_gb: float = field(default=0.0, init=False)
    _live: dict[int, _Trial] = field(default_factory=dict, init=False)
    _again: list[_Trial] = field(default_factory=list, init=False)

    def feed(self, active: int) -> Sequence[PlannedJob]:
        """The jobs that a scheduler should take on now, of which `active` wait or run already."""
        began = time.thread_time()
        try:
            return self._fed(active)
        finally:
            self.driver_s += time.thread_time() - began

    def see(self, event: Event) -> None:
        """Take in what happened to a job."""
        began = time.thread_time()
        if isinstance(event, JobCancelled) and event.job in self.pruned:
            remove_states(self.runs.job(event.job))
        for trial in list(self._live.values()):
            if trial.job.id == event.job:
                self._see(trial, event)
        self.driver_s += time.thread_time() - began

    @property
    def spent_s(self) -> float:
        """Seconds that trials have had devices, those of earlier commands among them."""
        ended = sum(trial.wall_s for trial in self.study.trials()) if self.study else 0.0
        begun = sum(_wall_s(trial) for trial in self._live.values())
        return (ended + begun) * max(1, self._usual.resources.gpus)

    @property
    def to_come(self) -> int:
        """How many trials are still to begin."""
        if self.study is None:
            return self.count
        return max(0, self.count - self.study.begun()) if self._may_begin() else 0

    @property
    def gives_up(self) -> bool:
        """Whether trials only fail."""
        states = [trial.state for trial in self.study.trials()] if self.study else []
        return states.count("failed") >= ALL_FAIL and set(states) <= {"failed", "running"}

    def latency_ms(self, student: Student) -> float:
        """What one image takes a student, as its own job has measured."""
        return 1000 * self._scales[student].timing["latency_s"]

    @cached_property
    def _scales(self) -> dict[Student, JobResult]:
        read = {
            student: JobResult.read(self.runs.job(job.id)) for student, job in self.trials.scales().items()
        }
        return {student: result for student, result in read.items() if result is not None}

    @cached_property
    def _usual(self) -> Job:
        """A job as all trials are, to a machine."""
        return self.trials.job(self.trials.usual(next(iter(self.trials.variants))))

    @cached_property
    def _needed(self) -> list[JobPaths]:
        return [self.runs.job(job.id) for job in self.trials.preparation()]

    def _fed(self, active: int) -> Sequence[PlannedJob]:
        if self.stopping:
            return ()
        if self.study is None:
            if not all(paths.result.exists() for paths in self._needed):
                return ()
            if left := self._open():
                return left
        assert self.study is not None
        if self._again:
            return [self._planned(self._again.pop())]
        while self._may_begin() and active < self.at_once(self._usual):
            trial = self._begin(self.study.ask())
            if not self._is_told(trial):
                return (self._planned(trial),)
        return ()

    def _open(self) -> list[PlannedJob]:
        """Open the study; the jobs of the trials that an earlier command left behind."""
        self.space = self._measured_space()
        self.study = study = self.opened(self.space)
        for note, values in self._references():
            study.try_first(values, note)
        self._end_orphans()
        left = [self._begin(asked) for asked in study.running()]
        return [self._planned(trial) for trial in left if not self._is_told(trial)]

    def _measured_space(self) -> tuple[Dimension, ...]:
        return scale.following(self.trials.space, [scale.shares(one.losses) for one in self._scales.values()])

    def _references(self) -> list[tuple[str, dict[str, object]]]:
        """What is tried first, with each student: no method, what papers say, what the recipe says."""
        trials, recipe = self.trials, self.trials.recipe
        found: list[tuple[str, dict[str, object]]] = []
        of_papers, own = published(recipe, trials.arm, self.space), trials.usual(())
        for student in trials.variants:
            settings = {f"student.{key}": value for key, value in student}
            where = "".join(f", {key} {value}" for key, value in student)
            found.append((f"{NO_METHOD}{where}", settings))
            found.append((f"published{where}", of_papers | settings))
            if own != of_papers:
                found.append((f"recipe{where}", own | settings))
        return found

    def _end_orphans(self) -> None:
        """Stop what still runs for a trial that has ended, because a command was killed in between."""
        assert self.study is not None
        wanted = {trial.job for trial in self.study.trials() if trial.state in ("running", "complete")}
        for trial in self.study.trials():
            if trial.job and trial.job not in wanted and holder(self.runs.job(trial.job)):
                self.runs.job(trial.job).stop_request.touch()

    def _may_begin(self) -> bool:
        assert self.study is not None
        return self.study.begun() < self.count and self.spent_s < self.budget_s and not self.gives_up

    def _begin(self, asked: Asked) -> _Trial:
        trial = self._live[asked.number] = _Trial(asked, self._job(asked))
        return trial

    def _job(self, asked: Asked) -> Job:
        """The job of a trial as it can be run now, which the study notes before it starts."""
        assert self.study is not None
        job = self.trials.job(asked.values, memory.failures(self.runs))
        self.study.note_job(asked.number, job.id, asked.values)
        return job

    def _is_told(self, trial: _Trial) -> bool:
        """Whether the trial needs no job: its like was trained before, or is now under another trial."""
        if self.runs.job(trial.job.id).result.exists():
            self._complete(trial, trained=False)
            return True
        others = [one for one in self._live.values() if one is not trial]
        return any(one.job.id == trial.job.id for one in others)

    def _planned(self, trial: _Trial) -> PlannedJob:
        assert self.study is not None
        walls = [one.wall_s for one in self.study.trials() if one.state == "complete" and one.wall_s]
        why = ", ".join(filter(None, [f"trial {trial.asked.number}", trial.asked.note]))
        source = f"measured, n={len(walls)}" if walls else "unknown"
        job = with_memory(trial.job, self._peak_gb)
        return PlannedJob(job, False, why, fmean(walls) if walls else None, source)

    def _see(self, trial: _Trial, event: Event) -> None:
        assert self.study is not None
        match event:
            case JobStarted():
                trial.began = trial.began or event.time
            case JobEvaluated(epoch=epoch, metrics=metrics):
                if self.study.is_hopeless(trial.asked.number, epoch, self._ap(metrics)):
                    self._prune(trial)
            case JobReused() | JobFinished():
                self._complete(trial, trained=isinstance(event, JobFinished))
            case JobFailed() if not trial.failed:
                # once more: from its checkpoint, or in smaller parts where its GPU was full
                trial.failed = True
                trial.job = self._job(trial.asked)
                self._again.append(trial)
            case JobFailed():
                self._lose(trial, event.what)
            case JobCancelled():
                # who stops all that runs wants no other trials in their place
                live = [self.runs.job(one.job.id) for one in self._live.values()]
                self.stopping |= all(paths.stop_request.exists() for paths in live)
                if not self.stopping:
                    self._lose(trial, "stopped by another command")

    def _complete(self, trial: _Trial, *, trained: bool) -> None:
        """Tell the study what the finished job of a trial has found."""
        assert self.study is not None
        result = JobResult.read(self.runs.job(trial.job.id))
        assert result is not None
        objectives = [self._ap(result.metrics)]
        if "latency" in self.study.objectives:
            objectives.append(self.latency_ms(self.trials.student_of(trial.asked.values)))
        del self._live[trial.asked.number]
        self._peak_gb = max(self._peak_gb, result.peak_memory_gb)
        course = {int(entry["epoch"]): self._ap(entry) for entry in result.history}
        self.study.complete(trial.asked.number, objectives, course, result.wall_s if trained else 0.0)

    def _prune(self, trial: _Trial) -> None:
        """End a trial for the study, then its job; `_end_orphans` does that after a kill between the two."""
        assert self.study is not None
        del self._live[trial.asked.number]
        self.study.prune(trial.asked.number, _wall_s(trial))
        if all(one.job.id != trial.job.id for one in self._live.values()):
            self.pruned.add(trial.job.id)
            self.runs.job(trial.job.id).stop_request.touch()

    def _lose(self, trial: _Trial, why: str) -> None:
        assert self.study is not None
        del self._live[trial.asked.number]
        self.study.fail(trial.asked.number, why, _wall_s(trial))

    def _ap(self, metrics: Mapping[str, float]) -> float:
        """AP as the recipe chooses it; 0 where no object of that size is there to be found."""
        return metrics.get(self.trials.recipe.tune.objectives[0], 0.0)


def _wall_s(trial: _Trial) -> float:
    return time.time() - trial.began if trial.began else 0.0
