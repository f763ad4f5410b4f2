"""kdlab bench: what a training step of each arm costs, and an image of each model."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import DryRun, ExecutorName, Gpus, Overrides, RecipeName, Yes
from kdlab.cli.screen.results import RESULTS, again, forgiving, results_stem
from kdlab.cli.verbs.plan import prepare, show
from kdlab.cli.verbs.run import carry, confirm_cost
from kdlab.prepared import Prepared

ROUNDS = 20


def bench(
    screen: Screen,
    recipe: RecipeName,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=2, help="How often to measure.")
    ] = ROUNDS,
    overrides: Overrides = None,
    executor: ExecutorName = "local",
    gpus: Gpus = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Measure what a training step of each arm costs, and an image of each model: time, memory, FLOPs.

    One arm after the other, with random weights. Nothing is trained and nothing is reused, for times are of
    this machine and hour.

    \b
    Examples:
      $ kdlab bench digits/quickstart --dry-run
      plan 8448  digits/quickstart  4 jobs, cost unknown on 2 cores
        + baseline  gfl r18    cost unknown  measured now
        ...
      $ kdlab bench digits/quickstart
      GFL R18 to a slimmer R18 on handwritten digits: RM and PFI: what a step and an image cost
      arm         ...
      teacher     ...
      ...
    """
    from kdlab.planning.benching import benching

    own = prepare(screen, recipe, overrides or [], executor, gpus, priced=False)
    asked = f"{datetime.now(UTC):%F %T}"
    made = replace(own, plan=benching(own.plan, asked, rounds))
    if dry_run:
        show(screen, made)
        screen.next(screen.command("--dry-run"))
        return 0
    if not yes:
        confirm_cost(screen, made.plan)
    # one after the other, for two at once would slow each other
    if code := carry(screen, made, 1, live=executor != "inline"):
        return code
    return _tell(screen, own, made)


def _tell(screen: Screen, own: Prepared, made: Prepared) -> int:
    """Show the table and write it."""
    from kdlab.jobs.result import JobResult
    from kdlab.reporting import bench_table, renderers

    results = {one.job.arm: (one.job, JobResult.read(made.runs.job(one.job.id))) for one in made.plan.jobs}
    found = {arm: (job, result) for arm, (job, result) in results.items() if result}
    table = bench_table.cost(made.plan.recipe["title"], found)
    if not screen.json:
        screen.data(renderers.to_terminal(table))
    files = []
    with forgiving(screen):
        files = renderers.write(table, RESULTS, f"{results_stem(own.plan)}-bench")
        screen.say(f"written: {', '.join(map(str, files))}")
    if screen.json:
        screen.emit(tables=[table.to_dict()], files=[str(path) for path in files])
    screen.next(again(own.plan))
    return 0
