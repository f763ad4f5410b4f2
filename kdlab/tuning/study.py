"""A study of Optuna: which values come next, which trial is hopeless, what mattered.

No other file imports Optuna.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from kdlab.errors import MachineError
from kdlab.jobs.paths import Runs
from kdlab.tuning.space import Dimension

JOB, VALUES, NOTE, WHY, WALL = "kdlab.job", "kdlab.values", "kdlab.note", "kdlab.why", "kdlab.wall_s"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True)
class Asked:
    """A trial that runs or is to run.

    Args:
        number: of the trial.
        values: what it tries.
        note: what it stands for: "no method", "published", "recipe"; "" where the sampler chose.
        job: what was noted of it before; "" for a new one.
    """

    number: int
    values: dict[str, Any]
    note: str
    job: str


@dataclass(frozen=True)
class Told:
    """A trial as the study knows it; `kdlab.reporting.study.Trial` says what the fields mean."""

    number: int
    state: str
    values: dict[str, Any]
    objectives: tuple[float, ...]
    course: dict[int, float]
    note: str
    job: str
    wall_s: float
    why: str


@dataclass
class Study:
    """Asks and tells.

    Args:
        name: of the study in its storage.
        objectives: "AP", and "latency" where that is weighed against it.
        sampler: by the name that a recipe uses; None for the usual one.
        pruner: by name.
        epochs: of a trial.
        seed: of the sampler.
        storage: an Optuna URL, or a path that ends in .log.

    `space`, what is searched, must be set before the first trial is asked for.

    Raises:
        MachineError: the storage cannot be opened.
    """

    name: str
    objectives: Sequence[str]
    sampler: str | None
    pruner: str
    epochs: int
    seed: int
    storage: str
    space: Sequence[Dimension] = field(default=(), init=False)
    _trials: dict[int, Trial] = field(default_factory=dict, init=False)
    _reported: dict[int, set[int]] = field(default_factory=dict, init=False)
    _known: list[FrozenTrial] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        several = len(self.objectives) > 1
        with warnings.catch_warnings():
            # of experimental parts: their names and versions are pinned and tested
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=_storage(self.storage),
                study_name=self.name,
                directions=["minimize" if name == "latency" else "maximize" for name in self.objectives],
                pruner=_PRUNERS["none" if several else self.pruner](self.epochs),
                load_if_exists=True,
            )
            # a command that goes on must not draw what an earlier one drew
            seed = self.seed + len(self._all())
            self._study.sampler = _SAMPLERS[self.sampler or ("nsgaii" if several else "tpe")](seed)
            self._study.set_metric_names(list(self.objectives))

    def try_first(self, values: Mapping[str, Any], note: str) -> None:
        """Put a trial of these very values before all that the sampler chooses, once.

        Where they are outside of the space, as weights of 0 are, the sampler is told the nearest inside.
        """
        inside = {
            one.name: one.clipped(values.get(one.name, 0 if not one.choices else None)) for one in self.space
        }
        told = {NOTE: note, VALUES: json.dumps(dict(values))}
        if all(trial.user_attrs.get(NOTE) != note for trial in self._all()):
            self._study.enqueue_trial(inside, user_attrs=told)
            self._known = None

    def begun(self) -> int:
        """How many trials there are, those that wait to be asked for left out."""
        return sum(trial.state in STATES for trial in self._all())

    def ask(self) -> Asked:
        """The next trial."""
        return self._asked(self._study.ask())

    def running(self) -> list[Asked]:
        """The trials that an earlier command began and did not bring to their end."""
        left = [trial for trial in self._all() if trial.state == TrialState.RUNNING]
        return [self._asked(Trial(self._study, trial._trial_id)) for trial in left]

    def note_job(self, number: int, job: str, values: Mapping[str, Any]) -> None:
        """Remember which job tries a trial, before that starts."""
        self._trials[number].set_user_attr(JOB, job)
        self._trials[number].set_user_attr(VALUES, json.dumps(dict(values)))
        self._known = None

    def is_hopeless(self, number: int, epoch: int, ap: float) -> bool:
        """Take the AP after an epoch in, and say whether the trial should end here."""
        self._report(number, epoch, ap)
        return epoch < self.epochs and len(self.objectives) == 1 and self._trials[number].should_prune()

    def complete(
        self, number: int, objectives: Sequence[float], course: Mapping[int, float], wall_s: float
    ) -> None:
        """The trial came to its end.

        Args:
            number: of the trial.
            objectives: what it reached.
            course: AP by epoch.
            wall_s: seconds that it took; 0 where it was trained before.
        """
        for epoch, ap in course.items():
            self._report(number, epoch, ap)
        self._end(number, wall_s, values=list(objectives))

    def prune(self, number: int, wall_s: float) -> None:
        """The trial ends early."""
        self._end(number, wall_s, state=TrialState.PRUNED)

    def fail(self, number: int, why: str, wall_s: float) -> None:
        """The trial came to nothing."""
        self._trials[number].set_user_attr(WHY, why)
        self._end(number, wall_s, state=TrialState.FAIL)

    def trials(self) -> list[Told]:
        """All trials that began."""
        return [_told(trial) for trial in self._all() if trial.state in STATES]

    def importance(self) -> dict[str, float] | None:
        """How much of the spread of AP each dimension explains (fANOVA); None where too few trials ended."""
        done = [trial for trial in self._all() if trial.state == TrialState.COMPLETE]
        if len(done) < 2 * len(self.space) + 2:
            return None
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        target: Callable[[FrozenTrial], float] | None = None
        if len(self.objectives) > 1:
            target = lambda trial: trial.values[0]  # noqa: E731 - Optuna wants a callable
        evaluator = FanovaImportanceEvaluator(seed=self.seed)
        try:
            return dict(get_param_importances(self._study, evaluator=evaluator, target=target))
        except (RuntimeError, ValueError):
            # all trials ended alike
            return None

    def _asked(self, trial: Trial) -> Asked:
        self._trials[trial.number], self._known = trial, None
        self._reported[trial.number] = set(self._all()[trial.number].intermediate_values)
        suggested = {one.name: _suggested(trial, one) for one in self.space}
        noted = trial.user_attrs.get(VALUES)
        values = (
            json.loads(noted) if noted else {one.name: one.rounded(suggested[one.name]) for one in self.space}
        )
        return Asked(trial.number, values, trial.user_attrs.get(NOTE, ""), trial.user_attrs.get(JOB, ""))

    def _report(self, number: int, epoch: int, ap: float) -> None:
        # Optuna takes no course where there are several objectives, and each epoch once
        if len(self.objectives) == 1 and epoch not in self._reported[number]:
            self._trials[number].report(ap, epoch)
            self._reported[number].add(epoch)

    def _end(self, number: int, wall_s: float, **told: Any) -> None:
        self._trials[number].set_user_attr(WALL, round(wall_s, 3))
        self._study.tell(number, **told)
        self._known = None

    def _all(self) -> list[FrozenTrial]:
        """All trials, as they were at the last change but for the course of those that run.

        A database takes long to tell them, and one command at a time changes a study.
        """
        if self._known is None:
            self._known = self._study.get_trials(deepcopy=False)
        return self._known


def _told(trial: FrozenTrial) -> Told:
    attributes = trial.user_attrs
    return Told(
        number=trial.number,
        state=STATES[trial.state],
        values=json.loads(attributes[VALUES]) if VALUES in attributes else dict(trial.params),
        objectives=tuple(trial.values) if trial.state == TrialState.COMPLETE else (),
        course=dict(trial.intermediate_values),
        note=attributes.get(NOTE, ""),
        job=attributes.get(JOB, ""),
        wall_s=attributes.get(WALL, 0.0),
        why=attributes.get(WHY, ""),
    )


def _suggested(trial: Trial, one: Dimension) -> Any:
    if one.choices:
        return trial.suggest_categorical(one.name, one.choices)
    if one.whole:
        return trial.suggest_int(one.name, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(one.name, one.low, one.high, log=one.log)


def storage_of(told: str | None, runs: Runs) -> str:
    """Where a study is kept: what the recipe says, else a database in the runs folder."""
    return told or f"sqlite:///{(runs.folder / 'optuna.db').absolute()}"


def _storage(url: str) -> BaseStorage:
    """The storage at an address.

    Raises:
        MachineError: it cannot be opened.
    """
    try:
        if url.endswith(".log") and "://" not in url:
            from optuna.storages.journal import JournalFileBackend, JournalStorage

            Path(url).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(url))
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # whatever a database or its driver runs into
        fix = "see tune.storage: an Optuna URL, as sqlite:///tune.db, or a path ending in .log"
        got = (str(error).splitlines() or [type(error).__name__])[0]
        where = re.sub(r"//[^/@\s]+@", "//", url)
        what = "the study's storage cannot be opened"
        raise MachineError(what, where=where, got=got.replace(url, where), fix=fix) from error


_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # running trials count as bad ones, so that those asked for at once are not alike
    "tpe": lambda seed: optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    # Optuna's generation of 50 is more than most searches have trials
    "nsgaii": lambda seed: optuna.samplers.NSGAIISampler(population_size=12, seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed),
}
_PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "hyperband": lambda epochs: optuna.pruners.HyperbandPruner(max_resource=epochs),
    # earlier than after a third, AP of a detector says little: docs/tuning.md
    "halving": lambda epochs: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, round(epochs / 3)), reduction_factor=5
    ),
    "median": lambda epochs: optuna.pruners.MedianPruner(),
    "none": lambda epochs: optuna.pruners.NopPruner(),
}
