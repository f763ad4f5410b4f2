"""A recipe's plan -> the plan that compares its finished students with their teacher."""

from __future__ import annotations

from collections.abc import Mapping

from kdlab.errors import UsageError
from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan
from kdlab.jobs.store import PastJob
from kdlab.planning.build import planned
from kdlab.planning.history import History
from kdlab.planning.jobs import diagnosing
from kdlab.recipe.files import go_on


def diagnosis(plan: Plan, past: Mapping[str, PastJob], versions: Mapping[str, str]) -> tuple[Plan, list[Job]]:
    """The plan that diagnoses the finished students of a recipe.

    Args:
        plan: of the recipe.
        past: the finished jobs, by id.
        versions: of the packages that decide numbers.

    Returns:
        The teacher and the finished students, each with the job that compares it; and the other students.

    Raises:
        UsageError: the recipe has no teacher to compare with, or nothing of it is finished.
    """
    jobs = [one.job for one in plan.jobs]
    name, students = plan.recipe["name"], [job for job in jobs if job.is_student]
    teacher = next((job for job in jobs if job.is_teacher), None)
    if teacher is None:
        raise UsageError(
            f"{name} has no teacher to compare its students with",
            fix="diagnose a recipe with an arm that learns from one",
        )
    done = [job for job in students if job.id in past]
    if not done or teacher.id not in past:
        raise UsageError(
            f"nothing to diagnose: no {'teacher' if done else 'student'} of {name} has finished",
            got=f"{len(done)} of {len(students)} students finished",
            fix=plan.recipe.get("command") or go_on(plan.recipe),
        )
    history = History(past)
    wanted = [diagnosing(student, teacher) for student in done]
    new = [planned(job, versions, past, history) for job in (teacher, *done, *wanted)]
    return plan.derived("diagnoses", new), [job for job in students if job.id not in past]
