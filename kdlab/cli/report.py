"""kdlab report: the comparison tables of what was run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab.cli.console import Screen
from kdlab.errors import KdlabError, UsageError

if TYPE_CHECKING:
    from kdlab.jobs.job import Runs
    from kdlab.reporting.tables import Table
    from kdlab.reporting.tracking import SyncReport

RESULTS = Path("results")
QUICKSTART = "kdlab run digits/quickstart"


def report(
    screen: Screen,
    plans: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|PLAN]...", help="Which; by default the newest plan.", show_default=False
        ),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="The comparison table: the default.")] = False,
    pool: Annotated[
        bool, typer.Option("--pool", help="Average seeds in micro-batches with those that ran whole.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write Markdown and CSV to results/ as well.")
    ] = False,
) -> None:
    """Compare the arms of what was run.

    Means and deviations over seeds, gains over the baseline, and what a reader must know to trust them.

    \b
    Examples:
      $ kdlab report --table
      GFL R18 to a slimmer R18 on handwritten digits: RM and PFI, n=1
      arm         AP    dAP  ...
      teacher   36.2         ...
      ...
      $ kdlab report --json digits/quickstart
      {"schema": 1, "tables": [{"schema": 1, "title": ...
    """
    from kdlab import session
    from kdlab.reporting import records, renderers, tables, tracking

    runs = session.runs_here()
    chosen = [records.load_plan(runs, name) for name in plans] if plans else [_newest(screen, runs)]
    made = [tables.table(plan, records.collect(plan, runs), pool=pool) for plan in chosen]
    if screen.json:
        screen.emit(tables=[one.to_dict() for one in made])
    for plan, one in zip(chosen, made, strict=True):
        if not screen.json:
            screen.data(renderers.to_terminal(one))
        if write:
            written(screen, one, plan)
    for plan in chosen:
        tell_tracking(screen, tracking.sync(plan, runs, deadline_s=session.TRACKING_S))
    screen.next(f"kdlab run {chosen[0]['recipe']['name']}")


def written(screen: Screen, table: Table, plan: dict[str, Any]) -> list[Path]:
    """Write a table to `results/` and say so; a folder that cannot be written is told, not raised."""
    from kdlab.reporting import renderers

    try:
        files = renderers.write(table, RESULTS, results_stem(plan))
    except OSError as error:
        screen.err.print(f"warning: {RESULTS}/ cannot be written: {error}", soft_wrap=True)
        return []
    screen.say(f"written: {', '.join(map(str, files))}")
    return files


def tell_tracking(screen: Screen, done: SyncReport) -> None:
    """Say what MLflow lacks, if anything."""
    if done.left or done.error:
        why = f" ({done.error})" if done.error else ""
        screen.say(
            f"MLflow lacks {done.left} points{why}; the next kdlab run or report sends what is missing"
        )


def results_stem(plan: dict[str, Any]) -> str:
    """Where a plan's table belongs below `results/`: under its recipe's name.

    A plan of a recipe that `--set` changed, or that was edited since, keeps its id in the name, so that a
    trial never replaces the numbers of the recipe as it stands.
    """
    from kdlab.orchestration import recipe as recipes

    told = plan["recipe"]
    name: str = told["name"]
    try:
        stands = recipes.load(told["path"] if Path(told["path"]).is_file() else name).to_dict()
    except KdlabError:
        stands = {}
    same = all(stands.get(key) == value for key, value in told.items() if key != "path")
    return name if same else f"{name}-{plan['id']}"


def _newest(screen: Screen, runs: Runs) -> dict[str, Any]:
    from kdlab.reporting import records

    plan = records.newest_plan(runs)
    if plan is None:
        raise UsageError("nothing was run here yet", where=str(runs.folder), fix=QUICKSTART)
    screen.say(f"plan {plan['id']} of {plan['recipe']['name']}, the newest in {runs.folder}")
    return plan
