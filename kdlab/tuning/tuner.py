"""Drives a study: feeds its trials to a scheduler as jobs, and tells it how they go.

A trial is a job, and what is known of a job is in its files. So a command that was killed needs no memory of
its own: the next one asks the study which trials began, and the files what became of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from kdlab.jobs import store
from kdlab.jobs.events import (
    Event,
    JobCancelled,
    JobEvaluated,
    JobFailed,
    JobFinished,
    JobReused,
    JobSkipped,
    JobStarted,
)
from kdlab.jobs.job import Job, read_job
from kdlab.jobs.lease import holder
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import PlannedJob
from kdlab.jobs.result import JobResult
from kdlab.planning.build import with_memory
from kdlab.running.task import remove_states
from kdlab.tuning import scale
from kdlab.tuning.space import Dimension, name_of_published, published, with_like_terms
from kdlab.tuning.study import Asked, Study, Told
from kdlab.tuning.trials import NO_METHOD, Student, Trials, has_methods

ALL_FAIL = 3
"""After so many failures and no success nothing more is tried."""


@dataclass
class _Trial:
    """A trial whose job waits or runs, the last of `jobs`; those before it are what it needs."""

    asked: Asked
    jobs: list[Job]
    began: float | None = None
    failed: bool = False

    @property
    def job(self) -> Job:
        return self.jobs[-1]


@dataclass
class Tuner:
    """Feeds a scheduler, whose events it must be shown.

    Args:
        trials: makes the jobs.
        study: says what they try.
        runs: where the jobs are.
        count: how many trials there shall be, those of earlier commands among them.
        budget_s: seconds of devices after which no trial begins.
        at_once: how many of a job fit on the machine side by side.
        stop_request: the file by which another command ends the search.

    Its `space` is empty until the jobs before the first trial are done; `pruned` holds the jobs that it ended
    early, and `driver_s` is what it took of a core itself. `stopping` ends the search and leaves its trials
    to the next command; it must be set before this one stops jobs.
    """

    trials: Trials
    study: Study
    runs: Runs
    count: int
    budget_s: float
    at_once: Callable[[Job], int]
    stop_request: Path
    space: tuple[Dimension, ...] = field(default=(), init=False)
    pruned: set[str] = field(default_factory=set, init=False)
    driver_s: float = field(default=0.0, init=False)
    stopping: bool = field(default=False, init=False)
    _live: dict[int, _Trial] = field(default_factory=dict, init=False)
    _again: list[_Trial] = field(default_factory=list, init=False)
    _ending: set[str] = field(default_factory=set, init=False)
    _known: set[str] = field(default_factory=set, init=False)
    _failures: int = field(default=0, init=False)
    _peak_gb: float = field(default=0.0, init=False)

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
        if event.job in self._needed and isinstance(event, JobFailed | JobCancelled | JobSkipped):
            self.stopping = True
        trials = [trial for trial in self._live.values() if trial.job.id == event.job]
        if isinstance(event, JobCancelled) and event.job in self._ending:
            self._ending.discard(event.job)
            remove_states(self.runs.job(event.job))
            # asked for again before it had stopped for an earlier trial
            self._again += trials
        else:
            for trial in trials:
                self._see(trial, event)
        self.driver_s += time.thread_time() - began

    @property
    def spent_s(self) -> float:
        """Seconds that trials have had devices, those of earlier commands among them."""
        ended = sum(trial.wall_s for trial in self.study.trials())
        begun = sum(_wall_s(trial) for trial in self._live.values())
        shared = self._usual.resources
        return (ended + begun) * max(1, shared.gpus) / shared.share

    @property
    def to_come(self) -> int:
        """How many trials are still to begin."""
        return 0 if self.space and self.ended_by else max(0, self.count - self.study.begun())

    @property
    def ended_by(self) -> str:
        """Why no further trial begins, though not all have; "" where nothing keeps them."""
        if self.stopping:
            return "it was stopped"
        if self.spent_s >= self.budget_s:
            return f"the budget of {self.budget_s / 3600:g} hours is used up"
        if self._failures >= ALL_FAIL and not any(map(_succeeded, self.study.trials())):
            return f"{self._failures} trials failed, and none with a method has come to an end"
        return ""

    def latency_ms(self, student: Student) -> float:
        """What one image takes a student, as its own job has measured."""
        return 1000 * self._scales[student].timing["latency_s"]

    @cached_property
    def _scales(self) -> dict[Student, JobResult]:
        """What was measured of each student; asked for once that is done."""
        jobs = self.trials.scales(self._failed_before)
        read = {student: JobResult.read(self.runs.job(job.id)) for student, job in jobs.items()}
        return {student: result for student, result in read.items() if result is not None}

    @cached_property
    def _usual(self) -> Job:
        """A job as all trials are, to a machine."""
        return self.trials.job(self.trials.usual(next(iter(self.trials.variants))))

    @cached_property
    def _needed(self) -> set[str]:
        """The jobs before the first trial."""
        return {job.id for job in self.trials.preparation(self._failed_before)}

    @cached_property
    def _failed_before(self) -> Mapping[str, store.Shortage]:
        """What ran out of memory before this command, by which its plan was made."""
        return store.shortages(self.runs)

    def _fed(self, active: int) -> Sequence[PlannedJob]:
        self.stopping |= self.stop_request.exists()
        if self.stopping or not all(self.runs.job(job).result.exists() for job in self._needed):
            return ()
        if not self.space and (left := self._open()):
            return left
        if self._again:
            return self._planned(self._again.pop())
        # one at least, so that the scheduler says why none fits
        while self._may_begin() and active < max(1, self.at_once(self._usual)):
            trial = self._begin(self._adapted(self.study.ask()))
            if not self._is_told(trial):
                return self._planned(trial)
        return ()

    def _may_begin(self) -> bool:
        return self.study.begun() < self.count and not self.ended_by

    def _open(self) -> list[PlannedJob]:
        """Say what is searched; the jobs of the trials that earlier commands have finished or left behind."""
        self.space = self.study.space = self._measured_space()
        self._known |= self._needed
        for note, values in self._references():
            self.study.try_first(values, note)
        self._end_orphans()
        left = [self._begin(asked) for asked in self.study.running()]
        planned = [job for trial in left if not self._is_told(trial) for job in self._planned(trial)]
        return [*self._trained(), *planned]

    def _trained(self) -> list[PlannedJob]:
        """The trials that ended before this command, so that its plan and MLflow's run hold them too."""
        ended = dict.fromkeys(trial.job for trial in self.study.trials() if trial.state == "complete")
        known = [paths for paths in map(self.runs.job, ended) if paths.result.exists()]
        return [PlannedJob(read_job(paths), True, "reused", 0.0, "done") for paths in known]

    def _measured_space(self) -> tuple[Dimension, ...]:
        return scale.following(self.trials.space, [scale.shares(one.losses) for one in self._scales.values()])

    def _references(self) -> list[tuple[str, dict[str, object]]]:
        """What is tried first, with each student: no method, what papers say, what the recipe says."""
        trials, recipe = self.trials, self.trials.recipe
        found: list[tuple[str, dict[str, object]]] = []
        of_papers, own = published(recipe, trials.arm, self.space), trials.usual(())
        word = name_of_published(recipe, trials.arm, self.space)
        for student in trials.variants:
            settings = {f"student.{key}": value for key, value in student}
            where = "".join(f", {key} {value}" for key, value in student)
            found.append((f"{NO_METHOD}{where}", settings))
            found.append((f"{word}{where}", of_papers | settings))
            if own != of_papers:
                found.append((f"recipe{where}", own | settings))
        return found

    def _end_orphans(self) -> None:
        """Stop what still runs for a trial that has ended, because a command was killed in between."""
        for trial in self.study.trials():
            # references are shared with other studies
            ended = trial.state in ("pruned", "failed") and trial.job and not trial.note
            if ended and holder(self.runs.job(trial.job)):
                self.runs.job(trial.job).stop_request.touch()

    def _begin(self, asked: Asked) -> _Trial:
        trial = self._live[asked.number] = _Trial(asked, self._jobs(asked))
        self.pruned.discard(trial.job.id)
        return trial

    def _adapted(self, asked: Asked) -> Asked:
        """A trial that the sampler chose, its weights as large as its other options need them."""
        if asked.note:
            return asked
        recipe, arm = self.trials.recipe, self.trials.arm
        return replace(asked, values=with_like_terms(asked.values, recipe.arms[arm], self.space))

    def _jobs(self, asked: Asked) -> list[Job]:
        """The jobs of a trial as they can be run now; the study notes its own before that starts."""
        jobs = self.trials.jobs(asked.values, store.shortages(self.runs))
        self.study.note_job(asked.number, jobs[-1].id, asked.values)
        return jobs

    def _is_told(self, trial: _Trial) -> bool:
        """Whether the trial needs no job: its like was trained before, or is now under another trial."""
        if self.runs.job(trial.job.id).result.exists():
            # one that was noted before was trained for this very trial, while nobody looked
            self._complete(trial, trained=trial.asked.job == trial.job.id)
            return True
        others = [one for one in self._live.values() if one is not trial]
        return any(one.job.id == trial.job.id for one in others)

    def _planned(self, trial: _Trial) -> list[PlannedJob]:
        """The job of a trial behind those that it needs and that are new to the plan."""
        walls = [one.wall_s for one in self.study.trials() if one.state == "complete" and one.wall_s]
        why = ", ".join(filter(None, [f"trial {trial.asked.number}", trial.asked.note]))
        source = f"measured, n={len(walls)}" if walls else "unknown"
        job = with_memory(trial.job, self._peak_gb)
        lacking = [parent for parent in trial.jobs[:-1] if parent.id not in self._known]
        new = [PlannedJob(parent, False, f"for {why}") for parent in lacking]
        self._known |= {planned.job.id for planned in new}
        return [*new, PlannedJob(job, False, why, fmean(walls) if walls else None, source)]

    def _see(self, trial: _Trial, event: Event) -> None:
        match event:
            case JobStarted():
                trial.began = trial.began or event.time
            case JobEvaluated():
                self._judge(trial, event)
            case JobReused() | JobFinished():
                self._complete(trial, trained=isinstance(event, JobFinished))
            case JobFailed():
                self._try_again(trial, event)
            case JobSkipped():
                self._lose(trial, event.why)
            case JobCancelled():
                self.stopping |= self.stop_request.exists()
                if not self.stopping:
                    self._lose(trial, "stopped by another command")

    def _judge(self, trial: _Trial, event: JobEvaluated) -> None:
        """Let the study see AP after an epoch, and end the trial if it says so.

        Never one that others are compared with, nor one that has ended already.
        """
        hopeless = self.study.is_hopeless(trial.asked.number, event.epoch, self._ap(event.metrics))
        if hopeless and not trial.asked.note and not self.runs.job(trial.job.id).result.exists():
            self._prune(trial)

    def _try_again(self, trial: _Trial, event: JobFailed) -> None:
        """Let a failed job go on from its checkpoint, once, or in smaller parts where its GPU was full."""
        before, trial.jobs = trial.job, self._jobs(trial.asked)
        if trial.failed and trial.job.id == before.id:
            self._lose(trial, event.what)
            return
        trial.failed |= trial.job.id == before.id
        self._again.append(trial)

    def _complete(self, trial: _Trial, *, trained: bool) -> None:
        """Tell the study what the finished job of a trial has found."""
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
        del self._live[trial.asked.number]
        self.study.prune(trial.asked.number, _wall_s(trial))
        if all(one.job.id != trial.job.id for one in self._live.values()):
            self.pruned.add(trial.job.id)
            self._ending.add(trial.job.id)
            self.runs.job(trial.job.id).stop_request.touch()

    def _lose(self, trial: _Trial, why: str) -> None:
        del self._live[trial.asked.number]
        self.study.fail(trial.asked.number, why, _wall_s(trial))
        self._failures += 1

    def _ap(self, metrics: Mapping[str, float]) -> float:
        """AP as the recipe chooses it; 0 where no object of that size is there to be found."""
        return metrics.get(self.trials.recipe.tune.objectives[0], 0.0)


def _succeeded(trial: Told) -> bool:
    """Whether a trial with methods was of use."""
    return trial.state in ("complete", "pruned") and has_methods(trial.values)


def _wall_s(trial: _Trial) -> float:
    return time.time() - trial.began if trial.began else 0.0
