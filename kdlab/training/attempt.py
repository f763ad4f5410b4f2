"""One attempt at a job, as one of its processes sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths


def nothing(*_args: Any, **_fields: Any) -> None:
    """What a process writes that has no lease."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job.

    Args:
        job: what is to be done.
        paths: its folder.
        should_stop: whether the job was asked to stop; called after every iteration.
        number: of the attempt, from 1; 0 in a process that writes nothing.
        emit: takes an event kind and its fields.
        may_write: raises where another process has taken the job over.
    """

    job: Job
    paths: JobPaths
    should_stop: Callable[[], bool] = lambda: False
    number: int = 0
    emit: Callable[..., None] = nothing
    may_write: Callable[[], None] = nothing
