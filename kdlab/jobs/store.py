"""Look-ups in a runs folder: which job or plan a person means, and what earlier jobs left behind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdlab.errors import MachineError, UsageError, suggestion
from kdlab.jobs.files import read_if_whole, read_json
from kdlab.jobs.job import Job, check_schema, read_job
from kdlab.jobs.paths import JobPaths, Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.result import JobResult
from kdlab.jobs.spec import BenchSpec

QUICKSTART = "kdlab run digits/quickstart"
SHORTEST_ID = 4
"""Letters of a plan's id that are enough, as screens show it."""
_SHOWN = 12
_NO_FIT = 5

Shortage = Mapping[str, Any]


@dataclass(frozen=True)
class PastJob:
    """A job that finished earlier."""

    job: Job
    result: JobResult


def plans(runs: Runs) -> Iterator[Plan]:
    """All plans, the newest first; each is read when it is asked for.

    Raises:
        UsageError: the folder is of another version of kdlab.
        MachineError: a plan's file is damaged.
    """
    return map(_read_plan, _plan_files(runs))


def newest_plan(runs: Runs, *, comparing: bool = False) -> Plan:
    """The plan that was saved last.

    Args:
        runs: where the plans are.
        comparing: passes over the plans of `kdlab tune`, `diagnose` and `bench`, which compare no arms.

    Raises:
        UsageError: there is none yet.
    """
    found = next((plan for plan in plans(runs) if plan.compares or not comparing), None)
    if found is None:
        what = "nothing to compare was run here yet" if comparing else "nothing was run here yet"
        raise UsageError(what, where=str(runs.folder), fix=QUICKSTART)
    return found


def plan(runs: Runs, word: str | None, *, comparing: bool = False, recipes: Collection[str] = ()) -> Plan:
    """The plan that a word means: the beginning of its id, or a recipe's name or file for the newest of that.

    Args:
        runs: where the plans are.
        word: as typed; None is the newest plan of all.
        comparing: as for `newest_plan`.
        recipes: names of recipes that could be run instead.

    Raises:
        UsageError: no plan fits, or several do.
    """
    if word is None:
        return newest_plan(runs, comparing=comparing)
    files = _plan_files(runs)
    fitting = [path for path in files if word and path.stem.startswith(word)]
    if len(word) < SHORTEST_ID and any(one.recipe["name"] == word for one in plans(runs)):
        # so short it can be a recipe's name as well, and that is what somebody chose
        fitting = []
    if len(fitting) > 1:
        known = [path.stem for path in fitting]
        what = f"{word} begins the ids of {len(fitting)} plans"
        raise UsageError(what, got=word, known=", ".join(known), fix=f"name one: {known[0]}")
    if fitting:
        found = _read_plan(fitting[0])
        if found.is_search and comparing:
            what = f"plan {found.id} is a search: its trials are compared by kdlab tune"
            raise UsageError(what, got=found.id, fix=found.recipe["command"])
        if comparing and not found.compares:
            of = found.recipe[found.about]
            what = f"plan {found.id} {found.about} plan {of} and compares no arms"
            raise UsageError(what, got=found.id, fix=f"kdlab report {of}")
        return found
    names = []
    file = word.endswith((".yaml", ".yml")) and Path(word).is_file()
    for one in plans(runs):
        if one.compares or not comparing:
            own = Path(one.recipe.get("path", ""))
            if one.recipe["name"] == word or (file and own.is_file() and own.samefile(word)):
                return one
            names.append(one.recipe["name"])
    known = [*dict.fromkeys(names), *(path.stem for path in files)]
    raise UsageError(
        f"no plan in {runs.plans} is called {word!r}",
        got=word,
        known=", ".join(known) or "none yet",
        fix=f"kdlab run {word}" if file or word in recipes else _fix(word, known, "kdlab ls runs"),
    )


def jobs(runs: Runs, word: str, *, comparing: bool = False) -> list[Job]:
    """The jobs that a word means: an id, a label, an arm, the beginning of an id; the newest plan goes first.

    Args:
        runs: where they are.
        word: as typed.
        comparing: labels and arms are those of the newest plan that compares arms, as for `newest_plan`.

    Raises:
        UsageError: none fits.
    """
    newest = next((plan for plan in plans(runs) if plan.compares or not comparing), None)
    planned = {each.job.id: each.job for each in newest.jobs} if newest else {}
    others = sorted({path.parent.name for path in runs.folder.glob("jobs/*/job.json")} - planned.keys())
    fits = {name: _fit(word, name, planned.get(name)) for name in (*planned, *others)}
    best = min(fits.values(), default=_NO_FIT)
    if best < _NO_FIT:
        found = [name for name, fit in fits.items() if fit == best]
        return [planned.get(name) or read_job(runs.job(name)) for name in found]
    labels = {name: job.label for name, job in planned.items()}
    arms = [job.arm for job in planned.values()]
    raise UsageError(
        f"there is no job {word!r}",
        where=str(runs.folder),
        known=_listed([*planned, *others], labels) or "none yet",
        fix=_fix(word, [*labels, *labels.values(), *arms, *others], "kdlab status"),
    )


def _fit(word: str, name: str, planned: Job | None) -> int:
    """How far a word is from meaning a job: 0 is its id; `planned` is the job in the newest plan."""
    if name == word:
        return 0
    if planned and planned.label == word:
        return 1
    if planned and planned.arm == word:
        return 2
    if not (word and name.startswith(word)):
        return _NO_FIT
    return 3 if planned else 4


def job(runs: Runs, word: str, *, comparing: bool = False) -> Job:
    """The one job that a word means; arguments as for `jobs`.

    Raises:
        UsageError: none fits, or several do.
    """
    found = jobs(runs, word, comparing=comparing)
    if len(found) > 1:
        known = _listed([one.id for one in found], {one.id: one.label for one in found})
        raise UsageError(f"{word} fits {len(found)} jobs", known=known, fix="name one by its id or its label")
    return found[0]


def chosen(runs: Runs, words: Sequence[str]) -> tuple[Plan, list[str]]:
    """The newest plan and the ids of the jobs that `words` mean; those of other plans are added to it.

    Raises:
        UsageError: nothing was run here, or a word fits no job or several.
    """
    newest = newest_plan(runs)
    meant = {one.id: one for one in (job(runs, word) for word in words)}
    known = {planned.job.id for planned in newest.jobs}
    added = [PlannedJob(one, False, "") for name, one in meant.items() if name not in known]
    return replace(newest, jobs=(*added, *newest.jobs)), list(meant)


def diagnosed(runs: Runs, students: Collection[str], teachers: Collection[str]) -> dict[str, JobResult]:
    """The newest result of a job that compared each of these students with such a teacher, by student.

    A folder without such jobs is listed once and no file of it is read.
    """
    found = {
        result.diagnosis.get("student"): result
        for _, result in _finished(runs, "diagnose")
        if result.diagnosis.get("teacher") in teachers
    }
    return {student: found[student] for student in students if student in found}


def benched(runs: Runs, students: Collection[str]) -> dict[str, JobResult]:
    """The newest result of a job that timed the steps of each of these students, by student."""
    found = {}
    for paths, result in _finished(runs, "bench"):
        with suppress(MachineError, UsageError, FileNotFoundError):
            spec = read_job(paths).spec
            assert isinstance(spec, BenchSpec)
            found[spec.student] = result
    return {student: found[student] for student in students if student in found}


def _finished(runs: Runs, kind: str) -> Iterator[tuple[JobPaths, JobResult]]:
    """Jobs of a kind and their results, the newest last; what is damaged is left out."""
    found = (runs.folder / "jobs").glob(f"{kind}-*/result.json")
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
        with suppress(MachineError):
            paths = runs.job(path.parent.name)
            if result := JobResult.read(paths):
                yield paths, result


def results(runs: Runs, ids: Iterable[str]) -> dict[str, JobResult]:
    """Results by id, of those that have finished."""
    found = {name: JobResult.read(runs.job(name)) for name in ids}
    return {name: result for name, result in found.items() if result is not None}


def past_jobs(runs: Runs) -> dict[str, PastJob]:
    """All finished jobs by id; folders that cannot be read are passed over.

    Raises:
        UsageError: the folder is of another version of kdlab.
    """
    for path in _plan_files(runs)[:1]:
        with suppress(ValueError):
            check_schema(read_json(path), path)
    found = {}
    for path in (runs.folder / "jobs").glob("*/result.json"):
        paths = runs.job(path.parent.name)
        try:
            job, result = read_job(paths), JobResult.read(paths)
        except (OSError, ValueError, KeyError, TypeError, MachineError):
            continue
        if result is not None:
            found[job.id] = PastJob(job, result)
    return found


def shortage(paths: JobPaths) -> Shortage | None:
    """What `failure.json` says where the job ran out of GPU memory.

    Its "peak_gb" of "total_gb" is what a forward of "micro_batch" images took; "batchnorm" is whether the
    model has BatchNorm in training mode.
    """
    failure = read_if_whole(paths.failure, dict)
    return failure if failure and failure.get("kind") == "oom" else None


def shortages(runs: Runs) -> dict[str, Shortage]:
    """Those of all jobs that ran out of GPU memory, by id."""
    folders = [path.parent.name for path in (runs.folder / "jobs").glob("*/failure.json")]
    found = {name: shortage(runs.job(name)) for name in folders}
    return {name: one for name, one in found.items() if one}


def _plan_files(runs: Runs) -> list[Path]:
    """The files of all plans, the newest first."""
    return sorted(runs.plans.glob("*.json"), key=lambda path: path.lstat().st_mtime_ns, reverse=True)


def _read_plan(path: Path) -> Plan:
    try:
        found = Plan.read(path)
        if found.id != path.stem:
            raise ValueError(f"it is plan {found.id}")
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "remove it, and run its recipe again: what is trained is reused"
        got = str(error).partition("\n")[0][:200]
        raise MachineError("a plan's file is damaged", where=str(path), got=got, fix=fix) from error


def _fix(word: str, known: Sequence[str], otherwise: str) -> str:
    return suggestion(word, known) or (otherwise if known else QUICKSTART)


def _listed(names: Sequence[str], labels: Mapping[str, str]) -> str:
    """Ids, each with its label; of many the first."""
    told = [f"{name} ({labels[name]})" if name in labels else name for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        told.append(f"{len(names) - _SHOWN} more")
    return ", ".join(told)
