"""Plots of a study: Optuna's for matplotlib, in kdlab's style."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import BaseImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as optuna_plots

from kdlab.jobs.files import csv_text, replacing, write_text
from kdlab.jobs.study import NO_METHOD, Dimension, Study, Trial, text_of
from kdlab.reporting.plots.plot import COLOURS, INK, METADATA, STYLE

_STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
_SHADES = matplotlib.colormaps["cividis_r"]
"""Dark is high: for the colour-blind too, and on paper."""
_PALEST = 0.15
"""The shade below which a line is lost on white."""
_WIDTH, _HEIGHT = 7.5, 4.2
"""Inches."""
_REFERENCES = (INK, *COLOURS[1:4])


def write_plots(study: Study, folder: Path, stem: str) -> list[Path]:
    """Write each plot as `<stem>-<name>.png` and `.pdf`, and the learning curves as `<stem>-curves.csv`.

    The stem may name folders ("tune/digits/gfl-3fa2c1"), which are made. Equal trials give equal files.
    """
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in drawn(study):
        for suffix in ("png", "pdf"):
            files.append(folder / f"{stem}-{name}.{suffix}")
            with replacing(files[-1]) as file:
                figure.savefig(file, format=suffix, dpi=200, metadata=METADATA[suffix])
    rows = [(trial.number, *point) for trial in study.trials for point in sorted(trial.curve.items())]
    files.append(folder / f"{stem}-curves.csv")
    write_text(files[-1], csv_text([("trial", "epoch", study.objectives[0]), *rows]))
    return files


def drawn(study: Study) -> Iterator[tuple[str, Figure]]:
    """The plots that the trials allow, with their names; each to be saved before the next."""
    without = left_out(study)
    with _style():
        made = _as_optuna(study)
        for name, draw in _PLOTS.items():
            if name not in without:
                figure = draw(study, made)
                yield name, figure
                pyplot.close(figure)


def left_out(study: Study) -> dict[str, str]:
    """The plots that these trials do not allow, by name, with the reason."""
    tried = [trial for trial in study.finished if trial.has_methods]
    found = {}
    if not study.finished:
        found["history"] = "no trial has finished"
    if not tried:
        found["slices"] = "no trial with a method has finished"
    if not tried or len(study.finished) < 2:
        found["parallel"] = "it takes two finished trials"
    if len(study.dimensions) < 2:
        found["importance"] = "one dimension only"
    elif not study.importance:
        found["importance"] = "too few trials"
    if len(study.objectives) < 2:
        found["front"] = "one objective only"
    elif not study.finished:
        found["front"] = "no trial has finished"
    if not any(len(trial.curve) > 1 for trial in study.trials):
        found["curves"] = "no trial was measured twice"
    return found


@contextmanager
def _style() -> Iterator[None]:
    """kdlab's look, also where Optuna asks for ggplot's; no window, and no experimental warning."""
    styles = matplotlib.style.library
    ggplot = styles["ggplot"]
    own = STYLE | {
        "figure.constrained_layout.use": True,
        "figure.figsize": (_WIDTH, _HEIGHT),
        # powers of ten beside an axis
        "text.parse_math": True,
    }
    pyplot.switch_backend("agg")
    with warnings.catch_warnings(), matplotlib.rc_context(own):
        warnings.simplefilter("ignore")
        styles["ggplot"] = own
        try:
            yield
        finally:
            styles["ggplot"] = ggplot


def _as_optuna(study: Study) -> optuna.Study:
    """The study with the very values that were trained; a sampler knows the nearest in its space."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(directions=_DIRECTIONS[: len(study.objectives)])
    made.set_metric_names(list(study.objectives))
    spaces = {one.name: _distribution(one, study) for one in study.dimensions}
    begun = {trial.number: trial for trial in study.trials}
    for number in range(max(begun, default=-1) + 1):
        trial = begun.get(number)
        if trial is None:
            made.add_trial(optuna.create_trial(state=TrialState.WAITING))
            continue
        finished = trial in study.finished
        state = TrialState.FAIL if trial.state == "finished" and not finished else _STATES[trial.state]
        params = {one.name: _value(one, trial) for one in study.dimensions if not trial.off(one.name)}
        told = optuna.create_trial(
            state=state,
            params=params,
            distributions={name: spaces[name] for name in params},
            values=trial.values if finished else None,
            intermediate_values=trial.curve,
        )
        made.add_trial(told)
    return made


def _distribution(one: Dimension, study: Study) -> BaseDistribution:
    """The range of a dimension, made wide enough for references beyond it."""
    values = [_value(one, trial) for trial in study.trials if not trial.off(one.name)]
    if one.choices:
        return CategoricalDistribution(list(dict.fromkeys([*map(text_of, one.choices), *values])))
    low, high = min([one.low, *values]), max([one.high, *values])
    return FloatDistribution(low, high, log=one.log and low > 0)


def _value(one: Dimension, trial: Trial) -> Any:
    return text_of(trial.params[one.name]) if one.choices else trial.params[one.name]


def _objective(study: Study) -> dict[str, Any]:
    """AP as the target of a plot."""
    name = {"target_name": study.objectives[0]}
    return name if len(study.objectives) == 1 else {**name, "target": _first}


def _first(trial: FrozenTrial) -> float:
    ap: float = trial.values[0]
    return ap


def _history(study: Study, made: optuna.Study) -> Figure:
    axes = optuna_plots.plot_optimization_history(made, **_objective(study))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _baseline(axes, study)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _framed("Trials", study, axes)


def _slices(study: Study, made: optuna.Study) -> Figure:
    optuna_plots.plot_slice(made, **_objective(study))
    searched = {one.name: one for one in study.dimensions}
    *_, colours = pyplot.gcf().axes
    colours.yaxis.set_major_locator(MaxNLocator(integer=True))
    slices = [axes for axes in pyplot.gcf().axes if axes.get_xlabel() in searched]
    for axes in slices:
        one = searched[axes.get_xlabel()]
        _baseline(axes, study)
        if one.choices:
            words = [label.get_text().strip("'") for label in axes.get_xticklabels()]
            axes.set_xticks(axes.get_xticks(), words)
            axes.set_xlim(-0.5, len(words) - 0.5)
        else:
            # as far as it was searched, for a best value at its end asks for a wider range
            low, high = axes.get_xlim()
            axes.set_xlim(min(low, one.low), max(high, one.high))
    return _framed("AP by dimension", study, *slices, width=1.5 + 2.2 * len(slices))


def _parallel(study: Study, made: optuna.Study) -> Figure:
    # here the right spines are the axes of the dimensions
    with matplotlib.rc_context({"axes.grid": False, "axes.spines.right": True}):
        several = len(study.objectives) > 1
        axes = optuna_plots.plot_parallel_coordinate(made, **({} if several else _objective(study)))
    (lines,) = axes.collections
    # of several objectives the colour is the rank, of which the lowest is best
    lines.set_cmap(_SHADES.reversed() if several else _SHADES)
    lines.set_linewidth(1.0)
    return _framed(
        "Values that go together (None: the method is off)",
        study,
        axes,
        width=2.5 + 1.25 * len(study.dimensions),
    )


def _importance(study: Study, made: optuna.Study) -> Figure:
    axes = optuna_plots.plot_param_importances(made, _Known(study), target=_first)
    axes.legend([])
    axes.set(xlabel="share in the spread of AP (fANOVA)", ylabel="")
    return _framed("Importance", study, axes)


class _Known(BaseImportanceEvaluator):
    """Importance that was evaluated before, so that table and plot tell the same."""

    def __init__(self, study: Study) -> None:
        self._shares = dict(study.importance or {})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        return self._shares


def _front(study: Study, made: optuna.Study) -> Figure:
    names = ["latency (ms)" if name == "latency" else name for name in study.objectives]
    axes = optuna_plots.plot_pareto_front(made, target_names=names)
    for trial in study.front:
        ap, cost = trial.values
        axes.annotate(str(trial.number), (ap, cost), (4, 4), textcoords="offset points", size=8)
    return _framed("Pareto front", study, axes)


def _curves(study: Study, made: optuna.Study) -> Figure:
    axes = optuna_plots.plot_intermediate_values(made)
    axes.set(xlabel="epoch", ylabel=study.objectives[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    trials = {f"Trial{trial.number}": trial for trial in study.trials}
    highest = max(max(trial.curve.values(), default=0.0) for trial in study.trials) or 1.0
    references = iter(_REFERENCES)
    for line in axes.lines:
        trial = trials[str(line.get_label())]
        end = max(0.0, trial.curve[trial.last_epoch]) / highest
        line.set(color=_SHADES(_PALEST + (1 - _PALEST) * end), linewidth=1.0, label=None)
        if trial.reference:
            line.set(color=next(references, INK), linestyle="--", linewidth=1.8, label=trial.reference)
        if study.best is not None and trial.number == study.best.number:
            line.set(linewidth=2.6, label=f"best: trial {trial.number}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _framed("AP by epoch (dark is high)", study, axes)


def _baseline(axes: Axes, study: Study) -> None:
    """A line at the AP of the trial without methods, which has no value of any dimension."""
    alone = study.baseline
    if alone is not None and alone in study.finished and not alone.student:
        axes.axhline(alone.values[0], color=INK, linewidth=1.0, dashes=(3, 2), label=NO_METHOD)


def _framed(what: str, study: Study, *axes: Axes, width: float = 0.0) -> Figure:
    """A figure with its title above and what it is worth below the axes, in place of Optuna's title."""
    figure = pyplot.gcf()
    figure.set_size_inches(max(width, _WIDTH), _HEIGHT)
    for one in axes:
        one.set_title("", loc="left")
        one.set_title("")
    inches = figure.get_figwidth()
    counts = f"{len(study.finished)} of {len(study.trials)} trials finished"
    title = textwrap.fill(f"{what}: {study.title}, {counts}", int(11 * inches))
    figure.suptitle(title, x=0.01, ha="left", size=10, parse_math=False)
    worth = f"AP on the tuning split, one seed ({study.seed}), images of the training set"
    figure.supxlabel(f"{worth}: no numbers for a paper.", x=0.01, ha="left", size=7.5, color="#444444")
    figure.set_layout_engine("constrained")
    return figure


_PLOTS: dict[str, Callable[[Study, optuna.Study], Figure]] = {
    "history": _history,
    "slices": _slices,
    "parallel": _parallel,
    "importance": _importance,
    "front": _front,
    "curves": _curves,
}
