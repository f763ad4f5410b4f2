"""A recipe's plan -> the plan that measures what its arms cost."""

from __future__ import annotations

from dataclasses import replace

from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.spec import plain, read_spec
from kdlab.planning.ids import with_id


def benching(plan: Plan, asked: str, rounds: int) -> Plan:
    """The plan that times one student of each arm; nothing of it is reused, for it is of its moment.

    Args:
        plan: of the recipe.
        asked: when, in UTC.
        rounds: how often each thing is measured.
    """
    firsts: dict[str, Job] = {}
    for one in plan.jobs:
        if one.job.is_student:
            firsts.setdefault(one.job.arm, one.job)
    jobs = [_timing(student, asked, rounds) for student in firsts.values()]
    return plan.derived("benches", [PlannedJob(job, False, "measured now") for job in jobs])


def _timing(student: Job, asked: str, rounds: int) -> Job:
    """The job that times this student, on one GPU with that one's share of a batch."""
    told = {**plain(student.spec), "kind": "bench", "asked": asked, "rounds": rounds, "prepared": {}}
    told["student"] = student.id
    told["schedule"] |= {"gpus": 1, "batch_size": student.spec.batch_size // student.spec.ranks}
    resources = replace(student.resources, gpus=min(1, student.resources.gpus), ranks=1, share=1)
    return with_id(replace(student, spec=read_spec(told), parents=(), resources=resources))
