"""The gate that a teacher passes if it is as good as the recipe says, before anything learns from it."""

from __future__ import annotations

from collections.abc import Mapping

from kdlab.errors import Fault
from kdlab.jobs.job import TOLERATED_AP, Job


def fault(job: Job, metrics: Mapping[str, float]) -> Fault | None:
    """The fault of a teacher that misses what is expected of it; a better one is no fault.

    The expectation is no part of the job's id: it judges a result and makes none.
    """
    expected = job.inputs.expect_ap
    found = metrics.get("AP", 0.0)
    if expected is None or found >= expected - TOLERATED_AP:
        return None
    causes = job.spec.doubts
    if job.inputs.partial:
        causes = f"what teacher.partial left out; {causes}"
    return Fault(
        f"the teacher has AP {found:.1f}, and teacher.expect_ap is {expected:.1f}",
        where="evaluation",
        got=f"{expected - found:.1f} points less, where {TOLERATED_AP} are tolerated; likely {causes}",
        fix="mend the teacher, or correct teacher.expect_ap: it changes no job",
    )
