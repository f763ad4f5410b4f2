"""Drives a study: feeds its trials to a scheduler as jobs, and tells it how they go.

A trial is a job, and what is known of a job is in its files. So a command that was killed needs no memory of
its own: the next one asks the study which trials began, and the files what became of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from kdlab.errors import MachineError
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
from kdlab.jobs.result import Curves, JobResult
from kdlab.jobs.study import Trial
from kdlab.planning.build import with_memory
from kdlab.running.task import remove_states
from kdlab.tuning import scale
from kdlab.tuning.space import with_like_terms
from kdlab.tuning.study import OptunaStudy
from kdlab.tuning.trials import Student, Trials

ALL_FAIL = 3
"""After so many failures and no success nothing more is tried."""


@dataclass
class _Running:
    """A trial whose job waits or runs, the last of `jobs`; those before it are what it needs."""

    trial: Trial
    jobs: list[Job]
    began: float | None = None
    failed: bool = False

    @property
    def job(self) -> Job:
        return self.jobs[-1]

    @property
    def wall_s(self) -> float:
        return time.time() - self.began if self.began else 0.0


@dataclass
class Tuner:
    """Feeds a scheduler, whose events it must be shown.

    Args:
        trials: makes the jobs.
        study: says what they try; its `space` is empty until the jobs before the first trial are done.
        runs: where the jobs are.
        count: how many trials there shall be, those of earlier commands among them.
        budget_s: seconds of devices after which no trial begins.
        at_once: how many of a job fit on the machine side by side.
        stop_request: the file by which another command ends the search.

    `pruned` holds the jobs that it ended early. `stopping` ends the search and leaves its trials to the next
    command; it must be set before this one stops jobs.
    """

    trials: Trials
    study: OptunaStudy
    runs: Runs
    count: int
    budget_s: float
    at_once: Callable[[Job], int]
    stop_request: Path
    pruned: set[str] = field(default_factory=set, init=False)
    stopping: bool = field(default=False, init=False)
    _running: dict[int, _Running] = field(default_factory=dict, init=False)
    _retries: list[_Running] = field(default_factory=list, init=False)
    _ending: set[str] = field(default_factory=set, init=False)
    _failures: int = field(default=0, init=False)
    _peak_gb: float = field(default=0.0, init=False)
    _latency_s: dict[Student, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # what ran out of memory before this command, by which its plan was made
        failed = store.shortages(self.runs)
        self._scales = self.trials.scales(failed)
        self._needed = {job.id for job in self.trials.preparation(failed)}
        self._known = set(self._needed)
        # to a machine all trials are alike
        self._usual = self.trials.job(self.trials.usual(next(iter(self.trials.variants))))

    @property
    def spent_s(self) -> float:
        """Seconds that trials have had devices, those of earlier commands among them."""
        ended = sum(trial.wall_s for trial in self.study.trials())
        begun = sum(one.wall_s for one in self._running.values())
        shared = self._usual.resources
        return (ended + begun) * max(1, shared.gpus) / shared.share

    @property
    def to_come(self) -> int:
        """How many trials are still to begin."""
        if self.study.space and self.ended_by:
            return 0
        return max(0, self.count - len(self.study.trials()))

    @property
    def ended_by(self) -> str:
        """Why no further trial begins, though not all have; "" where nothing keeps them."""
        if self.stopping:
            return "it was stopped"
        if self.spent_s >= self.budget_s:
            return f"the budget of {self.budget_s / 3600:g} hours is used up"
        used = [one for one in self.study.trials() if one.state in ("finished", "pruned") and one.has_methods]
        if self._failures >= ALL_FAIL and not used:
            return f"{self._failures} trials failed, and none with a method has come to an end"
        return ""

    def feed(self, active: int) -> Sequence[PlannedJob]:
        """The jobs that a scheduler should take on now, of which `active` wait or run already."""
        self.stopping |= self.stop_request.exists()
        if self.stopping or not all(self.runs.job(job).result.exists() for job in self._needed):
            return ()
        if not self.study.space and (left := self._open()):
            return left
        if self._retries:
            return self._planned(self._retries.pop())
        # one at least, so that the scheduler says why none fits
        while self.to_come and active < max(1, self.at_once(self._usual)):
            one = self._begin(self.study.ask())
            if not self._is_served(one):
                return self._planned(one)
        return ()

    def see(self, event: Event) -> None:
        """Take in what happened to a job."""
        if event.job in self._needed and isinstance(event, JobFailed | JobCancelled | JobSkipped):
            self.stopping = True
        own = [one for one in self._running.values() if one.job.id == event.job]
        if isinstance(event, JobCancelled) and event.job in self._ending:
            self._ending.discard(event.job)
            remove_states(self.runs.job(event.job))
            # asked for again before it had stopped for an earlier trial
            self._retries += own
            return
        for one in own:
            self._see(one, event)

    def _see(self, one: _Running, event: Event) -> None:
        match event:
            case JobStarted():
                one.began = one.began or event.time
            case JobEvaluated():
                self._judge(one, event)
            case JobReused() | JobFinished():
                self._finish(one, trained=isinstance(event, JobFinished))
            case JobFailed():
                # once more, from its checkpoint or in smaller parts where its GPU was full
                before, one.jobs = one.job, self._jobs_of(one.trial)
                same = one.job.id == before.id
                if one.failed and same:
                    self._fail(one, event.what)
                else:
                    one.failed |= same
                    self._retries.append(one)
            case JobSkipped():
                self._fail(one, event.why)
            case JobCancelled():
                self.stopping |= self.stop_request.exists()
                if not self.stopping:
                    self._fail(one, "stopped by another command")

    def _open(self) -> list[PlannedJob]:
        """Set the ranges and the references; the jobs of the trials that earlier commands began."""
        results = {student: JobResult.read(self.runs.job(job.id)) for student, job in self._scales.items()}
        scales = {student: result for student, result in results.items() if result}
        if "latency" in self.study.objectives:
            self._latency_s = {student: _latency_s(result) for student, result in scales.items()}
        curves = [Curves.read(self.runs.job(job.id)) for job in self._scales.values()]
        measured = [scale.shares(one.losses) for one in curves]
        self.study.space = scale.following(self.trials.space, measured)
        for reference, params in self.trials.references(self.study.space).items():
            self.study.enqueue(params, reference)
        for trial in self.study.trials():
            # a command was killed between the two; references are shared with other studies
            ended = trial.state in ("pruned", "failed") and trial.job and not trial.reference
            if ended and holder(self.runs.job(trial.job)):
                self.runs.job(trial.job).stop_request.touch()
        left = [self._begin(trial) for trial in self.study.resume()]
        new = [job for one in left if not self._is_served(one) for job in self._planned(one)]
        # those that finished before this command, so that its plan and MLflow's run hold them too
        finished = dict.fromkeys(trial.job for trial in self.study.trials() if trial.state == "finished")
        trained = [paths for paths in map(self.runs.job, finished) if paths.result.exists()]
        return [*(PlannedJob(read_job(paths), True, "reused", 0.0, "done") for paths in trained), *new]

    def _begin(self, trial: Trial) -> _Running:
        if not (trial.reference or trial.job):
            recipe, arm = self.trials.recipe, self.trials.arm
            trial = replace(trial, params=with_like_terms(recipe, arm, trial.params, self.study.space))
        one = self._running[trial.number] = _Running(trial, self._jobs_of(trial))
        self.pruned.discard(one.job.id)
        return one

    def _jobs_of(self, trial: Trial) -> list[Job]:
        """The jobs of a trial as they can be run now; the study notes its own before that starts."""
        jobs = self.trials.jobs(trial.params, store.shortages(self.runs))
        self.study.assign(trial.number, jobs[-1].id, trial.params)
        return jobs

    def _is_served(self, one: _Running) -> bool:
        """Whether the trial needs no job: its like was trained before, or runs for another trial."""
        if self.runs.job(one.job.id).result.exists():
            # one that was noted before was trained for this very trial, while nobody looked
            self._finish(one, trained=one.trial.job == one.job.id)
            return True
        return any(other.job.id == one.job.id for other in self._running.values() if other is not one)

    def _planned(self, one: _Running) -> list[PlannedJob]:
        """The job of a trial behind those that it needs and that are new to the plan."""
        walls = [trial.wall_s for trial in self.study.trials() if trial.state == "finished" and trial.wall_s]
        why = ", ".join(filter(None, [f"trial {one.trial.number}", one.trial.reference]))
        source = f"measured, n={len(walls)}" if walls else "unknown"
        new = [PlannedJob(job, False, f"for {why}") for job in one.jobs[:-1] if job.id not in self._known]
        self._known |= {planned.job.id for planned in new}
        job = with_memory(one.job, self._peak_gb)
        return [*new, PlannedJob(job, False, why, fmean(walls) if walls else None, source)]

    def _judge(self, one: _Running, event: JobEvaluated) -> None:
        """End a trial early if the study says so, but no reference, and none that has ended already."""
        prune = self.study.should_prune(one.trial.number, event.epoch, self._ap(event.metrics))
        if not prune or one.trial.reference or self.runs.job(one.job.id).result.exists():
            return
        # first for the study, then its job: `_open` does that after a kill between the two
        del self._running[one.trial.number]
        self.study.prune(one.trial.number, one.wall_s)
        if all(other.job.id != one.job.id for other in self._running.values()):
            self.pruned.add(one.job.id)
            self._ending.add(one.job.id)
            self.runs.job(one.job.id).stop_request.touch()

    def _finish(self, one: _Running, *, trained: bool) -> None:
        result = JobResult.read(self.runs.job(one.job.id))
        assert result is not None
        values = [self._ap(result.metrics)]
        if "latency" in self.study.objectives:
            values.append(1000 * self._latency_s[self.trials.student_of(one.trial.params)])
        del self._running[one.trial.number]
        self._peak_gb = max(self._peak_gb, result.peak_memory_gb)
        evaluations = Curves.read(self.runs.job(one.job.id)).evaluations
        curve = {found.epoch: self._ap(found.metrics) for found in evaluations}
        self.study.finish(one.trial.number, values, curve, result.wall_s if trained else 0.0)

    def _fail(self, one: _Running, why: str) -> None:
        del self._running[one.trial.number]
        self.study.fail(one.trial.number, why, one.wall_s)
        self._failures += 1

    def _ap(self, metrics: Mapping[str, float]) -> float:
        """AP as the recipe chooses it; 0 where no object of that size is there to be found."""
        return metrics.get(self.study.objectives[0], 0.0)


def _latency_s(result: JobResult) -> float:
    """What one image takes a student.

    Raises:
        MachineError: its memory did not allow to measure it.
    """
    if "latency_s" not in result.timing:
        what = "the latency of a student could not be measured, for the GPU's memory was full"
        raise MachineError(what, where=result.id, fix="--objectives AP, or a GPU that is free")
    return result.timing["latency_s"]
