"""Comparison -> Table: a row an arm, or a row a class, and footnotes on what was compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean, median

from kdlab.jobs.status import JobStatus
from kdlab.reporting.arms import Arm
from kdlab.reporting.columns import COLUMNS, NONE, P_READING, WITH_TEACHER, View, step_ratios
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.provenance import provenance
from kdlab.reporting.reference import Published
from kdlab.reporting.statistics import SEEDS_FOR_A_TEST
from kdlab.reporting.tables import Cell, Column, Mark, Table
from kdlab.reporting.teachers import teacher_notes


def table(comparison: Comparison) -> Table:
    """The arms after their last epoch: the teacher, then the arms as in the recipe.

    Not among the usual columns are those that nobody can fill, and those that say the same of all arms: their
    number of seeds where it is the title's, the best epoch where it is everywhere the last.
    """
    marks = _marks(comparison)
    rows = [View(comparison, arm, marks.get(arm.name, "")) for arm in _rows(comparison)]
    filled = [(column, [fill(row, column) for row in rows]) for column, fill in COLUMNS]
    columns = tuple(
        replace(column, usual=column.usual and any(cells) and not _says_nothing(column, comparison))
        for column, cells in filled
    )
    return Table(
        title=_title(comparison),
        columns=columns,
        rows=tuple(tuple(cells[place] or Cell() for _, cells in filled) for place in range(len(rows))),
        footnotes=tuple(_footnotes(comparison, columns)),
    )


def by_class(comparison: Comparison) -> Table:
    """AP of each class, a column an arm: means over seeds after the last epoch."""
    arms = [arm for arm in _rows(comparison) if arm.results]
    columns = (Column("class", "class", digits=None), *(Column(arm.name, arm.name) for arm in arms))
    results = [one for arm in arms for one in arm.results.values()]
    classes = dict.fromkeys(name for one in results for name in one.last.per_class)
    rows = tuple(
        (Cell(name), *(_class_cell(arm, name, column) for arm, column in zip(arms, columns[1:], strict=True)))
        for name in classes
    )
    return Table(f"{_title(comparison)}: AP by class", columns, rows, tuple(_footnotes(comparison, columns)))


def with_reported(table: Table, rows: Sequence[Published]) -> Table:
    """The table with published numbers below its own, each with where it stands.

    They are of other codebases, most often with another baseline, so that their AP is no rival of the rows
    above: it is dim, and only gains are to be compared.
    """
    told = [row for row in rows if row.ap is not None or row.gain is not None]
    if not told:
        note = "reported: no published number of this pair is on record"
        return replace(table, footnotes=(*table.footnotes, note))
    columns = (*table.columns, _SOURCE)
    own = tuple((*row, Cell()) for row in table.rows)
    return replace(
        table,
        columns=columns,
        rows=(*own, *(_reported(row, columns) for row in told)),
        footnotes=(*table.footnotes, _SOURCE.reading),
    )


_SOURCE = Column(
    "source",
    "reported in",
    digits=None,
    reading="reported in: numbers of another codebase; compare the gain only, not AP",
)


def _reported(row: Published, columns: Sequence[Column]) -> tuple[Cell, ...]:
    by_key = {column.key: column for column in columns}
    told = [
        row.source,
        row.schedule,
        "inheriting" if row.inherits else "",
        "" if row.verified else "unverified",
    ]
    cells = {"arm": Cell(row.arm), "source": Cell(", ".join(filter(None, told)))}
    for key, number in (("AP", row.ap), ("dAP", row.gain)):
        if number is not None and key in by_key:
            cells[key] = replace(by_key[key].cell(number), mark="dim")
    return tuple(cells.get(column.key, Cell()) for column in columns)


def _class_cell(arm: Arm, name: str, column: Column) -> Cell:
    aps = [result.last.per_class for result in arm.results.values()]
    values = [by_class[name] for by_class in aps if name in by_class]
    return column.cell(fmean(values)) if values else NONE


def _rows(comparison: Comparison) -> list[Arm]:
    return [*([comparison.teacher] if comparison.teacher else []), *comparison.arms]


def _marks(comparison: Comparison) -> dict[str, Mark]:
    """How the AP of the two best arms stands out, where a test is possible and no seed is missing."""
    whole = [arm for arm in comparison.arms if arm.whole and arm.over_seeds("AP")]
    if not (whole and any(gain.p is not None for gain in comparison.gains.values())):
        return {}
    best, *others = sorted(whole, key=lambda arm: -fmean(arm.over_seeds("AP")))
    gain = comparison.gains.get(best.name)
    if not (gain and gain.supported and gain.mean > 0):
        return {}
    return {best.name: "bold", others[0].name: "underline"} if others else {best.name: "bold"}


def _says_nothing(column: Column, comparison: Comparison) -> bool:
    if column.key == "n":
        equal = len({arm.planned for arm in comparison.arms}) == 1
        return equal and all(arm.whole for arm in comparison.arms)
    if column.key == "best_AP":
        results = [record.result for record in comparison.records if record.result is not None]
        return all(one.best.metrics.get("AP") == one.metrics.get("AP") for one in results)
    return False


def _title(comparison: Comparison) -> str:
    recipe = comparison.plan.recipe
    counts = sorted({len(arm.results) for arm in comparison.arms})
    n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else "0"
    return f"{recipe.get('title') or recipe['name']}, n={n}"


def _footnotes(comparison: Comparison, shown: Sequence[Column]) -> Iterator[str]:
    """How to read the columns, what is missing, and where the numbers come from."""
    plan, records = comparison.plan, comparison.records
    seeds = {record.job.seed for arm in comparison.arms for record in arm.records}
    spread = "mean ± sample deviation over " if len(seeds) > 1 else ""
    yield f"after the last epoch, {spread}{_seeds(seeds)}" if seeds else "no student in it"
    yield from (column.reading for column in shown if column.reading)
    if any(gain.p is not None for gain in comparison.gains.values()):
        yield P_READING
    elif len(seeds) < SEEDS_FOR_A_TEST and comparison.gains:
        yield f"no p, no star and no bold: a test over seeds takes {SEEDS_FOR_A_TEST}"
    yield from _unlikely(comparison)
    yield from _unsampled(comparison)
    yield from (note for record in records if record.job.spec.is_teacher for note in teacher_notes(record))
    yield from _in_micro_batches(records)
    yield from (note for arm in comparison.arms for note in _missing(arm))
    yield from _paired(comparison)
    yield from provenance(records)
    if comparison.baseline is None and comparison.arms:
        yield "no gains: no arm is without methods"
    if "metrics" in plan.recipe.get("query", ""):
        yield "warning: these runs were chosen by their results, so what they have in common can be luck"
    yield f"plan {plan.id} of {plan.recipe['name']}"
    if command := plan.recipe.get("command"):
        yield f"made again by: {command}"


def _unlikely(comparison: Comparison) -> Iterator[str]:
    """Times that cannot be, and what they come from."""
    ratios = {arm.name: step_ratios(arm, WITH_TEACHER) for arm in comparison.arms}
    quick = [name for name, own in ratios.items() if own and median(own) < 1]
    if quick:
        yield f"method x below 1 cannot be; the machine was busy with other work: {', '.join(quick)}"


def _unsampled(comparison: Comparison) -> Iterator[str]:
    """Whose images cannot be resampled, or not together."""
    if comparison.unlike:
        yield "no interval over images between models that were measured on other images or objects"
    if comparison.unsampled:
        labels = ", ".join(comparison.unsampled[:4]) + (", ..." if len(comparison.unsampled) > 4 else "")
        jobs = f"{len(comparison.unsampled)} job{'s' * (len(comparison.unsampled) > 1)}"
        yield f"no interval over images for {jobs} without AP on resampled images: {labels}"


def _in_micro_batches(records: Sequence[JobStatus]) -> list[str]:
    """Which jobs ran out of memory and were trained in parts."""
    cut = {record.job.label: record.job.spec.micro_batch for record in records}
    told = ", ".join(f"{label} ({images} images)" for label, images in cut.items() if images)
    reading = (
        "gradients of smaller forward passes were summed to the same batch, each with its own normalisers"
    )
    return [f"ran out of GPU memory: {told}; {reading}"] if told else []


def _missing(arm: Arm) -> list[str]:
    """ "rm: n=2 of 3, seed 2 failed", where jobs lack a result."""
    lacking = [f"seed {record.job.seed} {record.state}" for record in arm.records if record.result is None]
    if not lacking:
        return []
    return [f"{arm.name}: n={len(arm.results)} of {arm.planned}, {', '.join(lacking)}"]


def _paired(comparison: Comparison) -> Iterator[str]:
    """Which seeds a gain is over, where one side lacks some, and which gains are between unlike batches."""
    for arm in comparison.arms:
        if (gain := comparison.gains.get(arm.name)) is None:
            if arm.results and comparison.baseline and not arm.plain:
                yield f"{arm.name}: no gain, for it shares no finished seed with the baseline"
            continue
        if len(gain.seeds) < arm.planned:
            yield f"{arm.name}: gain over {_seeds(gain.seeds)}, which the baseline has too"
        if not gain.like:
            yield f"{arm.name}: the baseline ran in other batches, so there is no test"


def _seeds(seeds: Iterable[int]) -> str:
    """ "seed 0" or "seeds 0 1 2"."""
    numbers = [str(seed) for seed in sorted(seeds)]
    return f"{'seed' if len(numbers) == 1 else 'seeds'} {' '.join(numbers)}"
