"""A plan as numbers: its jobs by state, who drives it, and what is left of it in seconds.

One thread folds events while another draws, so what is drawn reads each value once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Self

from kdlab.devices import Machine, cores, detect
from kdlab.errors import MachineError
from kdlab.jobs.events import Event, JobFinished, JobReused
from kdlab.jobs.job import Job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.status import JobStatus, State, look_at
from kdlab.recipe.files import go_on
from kdlab.running import backfill
from kdlab.running.driver import Driver


@dataclass
class PlanStatus:
    """What is known of a plan: by its events as they happen, or by the files of its jobs.

    Args:
        plan: which.
        machine: what it runs on; where nobody says, this machine is looked at once that matters.
        jobs_at_once: a limit beside the machine's.
        to_come: jobs like its last one that it does not hold yet.
        jobs: by id, in the plan's order.
        ended: those that were seen to end, in that order.
        driver: the last process that drove it, of which only the files tell.
    """

    plan: Plan
    machine: Machine | None = None
    jobs_at_once: int | None = None
    to_come: int = 0
    jobs: dict[str, JobStatus] = field(init=False, default_factory=dict)
    ended: list[JobStatus] = field(init=False, default_factory=list)
    driver: Driver | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.grow(self.plan.jobs, self.to_come)

    @classmethod
    def read(cls, plan: Plan, runs: Runs) -> Self:
        """A plan as its files tell it now."""
        made = cls(plan)
        made.look(runs)
        return made

    def grow(self, more: Sequence[PlannedJob], to_come: int) -> None:
        """Take in that the plan holds more jobs now, and how many are still to come."""
        new = {planned.job.id: JobStatus(planned.job, planned.cost_s) for planned in more}
        # another thread may be going through the old ones
        self.jobs = {**self.jobs, **new}
        self.to_come = to_come

    def see(self, event: Event) -> JobStatus:
        """Take an event in; the job that it is about."""
        status = self.jobs[event.job]
        status.see(event)
        if isinstance(event, JobFinished):
            self._learn(status.job.arm)
        if status.end is event and not isinstance(event, JobReused):
            self.ended.append(status)
        return status

    def look(self, runs: Runs) -> None:
        """Bring everything up to date from the files."""
        self.driver = Driver.of(self.plan.id, runs)
        self.jobs_at_once = self.driver.jobs_at_once if self.driver else None
        look_at(self.plan, runs, self.jobs)

    @property
    def driven(self) -> bool:
        """Whether a `kdlab run` brings the plan to its end now."""
        return self.driver is not None and self.driver.at_work

    @property
    def over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return not self.driven and not any(status.at_work for status in self.jobs.values())

    @property
    def command(self) -> str:
        """What a person types to go on with the plan."""
        if self.driver and self.driver.command:
            return self.driver.command
        return go_on(self.plan.recipe)

    def of_state(self, state: State) -> list[JobStatus]:
        """The jobs in a state, in the plan's order."""
        return [status for status in self.jobs.values() if status.state is state]

    @property
    def counts(self) -> Counter[str]:
        """How many jobs there are in each state."""
        return Counter(str(status.state) for status in self.jobs.values()) + Counter(queued=self.to_come)

    @property
    def gpus(self) -> dict[str, int]:
        """The numbers of this machine's GPUs, by UUID; nobody is asked before a job has some."""
        if not any(status.devices and status.job.resources.gpus for status in self.jobs.values()):
            return {}
        return {gpu.uuid: gpu.index for gpu in self._here().gpus}

    def _here(self) -> Machine:
        """This machine; where its GPUs cannot be told, its cores alone."""
        if self.machine is None:
            try:
                self.machine = detect()
            except MachineError:
                self.machine = Machine(cores())
        return self.machine

    def left_s(self, now: float) -> float | None:
        """Seconds until the last job ends, None where one of them is unknown."""
        jobs, running, left = [], [], {}
        for status in [each for each in self.jobs.values() if each.state.active]:
            seconds = status.left_s(now)
            if seconds is None:
                return None
            jobs.append(status.job)
            left[status.job.id] = seconds
            if status.state is State.RUNNING:
                running.append(status.job.id)
        if self.to_come:
            # stand-ins, with what such jobs took so far
            last = [*self.jobs.values()][-1].job
            usual_s = self._usual_s(last)
            if usual_s is None:
                return None
            for number in range(self.to_come):
                jobs.append(replace(last, id=f"to come {number}", parents=()))
                left[jobs[-1].id] = usual_s
        return makespan_s(left, jobs, self._here(), self.jobs_at_once, running)

    def _usual_s(self, like: Job) -> float | None:
        """What jobs of this kind took on average; None where none has ended."""
        ended = [status for status in self.ended if status.job.kind == like.kind]
        times = [one.end.time - one.started.time for one in ended if one.end and one.started]
        return fmean(times) if times else None

    def _learn(self, arm: str) -> None:
        """Expect of other seeds of an arm what those that ended took, where the plan did not know."""
        twins = [status for status in self.jobs.values() if status.job.arm == arm]
        walls = [status.end.wall_s for status in twins if isinstance(status.end, JobFinished)]
        for status in twins:
            if status.state is State.QUEUED and status.cost_s is None:
                status.cost_s = fmean(walls)


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
    requests = [
        backfill.Request(job.id, backfill.size_of(job, machine), left_s[job.id], job.parents) for job in jobs
    ]
    held = {job: left_s[job] for job in running}
    return backfill.makespan_s(requests, backfill.capacity_of(machine), held, jobs_at_once)
