"""kdlab tune: search weights and options of methods on a part of the training images."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from math import ceil, inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import DryRun, ExecutorName, Gpus, Jobs, Overrides, RecipeName, Yes
from kdlab.cli.screen.results import RESULTS, forgiving
from kdlab.cli.verbs.plan import gpu_numbers
from kdlab.cli.verbs.run import FAILED, again, conclude, confirm_cost, drive
from kdlab.prepared import HERE, Prepared, smaller

if TYPE_CHECKING:
    from kdlab.jobs.events import Event
    from kdlab.jobs.job import Job
    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import PlannedJob
    from kdlab.jobs.study import Study
    from kdlab.session import Outcome
    from kdlab.tuning.search import Search
    from kdlab.tuning.tuner import Tuner

MANY_AT_ONCE = 4
"""Trials side by side of which a search is not warned."""


def tune(
    screen: Screen,
    recipe: RecipeName,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=1, help="How many, earlier ones among them.")
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            "--over", metavar="KEYS", help="What to search: rm.weight,pfi.weight. Default: an arm's weights."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="GPU-H", min=0, help="Begin no trial after so many hours of GPUs."),
    ] = None,
    objectives: Annotated[
        str | None, typer.Option("--objectives", metavar="NAMES", help="AP; or AP,latency to weigh the two.")
    ] = None,
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    gpus: Gpus = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Search weights and options of methods, and write the recipe that measures what was found.

    Trials learn from a part of the training images and are measured on the rest of them: the validation
    images stay untouched. The same command again goes on where it was stopped.

    \b
    Examples:
      $ kdlab tune digits/gfl --trials 20 --dry-run
      study digits/gfl-...  20 trials of rm+pfi on 6400 images, measured on ...
        rm.weight   0.0333 to 30, until its term is measured
        pfi.weight  3.33 to 3000, until its term is measured
      ...
      $ kdlab tune digits/gfl --over pfi.weight,pfi.region --trials 30
      GFL R18 to a slimmer R18 on handwritten digits: ...: 30 trials by AP
      trial  reference  AP  gain  pfi.weight  pfi.region  epochs
      ...
    """
    from kdlab.tuning.study import storage_of, stored_trials

    told = {"trials": trials, "over": over and f"[{over}]", "objectives": objectives and f"[{objectives}]"}
    changes = [f"tune.{key}={value}" for key, value in told.items() if value is not None]
    asked = [*(overrides or []), *changes]
    search, made = _prepared(screen, recipe, asked, executor, gpus)
    begun = len(stored_trials(search.study, storage_of(search.recipe.tune.storage, made.runs)))
    wanted = max(0, search.recipe.tune.trials - begun)
    if budget is not None and search.trial.cost_s:
        of_each_s = search.trial.cost_s * max(1, search.trial.job.resources.gpus)
        wanted = min(wanted, ceil(3600 * budget / of_each_s))
    if dry_run:
        _preview(screen, search, made, begun, wanted, data=True)
        screen.next(screen.command("--dry-run"))
        return 0
    _preview(screen, search, made, begun, wanted)
    if not yes:
        confirm_cost(screen, search.whole(wanted))
    while True:
        tuner, outcome = _run(screen, search, made, jobs, budget, live=executor != "inline")
        if tuner.study.space or outcome.stopped_by or not smaller(made):
            break
        # teacher or measured pass did not fit the GPU: once more, in smaller parts
        search, made = _prepared(screen, recipe, asked, executor, gpus)
    if code := conclude(screen, made.plan, outcome, bool(tuner.study.space)):
        return code
    if tuner.stopping:
        screen.say("stopped by another command; the trials that ran go on from their checkpoints")
        screen.next(again(screen))
        return FAILED
    return _tell(screen, search, tuner, made.runs)


def _prepared(
    screen: Screen, recipe: str, overrides: Sequence[str], executor: str, gpus: str | None
) -> tuple[Search, Prepared]:
    from kdlab.jobs.paths import Runs
    from kdlab.recipe import loader as recipes
    from kdlab.running.executors import base
    from kdlab.tuning import search

    base.check(executor)
    runs = Runs.here()
    told = recipes.load(recipe, overrides).resources.executors.get(executor)
    with screen.working(f"planning {recipe}") as progress:
        runner = base.load(executor, gpu_numbers(gpus), told)
        found = search.prepare(recipe, overrides, runs, runner.machine, progress, here=executor in HERE)
    return found, Prepared(found.plan, runner, runner.machine, runs)


def _preview(
    screen: Screen, search: Search, made: Prepared, begun: int, wanted: int, *, data: bool = False
) -> None:
    """What will be searched, and what the trials to come cost where none is ended early."""
    from kdlab.cli.verbs.plan import total

    tune, (learned, measured) = search.recipe.tune, search.images
    if data and screen.json:
        screen.emit(
            study=search.study,
            arm=search.trials.arm,
            trials=tune.trials,
            begun=begun,
            images=list(search.images),
            space=[vars(one) for one in search.trials.space],
            plan=search.whole(wanted).to_dict(),
        )
        return
    put = screen.data if data else screen.say
    put(
        f"study {search.study}  {tune.trials} trials of {search.trials.arm} on {learned} images, "
        f"measured on {measured} others{f'; {begun} have begun' if begun else ''}"
    )
    width = max(len(one.name) for one in search.trials.space)
    for one in search.trials.space:
        open_end = one.key == "weight" and not (one.given or one.choices)
        put(f"  {one.name:<{width}}  {one.range}{', until its term is measured' if open_end else ''}")
    put(f"at most {total(replace(made, plan=search.whole(wanted)))}")
    references = search.trials.references(search.trials.space)
    if tune.trials <= len(references):
        put(
            f"note: nothing will be searched: the first {len(references)} trials are references "
            f"({'; '.join(references)}); --trials {len(references) + 10} tries ten values besides"
        )
    if len(tune.objectives) > 1:
        put("note: no trial is ended early, for Optuna prunes by one objective only")
    if made.executor.slots(search.trial.job) > max(MANY_AT_ONCE, wanted / 4):
        put("note: so many trials fit side by side that few will learn from others; -j N runs fewer at once")


def _run(
    screen: Screen, search: Search, made: Prepared, jobs: int | None, budget_h: float | None, *, live: bool
) -> tuple[Tuner, Outcome]:
    """Search, with the board on the screen."""
    from kdlab.cli.screen.progress import PlanStatus
    from kdlab.running.driver import alone
    from kdlab.tuning.study import in_use, storage_of

    storage = storage_of(search.recipe.tune.storage, made.runs)
    with alone(made.plan.id, made.runs), in_use(storage):
        tuner = _tuner(search, made, storage, jobs, budget_h)
        view = PlanStatus(made.plan, made.machine, jobs, to_come=tuner.to_come)

        def feed(active: int) -> Sequence[PlannedJob]:
            opened = bool(tuner.study.space)
            more = tuner.feed(active)
            if tuner.study.space and not opened:
                ranges = "; ".join(f"{one.name} {one.range}" for one in tuner.study.space)
                screen.say(f"searching {ranges}")
            view.grow(more, tuner.to_come)
            return more

        def see(event: Event) -> None:
            tuner.see(event)
            view.jobs[event.job].pruned = event.job in tuner.pruned

        def stop() -> None:
            tuner.stopping = True

        return tuner, drive(screen, made, view, live=live, before=[see], on_stop=stop, feed=feed)


def _tuner(search: Search, made: Prepared, storage: str, jobs: int | None, budget_h: float | None) -> Tuner:
    from kdlab.tuning.study import OptunaStudy
    from kdlab.tuning.tuner import Tuner

    tune = search.recipe.tune
    study = OptunaStudy(
        name=search.study,
        objectives=tune.objectives,
        sampler=tune.sampler,
        pruner=tune.pruner,
        epochs=search.trials.epochs,
        seed=tune.seed,
        storage=storage,
    )

    def at_once(job: Job) -> int:
        slots = made.executor.slots(job)
        return min(slots, jobs) if jobs else slots

    budget_s = inf if budget_h is None else 3600 * budget_h
    stop_request = made.runs.stop_request(made.plan.id)
    # of an earlier command
    stop_request.unlink(missing_ok=True)
    return Tuner(search.trials, study, made.runs, tune.trials, budget_s, at_once, stop_request)


def _tell(screen: Screen, search: Search, tuner: Tuner, runs: Runs) -> int:
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
        screen.say(f"retry: {again(screen)}")
        return FAILED
    _write_recipes(screen, search, study)
    return 0


def _study(search: Search, tuner: Tuner, runs: Runs) -> Study:
    from kdlab.jobs import store
    from kdlab.jobs.study import Study

    trials = tuple(tuner.study.trials())
    results = store.results(runs, [trial.job for trial in trials if trial.state == "finished"])
    made_with = [result.environment for result in results.values()]
    return Study(
        name=search.study,
        title=search.recipe.title or search.recipe.name,
        objectives=tuple(search.recipe.tune.objectives),
        dimensions=tuple(tuner.study.space),
        trials=trials,
        importance=tuner.study.importance(),
        seed=search.recipe.tune.seed,
        images=search.images,
        commit=_listed(made_with, "commit"),
        device=_listed(made_with, "device"),
    )


def _listed(environments: Sequence[dict[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(one.get(key, "") for one in environments))


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


def _write_recipes(screen: Screen, search: Search, study: Study) -> None:
    """Write the recipe of each trial that was found to be best; what to change in ours, and what to type."""
    from kdlab.recipe.files import write_derived
    from kdlab.reporting.statistics import SEEDS_FOR_A_TEST
    from kdlab.tuning.tuned import tuned

    several, arm, space = len(study.objectives) > 1, search.trials.arm, study.dimensions
    found = {}
    for trial in study.front if several else study.finished[:1]:
        if trial.has_methods:
            name = f"{study.name}-trial{trial.number}" if several else study.name
            made = tuned(search.document, search.recipe, arm, space, trial.params, name, search.command)
            write_derived(made.name, made.text)
            found[trial.number] = made
    if screen.json:
        told = {number: {"recipe": one.name, "difference": one.difference} for number, one in found.items()}
        screen.emit(tuned=told, space=[vars(one) for one in space])
    for number, one in found.items():
        lines = one.difference or ("  nothing to change: its own values did best",)
        screen.say("\n".join([f"{search.recipe.path} as trial {number} had it ({one.name}):", *lines]))
    if not found:
        screen.say("no method at all did best: nothing is to be changed but the methods or their options")
        return
    last = [*found.values()][-1]
    seeds = " --set 'seeds=[0,1,2]'" if len(search.recipe.seeds) < SEEDS_FOR_A_TEST else ""
    command = f"kdlab run {shlex.quote(last.name)}{seeds}"
    screen.next(f"{command}      # {', '.join(last.arms)}, on the validation images")
