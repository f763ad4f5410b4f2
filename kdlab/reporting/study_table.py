"""Study -> Table: a row a trial, the best first, and footnotes on what such numbers are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from kdlab.reporting.columns import NONE
from kdlab.reporting.study import NO_METHOD, Dimension, State, Study, Trial, word
from kdlab.reporting.tables import Cell, Column, Table

Fill = Callable[[Trial], Cell]

_STATES: tuple[State, ...] = ("complete", "pruned", "running", "failed")
_LATENCY = Column("latency", "latency", digits=2, unit=" ms")
_REASONS = 5
_REASON = 100
"""Characters of a failure's cause that a footnote holds."""


def table(study: Study, top: int | None = 10) -> Table:
    """The best trials by AP; with several objectives their Pareto front by the second one.

    Args:
        study: what was tried.
        top: rows of the best trials; the reference trials beyond them are shown all the same, and so is the
            whole of a front, for one that is cut is none. None: all trials, with their jobs and times.

    Returns:
        A table without rows where there is no trial.
    """
    ranked = _ranked(study)
    front = {trial.number for trial in study.front} if len(study.objectives) > 1 else set()
    rows = [
        trial
        for place, trial in enumerate(ranked)
        if top is None or trial.note or (trial.number in front if front else place < top)
    ]
    filled = list(_columns(study, rows, front, whole=top is None))
    return Table(
        title=_title(study, front),
        columns=tuple(column for column, _ in filled),
        rows=tuple(tuple(fill(trial) for _, fill in filled) for trial in rows),
        footnotes=tuple(_footnotes(study, len(ranked) - len(rows))),
    )


def _ranked(study: Study) -> list[Trial]:
    """The front from the cheapest on, then what ended by AP, then what did not by how far it came."""
    first = study.front if len(study.objectives) > 1 else ()
    taken = {trial.number for trial in first}
    ended = [trial for trial in study.complete if trial.number not in taken]
    taken |= {trial.number for trial in ended}
    others = [trial for trial in study.trials if trial.number not in taken]
    return [
        *first,
        *sorted(ended, key=lambda trial: (study.costs(trial), trial.number)),
        *sorted(
            others, key=lambda trial: (_STATES.index(trial.state), -(trial.last_ap or 0.0), trial.number)
        ),
    ]


def _columns(
    study: Study, rows: Sequence[Trial], front: set[int], *, whole: bool
) -> Iterator[tuple[Column, Fill]]:
    """Each column that says something of these trials, with what fills it."""
    number = Column("trial", "trial", digits=0)
    yield number, lambda trial: number.cell(trial.number)
    if any(trial.note for trial in rows):
        yield _words("note", "reference"), lambda trial: Cell(trial.note)
    if len({trial.state for trial in rows}) > 1:
        yield _words("state", "state"), lambda trial: Cell(trial.state)
    if front and any(trial.number not in front for trial in rows):
        yield _words("front", "Pareto"), lambda trial: Cell("front" if trial.number in front else "")
    yield from _objectives(study)
    for dimension in _by_importance(study):
        yield _dimension(dimension)
    if any(trial.course for trial in rows):
        epochs = Column("epochs", "epochs", digits=0)
        yield epochs, lambda trial: NONE if trial.epochs is None else epochs.cell(trial.epochs)
    if whole:
        yield from _jobs(rows)


def _objectives(study: Study) -> Iterator[tuple[Column, Fill]]:
    """AP, the gain where there is something to gain over, and what else was to be good."""
    known = {trial.number: dict(zip(study.objectives, trial.values, strict=True)) for trial in study.complete}
    best = study.best and study.ap(study.best)
    ap, gain = Column(study.objectives[0], study.objectives[0]), Column("gain", "gain", signed=True)

    def measured(column: Column) -> Fill:
        return lambda trial: column.cell(known[trial.number][column.key]) if trial.number in known else NONE

    def marked(trial: Trial) -> Cell:
        cell = measured(ap)(trial)
        return replace(cell, mark="bold") if cell.value is not None and cell.value == best else cell

    def gained(trial: Trial) -> Cell:
        if trial.plain:
            return Cell()
        found = study.gain(trial)
        return NONE if found is None else gain.cell(found)

    yield ap, marked
    if any(study.gain(trial) is not None for trial in study.complete):
        yield gain, gained
    for name in study.objectives[1:]:
        column = _LATENCY if name == "latency" else Column(name, name, digits=3, significant=True)
        yield column, measured(column)


def _dimension(dimension: Dimension) -> tuple[Column, Fill]:
    if not dimension.numeric:
        column = _words(dimension.name, dimension.name)
        return (
            column,
            lambda trial: NONE if trial.off(dimension.name) else Cell(word(trial.params[dimension.name])),
        )
    number = Column(dimension.name, dimension.name, digits=3, significant=True)
    return (
        number,
        lambda trial: NONE if trial.off(dimension.name) else number.cell(trial.params[dimension.name]),
    )


def _by_importance(study: Study) -> list[Dimension]:
    """What matters most comes first, for a narrow screen leaves out the last columns."""
    shares = study.importance or {}
    return sorted(study.dimensions, key=lambda dimension: -shares.get(dimension.name, 0.0))


def _jobs(rows: Sequence[Trial]) -> Iterator[tuple[Column, Fill]]:
    if any(trial.wall_s is not None for trial in rows):
        minutes = Column("trained_min", "trained", unit=" min")
        yield minutes, lambda trial: NONE if trial.wall_s is None else minutes.cell(trial.wall_s / 60)
    if any(trial.job for trial in rows):
        yield _words("job", "job"), lambda trial: Cell(trial.job)


def _words(key: str, title: str) -> Column:
    return Column(key, title, digits=None)


def _title(study: Study, front: set[int]) -> str:
    told = f"{study.title}: {_counted(len(study.trials), 'trial')}"
    return f"{told}, Pareto front of {' and '.join(study.objectives)}" if front else f"{told} by AP"


def _footnotes(study: Study, left: int) -> Iterator[str]:
    """What the numbers are, what is not shown, what went wrong, and what matters."""
    yield from _worth(study)
    if left:
        yield f"{_counted(left, 'trial')} not shown"
    counts = Counter(trial.state for trial in study.trials)
    yield ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]) or "no trial yet"
    if counts["pruned"]:
        yield "pruned: stopped early because its AP by epoch fell behind, so it has none to compare"
    yield from _failures(study)
    yield from _gains(study)
    yield _searched(study)
    yield from _importance(study)
    made = [f"kdlab {study.commit}" if study.commit else "", f"on {study.device}" if study.device else ""]
    if any(made):
        yield f"trained with {' '.join(filter(None, made))}"
    yield f"study of {study.name}"


def _worth(study: Study) -> Iterator[str]:
    trained, measured = study.images
    yield (
        f"AP on the tuning split: trained on {trained:,} images of the training set and measured on "
        f"{measured:,} others of it; one seed ({study.seed})"
    )
    if study.complete:
        rivals = sum(trial.state in ("complete", "pruned") for trial in study.trials)
        yield (
            f"no numbers for a paper: the highest (bold) is the best of {_counted(rivals, 'trial')}, so it "
            "is optimistic; the tuned recipe measures it on the validation set, which no trial has seen"
        )


def _failures(study: Study) -> Iterator[str]:
    reasons = Counter(
        " ".join(trial.why.split()) or "unknown" for trial in study.trials if trial.state == "failed"
    )
    for reason, count in reasons.most_common(_REASONS):
        told = reason if len(reason) <= _REASON else f"{reason[:_REASON]}..."
        yield f"failed, {count} x: {told}"
    if (left := len(reasons) - _REASONS) > 0:
        yield f"failed for {_counted(left, 'other reason')}, which the logs of their jobs tell"


def _gains(study: Study) -> Iterator[str]:
    """What the gain is over, and whether anything gained."""
    plain = study.without_methods
    if plain is None:
        yield "no gains: no trial is without methods"
    elif plain.number not in {trial.number for trial in study.complete}:
        yield f"no gains: trial {plain.number} ({NO_METHOD}) is not complete"
    else:
        which = (
            f"trial {plain.number} ({NO_METHOD})" if not plain.student else f"the same student, {NO_METHOD}"
        )
        yield f"gain: AP minus that of {which}, same seed and images; no test"
        others = [study.gain(trial) for trial in study.complete if trial.number != plain.number]
        if others and not any(gain and gain > 0 for gain in others):
            yield f"warning: no trial is above {NO_METHOD}"


def _searched(study: Study) -> str:
    """What was tried of each dimension."""
    told = [
        f"{one.name} {word(one.low)} to {word(one.high)}"
        if one.low is not None and one.high is not None
        else f"{one.name} {', '.join(map(word, one.choices))}"
        for one in study.dimensions
    ]
    return f"searched: {'; '.join(told)}"


def _importance(study: Study) -> Iterator[str]:
    """Which dimension decides; of a single one that is no question."""
    if len(study.dimensions) < 2:
        return
    if study.importance is None:
        yield "importance of the dimensions: too few trials to tell"
        return
    ranked = [
        f"{one.name} {study.importance[one.name]:.2f}"
        for one in _by_importance(study)
        if one.name in study.importance
    ]
    yield f"importance (fANOVA: share in the spread of AP): {', '.join(ranked)}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
