"""Comparison -> Table: a row an arm, or a row a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from kdlab.reporting.columns import AGREEMENT, COLUMNS, ERRORS
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.footnotes import footnotes
from kdlab.reporting.reference import Published
from kdlab.reporting.tables import NONE, Cell, Column, Mark, Table


def table(comparison: Comparison) -> Table:
    """The arms after their last epoch: the teacher, then the arms as in the recipe.

    Not among the usual columns are those that nobody can fill, and those that say the same of all arms: their
    number of seeds where it is the title's, the best epoch where it is everywhere the last.
    """
    marks = _marks(comparison)
    columns: list[Column] = []
    by_column: list[list[Cell]] = []
    for column, fill in COLUMNS:
        cells = [fill(comparison, arm, column) for arm in comparison.rows]
        usual = column.usual and any(cells) and not _says_nothing(column, comparison)
        columns.append(replace(column, usual=usual))
        by_column.append([cell or Cell() for cell in cells])
        if column.key in ("AP", "dAP"):
            for place, arm in enumerate(comparison.rows):
                cell = by_column[-1][place]
                if arm.name in marks and cell.value is not None:
                    by_column[-1][place] = replace(cell, mark=marks[arm.name])
    rows = tuple(zip(*by_column, strict=True))
    return Table(comparison.title, tuple(columns), rows, tuple(footnotes(comparison, columns)))


def errors(comparison: Comparison, sort: str | None = None) -> Table:
    """The same rows with what each arm loses of AP50, and how far it finds what the teacher finds.

    Args:
        comparison: with errors.
        sort: rows by this column.

    Raises:
        UsageError: the table has no such column.
    """
    made = table(comparison)
    made = made.sorted_by(sort) if sort else made
    filled = {one.key for place, one in enumerate(made.columns) if any(row[place].text for row in made.rows)}
    made = made.only([key for key in ("AP50", *ERRORS, *AGREEMENT) if key in filled])
    title, notes = f"{comparison.title}: where AP50 is lost", tuple(footnotes(comparison, made.columns))
    return replace(made, title=title, footnotes=notes)


def by_class(comparison: Comparison) -> Table:
    """AP of each class, a column an arm: means over seeds after the last epoch."""
    arms = [arm for arm in comparison.rows if arm.results]
    columns = (Column("class", "class", digits=None), *(Column(arm.name, arm.name) for arm in arms))
    # of each arm the AP of its seeds by class
    found: list[dict[str, list[float]]] = [{} for _ in arms]
    classes: dict[str, None] = {}
    for arm, aps in zip(arms, found, strict=True):
        for result in arm.results.values():
            for name, ap in result.last.per_class.items():
                classes[name] = None
                aps.setdefault(name, []).append(ap)
    rows = []
    for name in classes:
        pairs = zip(columns[1:], found, strict=True)
        cells = [column.cell(fmean(aps[name])) if name in aps else NONE for column, aps in pairs]
        rows.append((Cell(name), *cells))
    title = f"{comparison.title}: AP by class"
    return Table(title, columns, tuple(rows), tuple(footnotes(comparison, columns)))


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
    body = [(*row, Cell()) for row in table.rows]
    for one in told:
        inherits = "inheriting" if one.inherits else ""
        where = [one.source, one.schedule, inherits, "" if one.verified else "unverified"]
        cells = {"arm": Cell(one.arm), "source": Cell(", ".join(filter(None, where)))}
        numbers = {"AP": one.ap, "dAP": one.gain}
        for column in columns:
            if (number := numbers.get(column.key)) is not None:
                cells[column.key] = replace(column.cell(number), mark="dim")
        body.append(tuple(cells.get(column.key, Cell()) for column in columns))
    return replace(table, columns=columns, rows=tuple(body), footnotes=(*table.footnotes, _SOURCE.reading))


_SOURCE = Column(
    "source",
    "reported in",
    digits=None,
    reading="reported in: numbers of another codebase; compare the gain only, not AP",
)


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
    if column.key == "p_holm":
        return comparison.tests == 1
    if column.key == "best_AP":
        results = [record.result for record in comparison.records if record.result is not None]
        return all(one.best.metrics.get("AP") == one.metrics.get("AP") for one in results)
    return False
