"""Records -> Table: one row an arm, mean and deviation over seeds, and footnotes on what was compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any, Literal

from kdlab.jobs.job import SCHEMA
from kdlab.reporting.arms import Arm, arms_of
from kdlab.reporting.provenance import provenance
from kdlab.reporting.records import Record
from kdlab.reporting.teachers import teacher_notes

Mark = Literal["", "bold", "underline", "dim"]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "VOC07", "VOC12")


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Args:
        text: as people read it; "-" where a number is missing, "" where there can be none.
        value: the number in `text`, not rounded; None in a cell of words.
        deviation: sample standard deviation over seeds, where `text` shows one.
        mark: how it stands out.
        how: how the number was made, for `--format explain`; "" where the column says it all.
    """

    text: str = ""
    value: float | None = None
    deviation: float | None = None
    mark: Mark = ""
    how: str = ""


@dataclass(frozen=True)
class Column:
    """What the cells of a column have in common.

    Args:
        key: the column's name in CSV and JSON.
        title: its heading for people.
        digits: decimals shown; None for a column of words.
        signed: whether a gain shows its plus.
        unit: what follows the number.
    """

    key: str
    title: str
    digits: int | None = 1
    signed: bool = False
    unit: str = ""

    def plain(self, number: float) -> str:
        """`number` with the decimals of this column and nothing else; never "-0.0"."""
        return f"{round(number, self.digits) + 0.0:.{self.digits}f}"

    def cell(self, value: float, deviation: float | None = None) -> Cell:
        """The cell that shows a number and, if given, its deviation."""
        number = self.plain(value)
        plus = "+" if self.signed and not number.startswith("-") else ""
        spread = "" if deviation is None else f" ± {self.plain(deviation)}"
        return Cell(f"{plus}{number}{self.unit}{spread}", value, deviation)


@dataclass(frozen=True)
class Table:
    """A comparison as plain data; `renderers` turns it into text.

    Args:
        title: what is compared.
        columns: headings, without columns that nobody can fill.
        rows: the teacher, then the arms as in the recipe; a cell a column.
        footnotes: what a reader must know to trust the numbers, a sentence each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footnotes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data, the cells of a row by the keys of their columns."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "columns": [{"key": column.key, "title": column.title} for column in self.columns],
            "rows": [
                {column.key: asdict(cell) for column, cell in zip(self.columns, row, strict=True)}
                for row in self.rows
            ],
            "footnotes": list(self.footnotes),
        }


COLUMNS = (
    Column("arm", "arm", digits=None),
    Column("inherits", "inherits", digits=None),
    Column("AP", "AP"),
    Column("dAP", "dAP", signed=True),
    *(Column(metric, metric) for metric in METRICS[1:]),
    Column("gap_closed", "gap closed", digits=0, unit=" %"),
    Column("n", "n", digits=0),
    Column("step_x", "step x", digits=2),
    Column("method_x", "method x", digits=2),
    Column("best_AP", "best epoch*"),
)
_READING = {
    "inherits": "inherits: tensors of the student's neck and head that start from the teacher's",
    "gap_closed": 'gap closed: gain / (teacher - baseline); "-" where the teacher is not above the baseline',
    "VOC07": "VOC07: PASCAL VOC's mAP at IoU 0.5, mean precision at 11 recalls; VOC12: area under the curve",
    "step_x": "step x: time of a training step, the student alone = 1",
    "method_x": "method x: the same, the student alone and a teacher's forward pass = 1",
    "best_AP": "* chosen on the evaluation set, enters no test",
}


def table(plan: dict[str, Any], records: Sequence[Record], *, pool: bool = False) -> Table:
    """Compare the arms of a plan after their last epoch.

    Gains are over the first arm without methods and paired: the mean over the seeds that both have.
    No cell is bold yet: that needs a test, and there is none.

    Args:
        plan: content of the plan's file.
        records: what `collect` found for it.
        pool: average jobs that ran in micro-batches with those that ran whole.
    """
    teacher, arms = arms_of(plan, records, pool)
    baseline = next((arm for arm in arms if arm.plain), None)
    rows = [_row(arm, teacher, baseline) for arm in ([teacher] if teacher else []) + arms]
    if not any(_best_differs(record) for record in records):
        rows = [{key: cell for key, cell in row.items() if key != "best_AP"} for row in rows]
    columns = tuple(column for column in COLUMNS if any(column.key in row for row in rows))
    return Table(
        title=_title(plan, arms),
        columns=columns,
        rows=tuple(tuple(row.get(column.key, Cell()) for column in columns) for row in rows),
        footnotes=tuple(_footnotes(plan, records, arms, baseline, columns)),
    )


def _row(arm: Arm, teacher: Arm | None, baseline: Arm | None) -> dict[str, Cell]:
    """The cells of an arm by column; a column that does not apply to it is absent."""
    columns = {column.key: column for column in COLUMNS}
    row = {"arm": Cell(arm.name), "AP": Cell("-", mark="dim")}
    for metric in METRICS:
        if values := arm.over_seeds("metrics", metric):
            row[metric] = columns[metric].cell(fmean(values), _deviation(values) if metric == "AP" else None)
    if arm.inherits:
        row["inherits"] = Cell(_inherited(arm))
    done, planned = len(arm.results), len(arm.records)
    row["n"] = Cell(f"{done}" if done == planned else f"{done} of {planned}", done)
    if best := arm.over_seeds("best", "AP"):
        row["best_AP"] = columns["best_AP"].cell(fmean(best), _deviation(best))
    if arm.results and arm is not teacher:
        row |= {name: columns[name].cell(ratio) for name, ratio in _step_ratios(arm).items()}
    if baseline and arm.results and arm not in (teacher, baseline):
        gain = _gain(arm, baseline)
        row["dAP"] = Cell("-") if gain is None else columns["dAP"].cell(gain)
        if teacher and teacher.results:
            gap = _gap(arm, teacher, baseline)
            closed = None if gain is None or gap is None else 100 * gain / gap
            row["gap_closed"] = Cell("-") if closed is None else columns["gap_closed"].cell(closed)
    return row


def _deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation, None for a single value."""
    return stdev(values) if len(values) > 1 else None


def _common_seeds(arm: Arm, baseline: Arm) -> list[int]:
    return sorted(arm.results.keys() & baseline.results.keys())


def _gain(arm: Arm, baseline: Arm) -> float | None:
    """Mean difference of AP over the common seeds, in points."""
    own, plain = arm.results, baseline.results
    gains = [own[seed].metrics["AP"] - plain[seed].metrics["AP"] for seed in _common_seeds(arm, baseline)]
    return fmean(gains) if gains else None


def _gap(arm: Arm, teacher: Arm, baseline: Arm) -> float | None:
    """What `arm` could close: teacher minus baseline over the common seeds, None unless above 0."""
    below = [baseline.results[seed].metrics["AP"] for seed in _common_seeds(arm, baseline)]
    gap = fmean(teacher.over_seeds("metrics", "AP")) - fmean(below) if below else 0.0
    return gap if gap > 0 else None


def _step_ratios(arm: Arm) -> dict[str, float]:
    """Medians over seeds of the time of a training step, by what it is compared with."""
    if not arm.distils:
        return {"step_x": 1.0}
    timings = [result.timing for result in arm.results.values() if "distill_step_s" in result.timing]
    if not timings:
        return {}
    plain = [timing["student_step_s"] for timing in timings]
    watched = [timing["student_step_s"] + timing["teacher_forward_s"] for timing in timings]
    steps = [timing["distill_step_s"] for timing in timings]
    return {
        name: median(step / other for step, other in zip(steps, others, strict=True))
        for name, others in (("step_x", plain), ("method_x", watched))
    }


def _inherited(arm: Arm) -> str:
    """ "31 of 34" as soon as a job has counted."""
    found = next((result.model.get("inherited") for result in arm.results.values()), None)
    return f"{found['tensors']} of {found['of']}" if found else "yes"


def _best_differs(record: Record) -> bool:
    result = record.result
    return result is not None and result.best.get("AP") != result.metrics.get("AP")


def _title(plan: dict[str, Any], arms: Iterable[Arm]) -> str:
    counts = sorted({len(arm.results) for arm in arms})
    n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else "0"
    return f"{plan['recipe'].get('title') or plan['recipe']['name']}, n={n}"


def _footnotes(
    plan: dict[str, Any],
    records: Sequence[Record],
    arms: Sequence[Arm],
    baseline: Arm | None,
    shown: Sequence[Column],
) -> list[str]:
    """How to read the columns, what is missing, and where the numbers come from."""
    seeds = {record.job.seed for arm in arms for record in arm.records}
    spread = "mean ± sample deviation over " if len(seeds) > 1 else ""
    teachers = [record for record in records if record.job.is_teacher]
    return [
        f"after the last epoch, {spread}{_seeds(seeds)}",
        *(_READING[column.key] for column in shown if column.key in _READING),
        *(note for record in teachers for note in teacher_notes(record)),
        *_in_micro_batches(records),
        *(note for arm in arms for note in _missing(arm)),
        *(note for arm in arms if baseline for note in _paired(arm, baseline)),
        *provenance(records),
        f"plan {plan['id']} of {plan['recipe']['name']}",
    ]


def _in_micro_batches(records: Sequence[Record]) -> list[str]:
    """Which jobs ran out of memory and were trained in parts."""
    cut = {record.job.label: record.job.settings.get("micro_batch") for record in records}
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
    return [f"{arm.name}: n={len(arm.results)} of {len(arm.records)}, {', '.join(lacking)}"]


def _paired(arm: Arm, baseline: Arm) -> list[str]:
    """Which seeds a gain is over, where only one side has some."""
    common = _common_seeds(arm, baseline)
    if not common or arm.results.keys() == baseline.results.keys():
        return []
    return [f"{arm.name}: gain over {_seeds(common)}, which {baseline.name} has too"]


def _seeds(seeds: Iterable[int]) -> str:
    """ "seed 0" or "seeds 0 1 2"."""
    numbers = [str(seed) for seed in sorted(seeds)]
    return f"{'seed' if len(numbers) == 1 else 'seeds'} {' '.join(numbers)}"
