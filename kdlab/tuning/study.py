"""A study of Optuna: which values come next, which trial ends early, what mattered."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from kdlab.errors import MachineError
from kdlab.jobs.paths import Runs
from kdlab.jobs.study import Dimension, State, Trial
from kdlab.redaction import masked, masked_of

JOB, PARAMS, REFERENCE, WHY, WALL = (
    f"kdlab.{name}" for name in ("job", "params", "reference", "why", "wall_s")
)
_PATIENCE_S = 60
STATES: dict[TrialState, State] = {
    TrialState.WAITING: "pending",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass
class OptunaStudy:
    """A study in its storage, which one command at a time changes.

    Args:
        name: of the study in its storage.
        objectives: "AP", and "latency" where that is weighed against it.
        sampler: by the name that a recipe uses; None for the usual one.
        pruner: by name.
        epochs: of a trial.
        seed: of the sampler.
        storage: an Optuna URL, or a path that ends in .log.

    `space`, the dimensions, must be set before the first trial is asked for.

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
    _running: dict[int, optuna.Trial] = field(default_factory=dict, init=False)
    _reported: dict[int, set[int]] = field(default_factory=dict, init=False)
    _known: list[Trial] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        several = len(self.objectives) > 1
        with _opening(self.storage), warnings.catch_warnings():
            # of experimental parts: their names and versions are pinned and tested
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=_storage(self.storage),
                study_name=self.name,
                directions=["minimize" if name == "latency" else "maximize" for name in self.objectives],
                pruner=_PRUNERS["none" if several else self.pruner](self.epochs),
                load_if_exists=True,
            )
            # a command that resumes must not draw what an earlier one drew
            seed = self.seed + len(self._all())
            self._study.sampler = _SAMPLERS[self.sampler or ("nsgaii" if several else "tpe")](seed)
            self._study.set_metric_names(list(self.objectives))

    def enqueue(self, params: Mapping[str, Any], reference: str) -> None:
        """Put a reference trial before all that the sampler chooses, once.

        Of values outside of the space, as weights of 0 are, the sampler is told the nearest inside.
        """
        if any(trial.reference == reference for trial in self._all()):
            return
        inside = {
            one.name: one.clipped(params.get(one.name, None if one.choices else 0)) for one in self.space
        }
        told = {REFERENCE: reference, PARAMS: json.dumps(dict(params))}
        self._study.enqueue_trial(inside, user_attrs=told)
        self._known = None

    def ask(self) -> Trial:
        """The next trial, which runs from now on."""
        return self._begun(self._study.ask())

    def resume(self) -> list[Trial]:
        """The trials that an earlier command began and did not bring to their end."""
        left = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [self._begun(optuna.Trial(self._study, trial._trial_id)) for trial in left]

    def assign(self, number: int, job: str, params: Mapping[str, Any]) -> None:
        """Note the job of a trial, before that starts."""
        self._running[number].set_user_attr(JOB, job)
        self._running[number].set_user_attr(PARAMS, json.dumps(dict(params)))
        self._known = None

    def should_prune(self, number: int, epoch: int, ap: float) -> bool:
        """Whether a trial should end after an epoch, by its AP."""
        self._report(number, epoch, ap)
        return epoch < self.epochs and len(self.objectives) == 1 and self._running[number].should_prune()

    def finish(self, number: int, values: Sequence[float], curve: Mapping[int, float], wall_s: float) -> None:
        """End a trial with a value for each objective; its fields as `Trial` has them."""
        for epoch, ap in curve.items():
            self._report(number, epoch, ap)
        self._end(number, wall_s, values=list(values))

    def prune(self, number: int, wall_s: float) -> None:
        """End a trial early."""
        self._end(number, wall_s, state=TrialState.PRUNED)

    def fail(self, number: int, why: str, wall_s: float) -> None:
        """End a trial that came to nothing."""
        self._running[number].set_user_attr(WHY, why)
        self._end(number, wall_s, state=TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """All trials that have begun."""
        return _begun(self._all())

    def importance(self) -> dict[str, float] | None:
        """Share of each dimension in the spread of AP (fANOVA); None where too few trials have finished."""
        if sum(trial.state == "finished" for trial in self._all()) < 2 * len(self.space) + 2:
            return None
        # scikit-learn takes seconds to import
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

    def _begun(self, trial: optuna.Trial) -> Trial:
        """A trial that runs, with the values noted for it or those that the sampler suggests."""
        self._running[trial.number], self._known = trial, None
        suggested: dict[str, Any] = {}
        for one in self.space:
            if one.choices:
                value = trial.suggest_categorical(one.name, one.choices)
            elif one.whole:
                value = trial.suggest_int(one.name, int(one.low), int(one.high), log=one.log)
            else:
                value = trial.suggest_float(one.name, one.low, one.high, log=one.log)
            suggested[one.name] = one.rounded(value)
        begun = self._all()[trial.number]
        self._reported[trial.number] = set(begun.curve)
        return begun if PARAMS in trial.user_attrs else replace(begun, params=suggested)

    def _report(self, number: int, epoch: int, ap: float) -> None:
        # Optuna takes no curve where there are several objectives, and each epoch once
        if len(self.objectives) == 1 and epoch not in self._reported[number]:
            self._running[number].report(ap, epoch)
            self._reported[number].add(epoch)

    def _end(self, number: int, wall_s: float, **told: Any) -> None:
        self._running[number].set_user_attr(WALL, round(wall_s, 3))
        self._study.tell(number, **told)
        self._known = None

    def _all(self) -> list[Trial]:
        """All trials, as they were at the last change but for the curves of those that run.

        A database takes long to tell them.
        """
        if self._known is None:
            self._known = [_plain(trial) for trial in self._study.get_trials(deepcopy=False)]
        return self._known


def stored_trials(name: str, storage: str) -> list[Trial]:
    """The trials that a study has begun; none where there is no such study, and none is made.

    Raises:
        MachineError: the storage cannot be opened.
    """
    is_file = "://" not in storage or storage.startswith("sqlite:///")
    if is_file and not Path(storage.removeprefix("sqlite:///")).exists():
        return []
    with _opening(storage):
        try:
            study = optuna.load_study(study_name=name, storage=_storage(storage))
        except KeyError:
            return []
        return _begun([_plain(trial) for trial in study.get_trials(deepcopy=False)])


def storage_of(told: str | None, runs: Runs) -> str:
    """Where a study is kept: what the recipe says, else a database in the runs folder."""
    if told:
        kind = "sqlite:///" if told.startswith("sqlite:///") else ""
        return kind + os.path.expanduser(told.removeprefix(kind))  # noqa: PTH111 - an address is no path
    return f"sqlite:///{(runs.folder / 'optuna.db').absolute()}"


def _begun(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.state != "pending"]


def _plain(trial: FrozenTrial) -> Trial:
    attributes = trial.user_attrs
    return Trial(
        number=trial.number,
        state=STATES[trial.state],
        params=json.loads(attributes[PARAMS]) if PARAMS in attributes else dict(trial.params),
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else (),
        curve=dict(trial.intermediate_values),
        reference=attributes.get(REFERENCE, ""),
        job=attributes.get(JOB, ""),
        wall_s=attributes.get(WALL, 0.0),
        why=attributes.get(WHY, ""),
    )


def _storage(url: str) -> BaseStorage:
    """The storage at an address, to be opened inside `_opening`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url.endswith(".log") and "://" not in url:
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(url))
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        # a dashboard or a slow disk may hold it a while
        return optuna.storages.RDBStorage(url, {"connect_args": {"timeout": _PATIENCE_S}})
    return optuna.storages.RDBStorage(url)


@contextmanager
def _opening(url: str) -> Iterator[None]:
    """Read a storage as far as a search needs it.

    Raises:
        MachineError: it cannot be opened, or is damaged.
    """
    try:
        yield
    except Exception as error:  # whatever a database, its driver or a torn journal leads to
        fix = "see tune.storage: an Optuna URL, as sqlite:///tune.db, or a path ending in .log"
        path = Path(url.removeprefix("sqlite:///"))
        if path.is_file() and _is_damage(error, url):
            move = shlex.join(["mv", str(path), f"{path}.damaged"])
            fix = f"move it away, and what was searched begins anew: {move}   or {fix}"
        what = "the study's storage cannot be opened, or is damaged"
        raise MachineError(what, where=masked(url), got=_first_line(error, url), fix=fix) from error


@contextmanager
def in_use(url: str) -> Iterator[None]:
    """Search with a storage that was opened, over the whole of it.

    Raises:
        MachineError: it cannot be read or written any more.
    """
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        # Optuna's own words are the same for whatever befell its database
        got = _first_line(error.__cause__ or error, url)
        fix = "make room there, or end what holds it; then the same command goes on"
        what = "the study's storage cannot be read or written"
        raise MachineError(what, where=masked(url), got=got, fix=fix) from error


def _first_line(error: BaseException, url: str) -> str:
    return masked_of((str(error).splitlines() or [type(error).__name__])[0], url)


def _is_damage(error: Exception, url: str) -> bool:
    """True where a file's content is wrong, and not its lock, its rights, its version or a part of Optuna."""
    if "://" in url:
        return any(words in str(error) for words in ("malformed", "not a database"))
    return isinstance(error, ValueError | LookupError | TypeError | AssertionError)


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
