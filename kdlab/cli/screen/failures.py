"""What is told of jobs that failed: a box for each cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kdlab.cli.screen.console import duration
from kdlab.jobs.events import JobFailed

TAIL_LINES = 15


def boxes(failures: Iterable[JobFailed], labels: Mapping[str, str]) -> Iterator[str]:
    """Lines that tell each cause once, with all jobs that it ended; `labels` by id."""
    causes: dict[str, list[JobFailed]] = {}
    for failure in failures:
        causes.setdefault(failure.what, []).append(failure)
    for alike in causes.values():
        yield from _box(alike, labels)


def _box(failures: Sequence[JobFailed], labels: Mapping[str, str]) -> Iterator[str]:
    """What is known of jobs that failed for one cause: the first in full, the others by name."""
    first, *others = failures
    yield f"error: {labels[first.job]}  {first.what}"
    fields = {
        "got": first.got,
        "known": first.known,
        "when": f"{first.where}, after {duration(first.after_s)}",
    }
    fields |= {"fix": first.fix, "also": ", ".join(labels[other.job] for other in others)}
    yield from (f"  {name:<5}  {value}" for name, value in fields.items() if value)
    if first.log:
        yield f"  log    {first.log}{', its end:' if first.tail else ''}"
    yield from (f"  |  {line}" for line in first.tail[-TAIL_LINES:])
    yield f"  more   kdlab logs {first.job}"
