"""Diagnoses -> Tables: how far each arm agrees with the teacher, and where its gain comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdlab.reporting.diagnosis import Diagnoses, Pair
from kdlab.reporting.tables import Cell, Column, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdlab.jobs.diagnosis import Diagnosis

    Mask = NDArray[Any]

RANKINGS = {"score": "score", "iou": "IoU", "both": "both"}
"""What priors are ranked by, with the heading of it."""
SIZES = {"small": (-1.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, inf)}
"""COCO's groups of objects by area in pixels: above the first and up to the second."""
OVERLAPS = {"none": (-1.0, 0.0), "up to IoU 0.2": (0.0, 0.2), "above 0.2": (0.2, inf)}
"""Groups of objects by their largest IoU with another one, likewise."""
THIRDS = {0: "lowest", 1: "middle", 2: "highest", -1: "none to tell"}
"""Groups of objects by what `thirds` says."""
MOST_CLASSES = 12
"""Classes that the terminal shows; of more, those where the arms gain and lose most."""

_TAU = (
    "tau: Kendall's tau-b of the student's and the teacher's ranking of an object's positive priors, mean "
    "over objects with two or more; by class probability, by IoU of the decoded box, by their product"
)
_TOP = "top-1: share of these objects of which both rank the same prior first"
_OTHER = (
    "other prior: share of the objects that both find (IoU 0.5, right class) whose box after NMS stems from "
    "another prior than the teacher's"
)
_LEVELS = (
    "P~F: correlation over the cells of a level of the squared differences to the teacher in predictions (P) "
    "and in features (F, after the best 1x1 map of each student)"
)
_FEATURE = (
    "F: squared difference of a level's features to the teacher's, after the best 1x1 map of each student, "
    "mean over cells and channels"
)
MEASURES = {
    "precision": (
        "where the gain comes from",
        "AP split by objects: each counts with the precision at which the evaluation met it, mean over IoU "
        "0.50 to 0.95, all classes alike; the mean over all is AP; arms: difference to the baseline",
    ),
    "met": (
        "where recall comes from",
        "recall split by objects: the share of the thresholds IoU 0.50 to 0.95 at which the evaluation met "
        "each, whatever the score, all classes alike; arms: difference to the baseline",
    ),
}
"""What is told of groups of objects: the title and the reading."""
_THIRDS = "rank agreement: thirds of the objects by the baseline's tau by score; other reasons may go with it"


def agreement(found: Diagnoses) -> Table:
    """A row an arm, the teacher first: AP and how far the arm agrees with the teacher."""
    columns = [Column("arm", "arm", digits=None), Column("AP", "AP"), *_agreement_columns(found)]
    teacher = [Cell("teacher"), columns[1].cell(found.any.result.diagnosis["teacher_AP"])]
    rows = [(*teacher, *(Cell() for _ in columns[2:]))]
    for name, seeds in found.arms.items():
        results = [one.result for one in seeds.values()]
        told = [{"AP": one.metrics["AP"], **_flat(one.diagnosis)} for one in results]
        rows.append((Cell(name), *(_mean(column, told) for column in columns[1:])))
    first = found.any.result.diagnosis
    counts = f"{first['objects']} objects"
    if not found.lacks.get("ranking"):
        counts += f", {first['ranked']} of them with two priors or more"
    notes = [_seeds(found), counts, *dict.fromkeys(one.reading for one in columns if one.reading)]
    notes += [f"not told: {reason}" for reason in dict.fromkeys(found.lacks.values())]
    return Table(f"{found.title}: agreement with the teacher", tuple(columns), tuple(rows), tuple(notes))


def gains(found: Diagnoses, measure: str = "precision", *, all_classes: bool = False) -> Table | None:
    """A row a group of objects: what teacher and baseline have, and what each arm adds; None without arms.

    Args:
        found: with a baseline.
        measure: one of `MEASURES`.
        all_classes: whether every class has its row, however many there are.
    """
    pairs = {name: found.pairs(name) for name in found.arms if name != found.baseline}
    pairs = {name: own for name, own in pairs.items() if own}
    if not pairs:
        return None
    what, reading = MEASURES[measure]
    arms = [Column(name, name, signed=True) for name in pairs]
    columns = (
        Column("group", "objects by", digits=None),
        Column("objects", "n", digits=0),
        Column("teacher", "teacher"),
        Column("baseline", str(found.baseline)),
        *arms,
    )
    groups = _groups(found)
    passed_over = set() if all_classes else _passed_over(found, pairs, measure)
    made = [
        _of_group(found, pairs, columns, measure, name, groups[name])
        for name in groups
        if name not in passed_over
    ]
    rows = [row for row in made if row]
    notes = [_seeds(found), reading]
    if not found.lacks.get("ranking"):
        notes.append(_THIRDS)
    if passed_over:
        notes.append(f"{len(passed_over)} classes that moved less are left out; --json has them")
    return Table(f"{found.title}: {what}", columns, tuple(rows), tuple(notes))


def _of_group(
    found: Diagnoses,
    pairs: Mapping[str, Mapping[int, Pair]],
    columns: Sequence[Column],
    measure: str,
    name: str,
    members: Callable[[Diagnosis], Mask],
) -> tuple[Cell, ...]:
    """The row of a group; nothing of one that no seed has objects of."""
    plain = {seed: one.rows for seed, one in found.arms[str(found.baseline)].items()}
    # which objects are in a third is for each seed's baseline to say
    masks = {seed: members(rows) for seed, rows in plain.items()}
    masks = {seed: mask for seed, mask in masks.items() if mask.any()}
    if not masks:
        return ()

    def reached(rows: Diagnosis, seed: int, role: str = "student") -> float:
        return points(rows, role, measure, masks[seed])

    count = fmean(float(mask.sum()) for mask in masks.values())
    # one teacher, seen again with every seed
    teacher = [fmean(reached(plain[seed], seed, "teacher") for seed in masks)]
    values = [[count], teacher, [reached(plain[seed], seed) for seed in masks]]
    for own in pairs.values():
        both = {seed: pair for seed, pair in own.items() if seed in masks}
        values.append(
            [reached(arm.rows, seed) - reached(base.rows, seed) for seed, (arm, base) in both.items()]
        )
    cells = (column.over(one) for column, one in zip(columns[1:], values, strict=True))
    return Cell(name), *cells


def points(rows: Diagnosis, role: str, measure: str, mask: Mask) -> float:
    """Points 0 to 100 of the objects of a group, all classes alike; over all objects it is AP, or recall.

    Args:
        rows: of a student.
        role: "student" or "teacher".
        measure: one of `MEASURES`.
        mask: (G,) bool, not empty: the group.
    """
    import numpy as np

    values = np.asarray(getattr(getattr(rows, role), measure), float)
    scale = 100 if measure == "precision" else 10
    weights = 1 / np.bincount(rows.label)[rows.label[mask]]
    return float(scale * np.average(values[mask], weights=weights))


def _agreement_columns(found: Diagnoses) -> Iterator[Column]:
    """Those that the pair has numbers for."""
    if not found.lacks.get("ranking"):
        for key, word in RANKINGS.items():
            yield Column(f"tau_{key}", f"tau, {word}", digits=2, reading=_TAU)
        for key, word in RANKINGS.items():
            yield Column(f"top-1_{key}", f"top-1, {word}", digits=0, unit=" %", reading=_TOP)
        yield Column("other_prior", "other, prior", digits=0, unit=" %", reading=_OTHER)
    blind = "predictions" in found.lacks
    for stride in found.any.result.diagnosis["levels"]:
        if not blind:
            yield Column(f"correlation_{stride}", f"P~F, /{stride}", digits=2, reading=_LEVELS)
            yield Column(f"prediction_{stride}", f"P, /{stride}", digits=2, significant=True, usual=False)
        told = {"reading": _FEATURE} if blind else {"usual": False}
        yield Column(f"feature_{stride}", f"F, /{stride}", digits=2, significant=True, **told)


def _flat(told: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a diagnosis by the keys of their columns; shares in percent."""
    found = {f"tau_{name}": value for name, value in told["tau"].items()}
    found |= {f"top-1_{name}": 100 * value for name, value in told["top"].items()}
    if told["other_prior"] is not None:
        found["other_prior"] = 100 * told["other_prior"]
    for stride, level in told["levels"].items():
        found |= {f"{name}_{stride}": value for name, value in level.items()}
    return found


def _mean(column: Column, told: Sequence[Mapping[str, float]]) -> Cell:
    return column.over([one[column.key] for one in told if column.key in one])


def _groups(found: Diagnoses) -> dict[str, Callable[[Diagnosis], Mask]]:
    """By name what tells the members (G,) of a group of objects."""
    groups: dict[str, Callable[[Diagnosis], Mask]] = {"all": lambda rows: rows.label >= 0}
    groups |= {f"size: {name}": partial(_between, "area", *ends) for name, ends in SIZES.items()}
    groups |= {f"overlap: {name}": partial(_between, "overlap", *ends) for name, ends in OVERLAPS.items()}
    if not found.lacks.get("ranking"):
        for third, name in THIRDS.items():
            groups[f"rank agreement: {name}"] = partial(_in_third, third)
    for label, name in enumerate(found.classes):
        groups[f"class: {name}"] = partial(_of_class, label)
    return groups


def _between(name: str, above: float, up_to: float, rows: Diagnosis) -> Mask:
    values: Mask = getattr(rows, name)
    members: Mask = (above < values) & (values <= up_to)
    return members


def _in_third(third: int, rows: Diagnosis) -> Mask:
    members: Mask = thirds(rows) == third
    return members


def _of_class(label: int, rows: Diagnosis) -> Mask:
    members: Mask = rows.label == label
    return members


def thirds(rows: Diagnosis) -> Mask:
    """(G,) 0, 1 or 2: the third of an object by its tau by score, lowest first; -1 where it has none.

    Objects of equal tau are in the same third, so that thirds can differ in size.
    """
    import numpy as np

    tau = rows.tau[:, 0]
    known = np.isfinite(tau)
    third = np.full(len(tau), -1)
    if known.any():
        bounds = np.quantile(tau[known], [1 / 3, 2 / 3], method="lower")
        third[known] = np.searchsorted(bounds, tau[known], side="left")
    return third


def _passed_over(found: Diagnoses, pairs: Mapping[str, Mapping[int, Pair]], measure: str) -> set[str]:
    """Of many classes the groups of those in which the arms gain and lose least."""
    if len(found.classes) <= MOST_CLASSES:
        return set()
    moved = {}
    for label, name in enumerate(found.classes):
        changes = [
            points(arm.rows, "student", measure, mask) - points(base.rows, "student", measure, mask)
            for own in pairs.values()
            for arm, base in own.values()
            if (mask := arm.rows.label == label).any()
        ]
        if changes:
            moved[f"class: {name}"] = fmean(changes)
    ordered = sorted(moved, key=lambda name: moved[name])
    half = MOST_CLASSES // 2
    return set(ordered[half:-half])


def _seeds(found: Diagnoses) -> str:
    """Over which seeds the means are."""
    seeds = sorted({seed for own in found.arms.values() for seed in own})
    spread = "mean ± sample deviation over " if len(seeds) > 1 else ""
    missing = [f"{name} {len(own)}" for name, own in found.arms.items() if len(own) < len(seeds)]
    told = f"{spread}seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}"
    return f"{told}; fewer seeds: {', '.join(missing)}" if missing else told
