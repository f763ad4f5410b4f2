"""Detections of finished jobs, of which older ones kept none: a process of its own detects once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdlab import children
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.results import again
from kdlab.errors import KdlabError, UsageError

if TYPE_CHECKING:
    from kdlab.jobs.detections import Detections
    from kdlab.jobs.job import Job
    from kdlab.jobs.paths import Runs
    from kdlab.reporting.comparison import Comparison

PROCESS = "kdlab.training.redetecting"


def with_errors(screen: Screen, compared: Comparison, runs: Runs) -> Comparison:
    """A comparison with what its models lose; says which jobs are left out and why.

    Raises:
        UsageError: no job of it has finished.
        KdlabError: of no job are there detections; why of the last.
    """
    from kdlab.jobs.detections import Detections
    from kdlab.reporting import comparison

    done = [record.job for arm in compared.rows for record in arm.records if record.result is not None]
    recipe = compared.plan.recipe
    if not done:
        what, where = f"no job of {recipe['name']} has finished", f"plan {compared.plan.id}"
        raise UsageError(what, where=where, fix=again(compared.plan))
    failed: list[KdlabError] = []

    def detections(job: Job) -> Detections | None:
        paths = runs.job(job.id)
        if (found := Detections.read(paths.detections)) is not None:
            return found
        place = f"job {done.index(job) + 1} of {len(done)}"
        progress(f"{job.label} kept no detections: detecting once more, {place}")
        try:
            children.told(PROCESS, {"job": str(paths.folder)}, "the detecting was cut off")
        except KdlabError as error:
            failed.append(error)
            fault = error.faults[0]
            screen.say(f"left out: {job.label}: {fault.what}; {fault.fix}")
        return Detections.read(paths.detections)

    with screen.working("finding errors") as progress:
        found = comparison.with_errors(compared, detections)
    if not found.lost:
        raise failed[-1]
    return found
