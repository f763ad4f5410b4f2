"""Which job a person means by an id, the beginning of one, or a label of the newest plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdlab.errors import UsageError, suggestion

if TYPE_CHECKING:
    from kdlab.jobs.job import Job
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan

QUICKSTART = "kdlab run digits/quickstart"
_SHOWN = 12


def plan(runs: Runs, name: str | None = None) -> Plan:
    """The plan whose id begins with `name`, else the newest of the recipe `name`; without it the newest.

    Raises:
        UsageError: nothing was run here, or no plan fits, or several do.
    """
    from kdlab.jobs.plan import Plan
    from kdlab.reporting import records

    data = records.load_plan(runs, name) if name else records.newest_plan(runs)
    if data is None:
        raise UsageError("nothing was run here yet", where=str(runs.folder), fix=QUICKSTART)
    return Plan.from_dict(data)


def chosen(runs: Runs, words: Sequence[str]) -> tuple[Plan, list[str]]:
    """The newest plan and the ids of the jobs that `words` mean; those of other plans are added to it.

    Raises:
        UsageError: nothing was run here, or a word fits no job or several.
    """
    from kdlab.jobs.job import read_job
    from kdlab.jobs.plan import PlannedJob

    newest = plan(runs)
    jobs = [planned.job for planned in newest.jobs]
    others = {path.parent.name for path in runs.folder.glob("jobs/*/job.json")} - {one.id for one in jobs}
    names = list(dict.fromkeys(job(word, jobs, sorted(others)) for word in words))
    added = [PlannedJob(read_job(runs.job(name)), False, "") for name in names if name in others]
    return replace(newest, jobs=(*added, *newest.jobs)), names


def job(word: str, jobs: Sequence[Job], others: Iterable[str] = ()) -> str:
    """The id of the job that `word` means.

    Args:
        word: an id, the beginning of an id, a label ("rm+pfi seed 0"), or an arm of one seed.
        jobs: those of the newest plan, which go first.
        others: ids of other jobs that may be meant.

    Raises:
        UsageError: no job fits, or several do.
    """
    labels = {one.id: one.label for one in jobs}
    for found in (
        [name for name in (*labels, *others) if name == word],
        [one.id for one in jobs if one.label == word],
        [one.id for one in jobs if one.arm == word],
        [name for name in labels if name.startswith(word)],
        [name for name in others if name.startswith(word)],
    ):
        if len(set(found)) > 1:
            what = f"{word} fits {len(found)} jobs"
            raise UsageError(what, known=_told(found, labels), fix="name one by its id or its label")
        if found:
            return found[0]
    known = [*labels, *labels.values(), *others]
    raise UsageError(
        f"there is no job {word!r}",
        known=_told([*labels, *others], labels) or "none yet",
        fix=suggestion(word, known) or ("kdlab status" if jobs else QUICKSTART),
    )


def _told(found: Sequence[str], labels: dict[str, str]) -> str:
    """Ids, each with its label; of many the first."""
    unlike = list(dict.fromkeys(found))
    told = [f"{name} ({labels[name]})" if name in labels else name for name in unlike[:_SHOWN]]
    return ", ".join([*told, *([f"{len(unlike) - _SHOWN} more"] if len(unlike) > _SHOWN else [])])
