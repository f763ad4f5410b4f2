"""What a search has found: its table and plots, the recipe that measures it, and what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdlab.cli.console import Screen
from kdlab.cli.report import RESULTS, forgiving
from kdlab.cli.run import FAILED

if TYPE_CHECKING:
    from kdlab.jobs.job import Runs
    from kdlab.orchestration.tuning.search import Search
    from kdlab.orchestration.tuning.tuned import Tuned
    from kdlab.orchestration.tuning.tuner import Tuner
    from kdlab.reporting.study import Study, Trial


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
    if study.best is None:
        screen.say(f"retry: {again}")
        return FAILED
    chosen = study.front if len(study.objectives) > 1 else (study.best,)
    recipes = [_tuned(screen, search, tuner, trial) for trial in chosen]
    _next(screen, search, study, [recipe for recipe in recipes if recipe])
    return 0


def _study(search: Search, tuner: Tuner, runs: Runs) -> Study:
    """The study as reports know it."""
    from kdlab.jobs.job import JobResult
    from kdlab.reporting.study import Dimension, Study, Trial

    assert tuner.study is not None
    trials = tuple(
        Trial(
            number=one.number,
            state=one.state,
            params=one.values,
            values=one.objectives,
            course=one.course,
            note=one.note,
            job=one.job,
            wall_s=one.wall_s,
            why=one.why,
        )
        for one in tuner.study.trials()
    )
    done = [JobResult.read(runs.job(one.job)) for one in trials if one.state == "complete" and one.job]
    made_with = [result.environment for result in done if result]
    return Study(
        name=search.study,
        title=search.recipe.title or search.recipe.name,
        objectives=tuple(search.recipe.tune.objectives),
        dimensions=tuple(
            Dimension(one.name, choices=one.choices)
            if one.choices
            else Dimension(one.name, one.low, one.high, one.log)
            for one in tuner.space
        ),
        trials=trials,
        importance=tuner.study.importance(),
        seed=search.recipe.tune.seed,
        images=search.images,
        commit=", ".join(dict.fromkeys(one.get("commit", "") for one in made_with)),
        device=", ".join(dict.fromkeys(one.get("device", "") for one in made_with)),
    )


def _write(screen: Screen, study: Study, stem: str) -> None:
    """Write table and plots below `results/tune/`; a folder that cannot be written is told, not raised."""
    from kdlab.reporting import renderers, study_plots, study_table

    with forgiving(screen):
        files = renderers.write(study_table.table(study), RESULTS, f"tune/{stem}", ("md",))
        files += renderers.write(study_table.table(study, top=None), RESULTS, f"tune/{stem}", ("csv",))
        files += study_plots.write_plots(study, RESULTS, f"tune/{stem}")
        screen.say(f"written: {RESULTS}/tune/{stem}*  ({len(files)} files)")


def _tuned(screen: Screen, search: Search, tuner: Tuner, trial: Trial) -> Tuned | None:
    """Write the recipe of a trial where `kdlab run` finds it; None of one without methods."""
    from kdlab.jobs.files import write_text
    from kdlab.orchestration.recipe_files import derived
    from kdlab.orchestration.tuning.space import published
    from kdlab.orchestration.tuning.tuned import tuned

    if not any(not name.startswith("student.") for name in trial.params):
        return None
    several = len(search.recipe.tune.objectives) > 1
    name = f"{search.study}-trial{trial.number}" if several else search.study
    of_papers = published(search.recipe, search.trials.arm, tuner.space)
    made = tuned(
        search.document, search.recipe, search.trials.arm, trial.params, of_papers, name, screen.command()
    )
    path: Path = derived(made.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, made.text)
    return made


def _next(screen: Screen, search: Search, study: Study, recipes: list[Tuned]) -> None:
    """Say what to change in the recipe, and what to type."""
    if not recipes:
        screen.say("no method at all did best: nothing is to be changed but the methods or their options")
        return
    for recipe in recipes:
        lines = recipe.difference or ("(as it is)",)
        screen.say(
            "\n".join(
                [f"{search.recipe.path} as trial {study.best.number} had it:" if study.best else "", *lines]
            )
        )
    screen.next(
        f"kdlab run {recipes[-1].name}      # baseline, published and tuned, on the validation images"
    )
