"""Records -> footnotes: the data, code and machine behind a table, and where its cells differ in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kdlab.jobs.job import Job
from kdlab.jobs.status import JobStatus


def provenance(records: Sequence[JobStatus]) -> list[str]:
    """A note each on data, commit, versions and machine of the finished jobs; none without a finished job."""
    done = [(record, record.result.environment) for record in records if record.result is not None]
    if not done:
        return []
    return [
        _origin("data", [(record, _dataset(record.job)) for record, _ in done]),
        _origin("commit", [(record, environment.get("commit") or "unknown") for record, environment in done]),
        _origin("versions", [(record, _versions(environment)) for record, environment in done]),
        _origin("machine", [(record, _machine(environment)) for record, environment in done]),
    ]


def _origin(name: str, told: Iterable[tuple[JobStatus, str]]) -> str:
    """ "commit: abc" or, if cells differ, "cells differ in commit: abc (teacher); def (all others)"."""
    groups: dict[str, list[JobStatus]] = {}
    for record, value in told:
        groups.setdefault(value, []).append(record)
    if len(groups) == 1:
        return f"{name}: {next(iter(groups))}"
    *fewer, (most, _) = sorted(groups.items(), key=lambda group: len(group[1]))
    parts = [f"{value} ({', '.join(one.job.label for one in own)})" for value, own in fewer]
    return f"cells differ in {name}: {'; '.join(parts)}; {most} (all others)"


def _dataset(job: Job) -> str:
    return f"{job.spec.dataset.name}, fingerprint {job.spec.dataset.fingerprint}"


def _versions(environment: dict[str, Any]) -> str:
    return ", ".join(f"{name} {environment.get(name, 'unknown')}" for name in ("kdlab", "torch", "mmdet"))


def _machine(environment: dict[str, Any]) -> str:
    counts = [f"{name} {environment[name]}" for name in ("cores", "threads") if environment.get(name)]
    return ", ".join([str(environment.get("device", "unknown")), *counts])
