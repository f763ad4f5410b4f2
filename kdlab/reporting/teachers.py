"""What a table's reader must know of its teacher: where it came from, and whether it is one to learn from."""

from __future__ import annotations

from collections.abc import Iterator

from kdlab.jobs.job import TOLERATED_AP
from kdlab.jobs.result import JobResult
from kdlab.jobs.status import JobStatus

USELESS_AP = 1.0
"""A teacher below this AP, in points, has nothing to teach: most often its weights did not load."""


def teacher_notes(record: JobStatus) -> Iterator[str]:
    """A sentence for each such thing about a teacher's job."""
    if record.result is None:
        yield f"teacher: {record.state}"
        return
    yield from _origin(record.result)
    yield from _worth(record.result.metrics.get("AP", 0.0), record.job.inputs.expect_ap)


def _origin(result: JobResult) -> Iterator[str]:
    if checkpoint := result.model.get("checkpoint"):
        whole = "" if checkpoint["keys"]["whole"] else ", loaded in part"
        yield f"teacher: measured from {checkpoint['file']}, sha256 {checkpoint['sha256'][:8]}{whole}"


def _worth(found: float, expected: float | None) -> Iterator[str]:
    if expected is None:
        if found < USELESS_AP:
            yield f"warning: the teacher has AP {found:.1f}, so there is nothing to learn from it"
    elif abs(found - expected) > TOLERATED_AP:
        side = "above" if found > expected else "below"
        yield f"teacher: {abs(found - expected):.1f} AP {side} teacher.expect_ap {expected:.1f}"
