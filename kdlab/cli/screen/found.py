"""Results of a search: its table and plots, the recipe that measures them, and what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdlab.cli.screen.console import Screen
from kdlab.cli.verbs.report import RESULTS, forgiving
from kdlab.cli.verbs.run import FAILED

if TYPE_CHECKING:
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.study import Study, Trial
    from kdlab.tuning.search import Search
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
    _write(screen, study)
    if len(study.trials) < tuner.count and tuner.ended_by:
        screen.say(f"ended after {len(study.trials)} of {tuner.count} trials: {tuner.ended_by}")
    if not any(trial.has_methods for trial in study.finished):
        screen.say("no trial with a method has come to its end, so nothing was found")
        screen.say(f"retry: {again}")
        return FAILED
    chosen = study.front if len(study.objectives) > 1 else study.finished[:1]
    recipes = {trial.number: _tuned(search, study, trial) for trial in chosen if trial.has_methods}
    _next(screen, search, study, recipes)
    return 0


def _study(search: Search, tuner: Tuner, runs: Runs) -> Study:
    from kdlab.jobs.result import JobResult
    from kdlab.jobs.study import Study

    trials = tuple(tuner.study.trials())
    results = [JobResult.read(runs.job(trial.job)) for trial in trials if trial.state == "finished"]
    made_with = [result.environment for result in results if result]
    return Study(
        name=search.study,
        title=search.recipe.title or search.recipe.name,
        objectives=tuple(search.recipe.tune.objectives),
        dimensions=tuple(tuner.study.space),
        trials=trials,
        importance=tuner.study.importance(),
        seed=search.recipe.tune.seed,
        images=search.images,
        commit=", ".join(dict.fromkeys(one.get("commit", "") for one in made_with)),
        device=", ".join(dict.fromkeys(one.get("device", "") for one in made_with)),
    )


def _write(screen: Screen, study: Study) -> None:
    """Write table and plots below `results/tune/`; a folder that cannot be written is told, not raised."""
    from kdlab.reporting import renderers, study_plots, study_table

    stem = f"tune/{study.name}"
    with forgiving(screen):
        files = renderers.write(study_table.table(study), RESULTS, stem, ("md",))
        files += renderers.write(study_table.table(study, top=None), RESULTS, stem, ("csv",))
        files += study_plots.write_plots(study, RESULTS, stem)
        screen.say(f"written: {RESULTS}/{stem}*  ({len(files)} files)")
        if left_out := study_plots.left_out(study):
            told = ", ".join(f"{name} ({why})" for name, why in left_out.items())
            screen.say(f"plots left out: {told}")


def _tuned(search: Search, study: Study, trial: Trial) -> Tuned:
    """Write the recipe of a trial where `kdlab run` finds it."""
    from kdlab.jobs.files import write_text
    from kdlab.recipe.files import derived
    from kdlab.tuning.tuned import tuned

    name = f"{study.name}-trial{trial.number}" if len(study.objectives) > 1 else study.name
    arm, space = search.trials.arm, study.dimensions
    made = tuned(search.document, search.recipe, arm, space, trial.params, name, search.command)
    path = derived(made.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, made.text)
    return made


def _next(screen: Screen, search: Search, study: Study, recipes: dict[int, Tuned]) -> None:
    """Say what to change in the recipe, and what to type."""
    from kdlab.reporting.statistics import SEEDS_FOR_A_TEST

    if screen.json:
        tuned = {
            number: {"recipe": one.name, "difference": one.difference} for number, one in recipes.items()
        }
        screen.emit(tuned=tuned, space=[vars(one) for one in study.dimensions])
    for number, one in recipes.items():
        lines = one.difference or ("  nothing to change: its own values did best",)
        screen.say("\n".join([f"{search.recipe.path} as trial {number} had it ({one.name}):", *lines]))
    if not recipes:
        screen.say("no method at all did best: nothing is to be changed but the methods or their options")
        return
    last = [*recipes.values()][-1]
    seeds = " --set 'seeds=[0,1,2]'" if len(search.recipe.seeds) < SEEDS_FOR_A_TEST else ""
    screen.next(f"kdlab run {last.name}{seeds}      # {', '.join(last.arms)}, on the validation images")
