"""Study -> Table: a row a trial, the best first, and footnotes on what such numbers are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from kdlab.jobs.study import NO_METHOD, Dimension, State, Study, Trial, text_of
from kdlab.reporting.tables import NONE, Cell, Column, Table

_STATES: tuple[State, ...] = ("finished", "pruned", "running", "pending", "failed")
_REASONS = 5
_REASON = 100
"""Characters of a failure's cause that a footnote holds."""


def table(study: Study, top: int | None = 10) -> Table:
    """The best trials by AP; with several objectives their Pareto front by the second one.

    Beyond the `top` ones reference trials are shown all the same, and so is the whole of a front, for one
    that is cut is none. None: all trials, with their jobs and times.
    """
    front = study.front if len(study.objectives) > 1 else ()
    ranked = [*front, *(trial for trial in study.finished if trial not in front)]
    others = [trial for trial in study.trials if trial not in ranked]
    last_ap = {trial.number: trial.curve.get(trial.last_epoch, 0.0) for trial in others}
    others.sort(key=lambda one: (_STATES.index(one.state), -last_ap[one.number], one.number))
    ranked += others
    shown = front or ranked[:top]
    rows = [trial for trial in ranked if top is None or trial.reference or trial in shown]
    columns = list(_columns(study, rows, front, whole=top is None))
    title = f"{study.title}: {_counted(len(study.trials), 'trial')}"
    return Table(
        title=f"{title}, Pareto front of {' and '.join(study.objectives)}" if front else f"{title} by AP",
        columns=tuple(column for column, _ in columns),
        rows=tuple(zip(*(cells for _, cells in columns), strict=True)),
        footnotes=tuple(_footnotes(study, len(ranked) - len(rows))),
    )


def _columns(
    study: Study, rows: Sequence[Trial], front: Collection[Trial], *, whole: bool
) -> Iterator[tuple[Column, list[Cell]]]:
    """Each column that says something of these trials, with its cells."""
    number = Column("trial", "trial", digits=0)
    yield number, [number.cell(trial.number) for trial in rows]
    if any(trial.reference for trial in rows):
        yield _words("reference"), [Cell(trial.reference) for trial in rows]
    if len({trial.state for trial in rows}) > 1:
        yield _words("state"), [Cell(trial.state) for trial in rows]
    if front and any(trial not in front for trial in rows):
        yield _words("front", "Pareto"), [Cell("front" if trial in front else "") for trial in rows]
    yield from _objectives(study, rows)
    yield from _dimensions(study, rows)
    if any(trial.curve for trial in rows):
        epochs = Column("epochs", "epochs", digits=0)
        yield epochs, [epochs.cell(trial.last_epoch) if trial.curve else NONE for trial in rows]
    if whole and any(trial.job for trial in rows):
        minutes = Column("trained_min", "wall time", unit=" min")
        yield minutes, [minutes.cell(trial.wall_s / 60) for trial in rows]
        yield _words("job"), [Cell(trial.job) for trial in rows]


def _objectives(study: Study, rows: Sequence[Trial]) -> Iterator[tuple[Column, list[Cell]]]:
    """AP, the gain where there is something to gain over, and what else was to be good."""
    for place, name in enumerate(study.objectives):
        column = Column(name, name, digits=3, significant=True)
        if place == 0:
            column = Column(name, name)
        elif name == "latency":
            column = Column(name, name, digits=2, unit=" ms")
        cells = [column.cell(one.values[place]) if one in study.finished else NONE for one in rows]
        if place > 0:
            yield column, cells
            continue
        if study.best is not None:
            best = study.best.values[0]
            cells = [replace(cell, mark="bold") if cell.value == best else cell for cell in cells]
        yield column, cells
        if any(study.gain(trial) is not None for trial in study.finished):
            column, cells = Column("gain", "gain", signed=True), []
            for trial in rows:
                missing = NONE if trial.has_methods else Cell()
                gain = study.gain(trial)
                cells.append(missing if gain is None else column.cell(gain))
            yield column, cells


def _dimensions(study: Study, rows: Sequence[Trial]) -> Iterator[tuple[Column, list[Cell]]]:
    for dimension in _by_importance(study):
        name = dimension.name
        column = _words(name) if dimension.choices else Column(name, name, digits=3, significant=True)
        cells = []
        for trial in rows:
            if trial.off(name):
                cells.append(NONE)
            elif dimension.choices:
                cells.append(Cell(text_of(trial.params[name])))
            else:
                cells.append(column.cell(trial.params[name]))
        yield column, cells


def _by_importance(study: Study) -> list[Dimension]:
    """What matters most comes first, for a narrow screen leaves out the last columns."""
    shares = study.importance or {}
    return sorted(study.dimensions, key=lambda dimension: -shares.get(dimension.name, 0.0))


def _words(key: str, title: str = "") -> Column:
    return Column(key, title or key, digits=None)


def _footnotes(study: Study, left: int) -> Iterator[str]:
    """What the numbers are, what is not shown, what went wrong, and what matters."""
    counts = Counter(trial.state for trial in study.trials)
    trained, measured = study.images
    yield (
        f"AP on the tuning split: trained on {trained:,} images of the training set and measured on "
        f"{measured:,} others of it; one seed ({study.seed})"
    )
    if study.finished:
        yield (
            "no numbers for a paper: the highest (bold) is the best of "
            f"{_counted(counts['finished'] + counts['pruned'], 'trial')}, so it is optimistic; "
            "the tuned recipe measures it on the validation set, which no trial has seen"
        )
    if study.trials and all(trial.reference for trial in study.trials):
        yield f"nothing was searched: {_counted(len(study.trials), 'trial')}, all of them references"
    if left:
        yield f"{_counted(left, 'trial')} not shown"
    yield ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]) or "no trial yet"
    if counts["pruned"]:
        yield "pruned: stopped early because its AP by epoch fell behind, so it has none to compare"
    yield from _failures(study)
    yield from _gains(study)
    yield f"searched: {'; '.join(f'{one.name} {one.range}' for one in study.dimensions)}"
    yield from _importance(study)
    made = [f"kdlab {study.commit}" if study.commit else "", f"on {study.device}" if study.device else ""]
    if any(made):
        yield f"trained with {' '.join(filter(None, made))}"
    yield f"study {study.name}"


def _failures(study: Study) -> Iterator[str]:
    failed = [trial for trial in study.trials if trial.state == "failed"]
    reasons = Counter(" ".join(trial.why.split()) or "unknown" for trial in failed)
    for reason, count in reasons.most_common(_REASONS):
        yield f"failed, {count} x: {reason if len(reason) <= _REASON else f'{reason[:_REASON]}...'}"
    if (left := len(reasons) - _REASONS) > 0:
        yield f"failed for {_counted(left, 'other reason')}, which the logs of their jobs tell"


def _gains(study: Study) -> Iterator[str]:
    """What the gain is over, and whether anything gained."""
    alone = study.baseline
    if alone is None:
        yield "no gains: no trial is without methods"
        return
    named = f"trial {alone.number} ({NO_METHOD})"
    if not any(one in study.finished and not one.has_methods for one in study.trials):
        yield f"no gains: {named} has not finished"
        return
    over = f"the same student, {NO_METHOD}" if alone.student else named
    yield f"gain: AP minus that of {over}, same seed and images; no test"
    gains = [study.gain(trial) for trial in study.finished if trial.has_methods]
    if gains and not any(gain and gain > 0 for gain in gains):
        yield f"warning: no trial is above {NO_METHOD}"


def _importance(study: Study) -> Iterator[str]:
    """Which dimension decides; of a single one that is no question."""
    if len(study.dimensions) < 2:
        return
    if study.importance is None:
        yield "importance of the dimensions: too few trials to tell"
        return
    names = [one.name for one in _by_importance(study) if one.name in study.importance]
    shares = ", ".join(f"{name} {study.importance[name]:.2f}" for name in names)
    yield f"importance (fANOVA: share in the spread of AP): {shares}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
