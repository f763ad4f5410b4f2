"""What a search has found: its table and plots, the recipe that measures it, and what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.cli.screen.console import Screen
from kdlab.cli.verbs.report import RESULTS, forgiving
from kdlab.cli.verbs.run import FAILED

if TYPE_CHECKING:
    from kdlab.jobs.paths import Runs
    from kdlab.reporting.study import Dimension, Study, Trial
    from kdlab.tuning.search import Search
    from kdlab.tuning.space import Dimension as Searched
    from kdlab.tuning.study import Told
    from kdlab.tuning.tuned import Tuned
    from kdlab.tuning.tuner import Tuner


def tell(screen: Screen, search: Search, tuner: Tuner, runs: Runs, again: str) -> int:
    """Show the trials, write all down, and name the command that measures what was found; the exit code."""
    from kdlab.reporting import renderers, study_table

    with screen.working("asking what mattered"):
        study = _study(search, tuner, runs)
    table = study_table.table(study)
    if screen.json:
        screen.emit(**table.to_dict())
    else:
        screen.data(renderers.to_terminal(table))
    _write(screen, study, search.study)
    if len(study.trials) < tuner.count and tuner.ended_by:
        screen.say(f"ended after {len(study.trials)} of {tuner.count} trials: {tuner.ended_by}")
    if all(trial.plain for trial in study.complete):
        screen.say("no trial with a method has come to its end, so nothing was found")
        screen.say(f"retry: {again}")
        return FAILED
    chosen = study.front if len(study.objectives) > 1 else [study.best] if study.best else []
    recipes = {trial.number: _tuned(search, tuner, trial) for trial in chosen if not trial.plain}
    _next(screen, search, recipes)
    return 0


def _study(search: Search, tuner: Tuner, runs: Runs) -> Study:
    """The study as reports know it."""
    from kdlab.jobs.result import JobResult
    from kdlab.reporting.study import Study, Trial

    trials = tuple(Trial(**_fields(one)) for one in tuner.study.trials())
    done = [JobResult.read(runs.job(one.job)) for one in trials if one.state == "complete" and one.job]
    made_with = [result.environment for result in done if result]
    return Study(
        name=search.study,
        title=search.recipe.title or search.recipe.name,
        objectives=tuple(search.recipe.tune.objectives),
        dimensions=tuple(map(_dimension, tuner.space)),
        trials=trials,
        importance=tuner.study.importance(),
        seed=search.recipe.tune.seed,
        images=search.images,
        commit=", ".join(dict.fromkeys(one.get("commit", "") for one in made_with)),
        device=", ".join(dict.fromkeys(one.get("device", "") for one in made_with)),
    )


def _fields(told: Told) -> dict[str, Any]:
    """A trial as reports know it: what it was trained with, and what it reached."""
    fields = {name: value for name, value in vars(told).items() if name != "objectives"}
    return {**fields, "params": told.values, "values": told.objectives}


def _dimension(one: Searched) -> Dimension:
    from kdlab.reporting.study import Dimension

    if one.choices:
        return Dimension(one.name, choices=one.choices)
    return Dimension(one.name, one.low, one.high, one.log)


def _write(screen: Screen, study: Study, stem: str) -> None:
    """Write table and plots below `results/tune/`; a folder that cannot be written is told, not raised."""
    from kdlab.reporting import renderers, study_plots, study_table

    with forgiving(screen):
        files = renderers.write(study_table.table(study), RESULTS, f"tune/{stem}", ("md",))
        files += renderers.write(study_table.table(study, top=None), RESULTS, f"tune/{stem}", ("csv",))
        files += study_plots.write_plots(study, RESULTS, f"tune/{stem}")
        screen.say(f"written: {RESULTS}/tune/{stem}*  ({len(files)} files)")


def _tuned(search: Search, tuner: Tuner, trial: Trial) -> Tuned:
    """Write the recipe of a trial where `kdlab run` finds it."""
    from kdlab.jobs.files import write_text
    from kdlab.recipe.files import derived
    from kdlab.tuning.space import name_of_published, published
    from kdlab.tuning.tuned import tuned

    several = len(search.recipe.tune.objectives) > 1
    name = f"{search.study}-trial{trial.number}" if several else search.study
    arm = search.trials.arm
    of_papers = published(search.recipe, arm, tuner.space)
    word = name_of_published(search.recipe, arm, tuner.space)
    made = tuned(search.document, search.recipe, arm, trial.params, of_papers, name, search.command, word)
    path: Path = derived(made.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, made.text)
    return made


def _next(screen: Screen, search: Search, recipes: dict[int, Tuned]) -> None:
    """Say what to change in the recipe, and what to type."""
    from kdlab.reporting.statistics import SEEDS_FOR_A_TEST

    if screen.json:
        told = {number: {"recipe": one.name, "difference": one.difference} for number, one in recipes.items()}
        screen.emit(tuned=told)
    for number, one in recipes.items():
        lines = one.difference or ("  nothing to change: its own values did best",)
        screen.say("\n".join([f"{search.recipe.path} as trial {number} had it ({one.name}):", *lines]))
    if recipes:
        last = [*recipes.values()][-1]
        seeds = " --set 'seeds=[0,1,2]'" if len(search.recipe.seeds) < SEEDS_FOR_A_TEST else ""
        screen.next(f"kdlab run {last.name}{seeds}      # {', '.join(last.arms)}, on the validation images")
    else:
        screen.say("no method at all did best: nothing is to be changed but the methods or their options")
