"""Published numbers: what papers report for the pair of a recipe, from CSV files that name their source."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kdlab import catalog
from kdlab.errors import Fault, UsageError, suggestion


@dataclass(frozen=True)
class Published:
    """A number that somebody published; a row of a file, and its columns.

    AP is COCO's box AP in points 0 to 100. None and "" are what is not recorded.

    Args:
        pair: teacher and student as published.
        arm: as recipes name it; a word of its own for a method that kdlab lacks.
        ap: of the distilled student.
        gain: over the same student alone; from a file without it `ap - baseline_ap`, where both stand.
        baseline_ap: of the student alone.
        teacher_ap: of the teacher.
        schedule: of the student.
        inherits: whether its neck and head start from the teacher's.
        verified: False where no source confirmed the number.
        paper: who prints it, which need not be whose method it is.
        table: where in it.
        codebase: what its code builds on. Across two of them not even gains compare well, and AP never.
        source: what to cite; never empty.
        recipes: those of this pair.
        note: what one must know besides; never empty where there is neither `ap` nor `gain`.
    """

    pair: str
    arm: str
    ap: float | None
    gain: float | None
    baseline_ap: float | None
    teacher_ap: float | None
    schedule: str
    inherits: bool
    verified: bool
    paper: str
    table: str
    codebase: str
    source: str
    recipes: tuple[str, ...]
    note: str


COLUMNS = tuple(field.name for field in fields(Published))
POINTS = {"ap": (0, 100), "gain": (-100, 100), "baseline_ap": (0, 100), "teacher_ap": (0, 100)}
ANSWERS = {"yes": True, "no": False}


def published(recipe_name: str, folder: Path | None = None) -> list[Published]:
    """What was published for the pair of a recipe, in the order of the files.

    Where no folder of CSV files is given, it is of those that kdlab brings. Raises as `read` does.
    """
    return [row for row in read(folder or catalog.reference_folder()) if recipe_name in row.recipes]


def read(folder: Path) -> list[Published]:
    """All rows of the CSV files of a folder, file by file; none where it is not there.

    Raises:
        UsageError: columns or cells are wrong: all of them, each with file and line.
    """
    found: list[Published] = []
    faults: list[Fault] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            lines = csv.reader(stream)
            header = next(lines, [])
            if wrong := list(_header_faults(header, f"{path}:1")):
                faults += wrong
                continue
            for cells in filter(None, lines):
                where = f"{path}:{lines.line_num}"
                if len(cells) != len(header):
                    got, known = f"{len(cells)} cells", f"{len(header)}, as the header has"
                    faults.append(Fault("the line does not fit the columns", where, got, known, QUOTES))
                    continue
                values = dict(zip(header, map(str.strip, cells), strict=True))
                if wrong := list(_faults(values, where)):
                    faults += wrong
                else:
                    found.append(_row(values))
    if faults:
        raise UsageError(faults=faults)
    return found


QUOTES = "a cell that holds a comma stands in double quotes"


def _header_faults(header: Sequence[str], where: str) -> Iterator[Fault]:
    known = ", ".join(COLUMNS)
    for name in dict.fromkeys(header):
        if name not in COLUMNS:
            yield Fault("unknown column", where, name, known, suggestion(name, COLUMNS))
        elif header.count(name) > 1:
            yield Fault(f"the column {name} stands {header.count(name)} times", where)
    for name in COLUMNS:
        if name not in header:
            yield Fault(f"the column {name} is missing", where, fix="a cell may be empty, a column may not")


def _faults(values: Mapping[str, str], where: str) -> Iterator[Fault]:
    for name, (low, high) in POINTS.items():
        try:
            fits = not values[name] or low <= float(values[name]) <= high
        except ValueError:
            fits = False
        if not fits:
            known = f"a number from {low} to {high}, or nothing"
            yield Fault(f"{name} is no number of points", where, values[name], known)
    for name in ("inherits", "verified"):
        if values[name] not in ANSWERS:
            yield Fault(f"{name} must be yes or no", where, values[name] or "nothing")
    for name in ("arm", "source"):
        if not values[name]:
            yield Fault(f"{name} is missing", where, fix="a number without it cannot be compared")
    if not (values["ap"] or values["gain"] or values["note"]):
        yield Fault("ap, gain and note are all empty", where, fix="give one, or remove the line")


def _row(values: Mapping[str, str]) -> Published:
    numbers = {name: float(values[name]) if values[name] else None for name in POINTS}
    ap, baseline = numbers["ap"], numbers["baseline_ap"]
    if numbers["gain"] is None and ap is not None and baseline is not None:
        numbers["gain"] = round(ap - baseline, 2)
    answers: dict[str, Any] = {name: ANSWERS[values[name]] for name in ("inherits", "verified")}
    recipes = tuple(values["recipes"].split())
    return Published(**{**values, **numbers, **answers, "recipes": recipes})
