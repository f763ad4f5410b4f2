"""Comparison -> Tables: what arms change in the errors of the baseline, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.statistics import SEEDS_FOR_A_TEST, Crossed
from kdlab.reporting.tables import Cell, Column, Table
from kdlab.reporting.tide import CONFUSED_SCORE, FOREGROUND, KINDS, Lost

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PAIRS = 12
"""Pairs of classes that a table shows; of more, those that are confused most."""
BACKGROUND = "(background)"
_GAINS = (
    "AP50 points; arms: difference to the baseline, mean over the seeds that both have ± sample deviation of "
    "the differences; below 0 in a row of an error: it costs the arm less"
)
_NO_TEST = "no test is made of so many numbers: compare a mean with its deviation, and one seed tells nothing"
_COUNTS = (
    f"objects that a detection of score {CONFUSED_SCORE:g} or more finds (IoU {FOREGROUND:g}) and calls "
    "something else: mean over seeds; each detection, by falling score, takes the free object of largest IoU"
)


def gains(comparison: Comparison) -> Table | None:
    """A row an error: what it costs the baseline, and how much more or less each arm; None without arms."""
    baseline = comparison.baseline
    pairs = {arm.name: _pairs(comparison, arm) for arm in comparison.arms if not arm.plain}
    pairs = {name: own for name, own in pairs.items() if own}
    if baseline is None or not pairs:
        return None
    like = {
        arm.name: arm.micro_batch == getattr(comparison.rival(arm), "micro_batch", None)
        for arm in comparison.arms
    }
    plain = list(comparison.lost_of(baseline).values())
    columns = (
        Column("error", "error", digits=None),
        Column("baseline", baseline.name),
        *(Column(name, name, signed=True) for name in pairs),
    )
    rows = []
    for key, word in {"AP50": "AP50", **KINDS}.items():
        cells = [Cell(word), columns[1].over([_value(one, key) for one in plain])]
        for column, own in zip(columns[2:], pairs.values(), strict=True):
            changes = [_value(one, key) - _value(base, key) for one, base in own.values()]
            cells.append(_sure(column, changes) if like[column.key] else column.over(changes))
        rows.append(tuple(cells))
    title = f"{comparison.title}: what arms change of it"
    return Table(title, columns, tuple(rows), (_GAINS, _NO_TEST))


def confused(comparison: Comparison, most: int = MOST_PAIRS) -> Table | None:
    """A row a pair of classes, those that students confuse most first; None where nobody confuses any.

    Args:
        comparison: with errors.
        most: rows at most.
    """
    found = matrices(comparison)
    students = [matrix for name, matrix in found.items() if name != "teacher"] or [*found.values()]
    if not students:
        return None
    total = sum(students[1:], students[0])
    names = comparison.classes
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j and total[i, j] > 0]
    pairs.sort(key=lambda pair: (-total[pair], pair))
    if not pairs:
        return None
    columns = (
        Column("object", "object", digits=None),
        Column("detection", "taken for", digits=None),
        Column("objects", "objects", digits=0),
        *(Column(name, name) for name in found),
    )
    objects = students[0].sum(1)
    rows = []
    for i, j in pairs[:most]:
        counts = [column.cell(float(found[column.key][i, j])) for column in columns[3:]]
        rows.append((Cell(names[i]), Cell(names[j]), columns[2].cell(float(objects[i])), *counts))
    notes = [_COUNTS]
    if len(pairs) > most:
        notes.append(
            f"{len(pairs) - most} pairs that are confused less are left out; --json and --write have all"
        )
    return Table(f"{comparison.title}: classes taken for one another", columns, tuple(rows), tuple(notes))


def matrices(comparison: Comparison) -> dict[str, NDArray[Any]]:
    """(K + 1, K + 1) confusion matrix of each arm, the teacher's first; mean over seeds. See `tide.Lost`."""
    found = {arm.name: comparison.lost_of(arm) for arm in comparison.rows}
    import numpy as np

    return {
        name: np.mean([one.confusion for one in own.values()], axis=0) for name, own in found.items() if own
    }


def matrix_table(comparison: Comparison) -> Table | None:
    """The confusion matrices below one another, for files: a row an arm and class; None without any."""
    names = (*comparison.classes, BACKGROUND)
    columns = (
        Column("arm", "arm", digits=None),
        Column("object", "object", digits=None),
        *(Column(f"as {name}", name) for name in comparison.classes),
        Column("background", BACKGROUND),
    )
    rows = [
        (
            Cell(arm),
            Cell(name),
            *(column.cell(float(count)) for column, count in zip(columns[2:], counts, strict=True)),
        )
        for arm, matrix in matrices(comparison).items()
        for name, counts in zip(names, matrix, strict=True)
    ]
    if not rows:
        return None
    reading = (
        f"counts, mean over seeds: row the object's class, column the detection's; score {CONFUSED_SCORE:g} "
        f"or more, IoU {FOREGROUND:g}; column {BACKGROUND}: objects not found, row: detections on no object"
    )
    return Table(f"{comparison.title}: confusion matrices", columns, tuple(rows), (reading,))


def plain_matrices(comparison: Comparison) -> dict[str, Any]:
    """The confusion matrices for programs."""
    return {
        "plan": comparison.plan.id,
        "score": CONFUSED_SCORE,
        "iou": FOREGROUND,
        "classes": [*comparison.classes, BACKGROUND],
        "arms": {name: matrix.round(6).tolist() for name, matrix in matrices(comparison).items()},
    }


def _pairs(comparison: Comparison, arm: Arm) -> Mapping[int, tuple[Lost, Lost]]:
    """By seed what an arm and its baseline lose, where both were measured on the same objects."""
    rival = comparison.rival(arm)
    plain = comparison.lost_of(rival) if rival else {}
    shared = {seed: (one, plain[seed]) for seed, one in comparison.lost_of(arm).items() if seed in plain}
    return {seed: pair for seed, pair in shared.items() if pair[0].truth == pair[1].truth}


def _value(one: Lost, key: str) -> float:
    return one.ap50 if key == "AP50" else one.gains[key]


def _sure(column: Column, changes: Sequence[float]) -> Cell:
    """As `Column.over`, with the t interval over seeds in its account where there are enough of them."""
    cell = column.over(changes)
    if len(changes) < SEEDS_FOR_A_TEST:
        return cell
    import numpy as np

    ends = column.span(Crossed.of(np.array([changes])).interval(1.0)).text
    return replace(cell, how=f"t interval of the mean difference over {len(changes)} seeds: {ends}")
