"""Failed jobs on a screen: a box for each cause."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kdlab.cli.screen.console import duration
from kdlab.errors import indented
from kdlab.jobs.events import JobFailed

TAIL_LINES = 15


def boxes(failures: Iterable[JobFailed], labels: Mapping[str, str]) -> Iterator[str]:
    """Lines that tell each cause once, with all jobs that it ended; `labels` by id."""
    causes: dict[str, list[JobFailed]] = {}
    for failure in failures:
        causes.setdefault(failure.what, []).append(failure)
    for first, *others in causes.values():
        yield indented(f"error: {labels[first.job]}  {first.what}")
        fields = {
            "got": first.got,
            "known": first.known,
            "when": f"{first.where}, after {duration(first.after_s)}",
            "fix": first.fix,
            "also": ", ".join(labels[other.job] for other in others),
        }
        yield from (indented(f"  {name:<5}  {value}") for name, value in fields.items() if value)
        if first.log:
            yield f"  log    {first.log}{', its end:' if first.tail else ''}"
        yield from (f"  |  {line}" for line in first.tail[-TAIL_LINES:])
        yield f"  more   kdlab logs {first.job}"
