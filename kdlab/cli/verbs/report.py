"""kdlab report: the comparison tables and plots of what was run."""

from __future__ import annotations

import gc
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import plan_names
from kdlab.errors import KdlabError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdlab.jobs.paths import Runs
    from kdlab.jobs.plan import Plan
    from kdlab.reporting.comparison import Comparison
    from kdlab.reporting.tables import Table
    from kdlab.tracking.base import Lacking

RESULTS = Path("results")


class Format(StrEnum):
    """Format of a printed table."""

    terminal = "terminal"
    md = "md"
    latex = "latex"
    csv = "csv"
    html = "html"
    json = "json"
    explain = "explain"


def report(
    screen: Screen,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE|PLAN|mlflow:FILTER]...",
            help="Which; by default the newest plan. A filter is one of MLflow's over runs of jobs.",
            show_default=False,
            autocompletion=plan_names,
        ),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="The comparison table: the default.")] = False,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.terminal,
    cols: Annotated[
        str | None,
        typer.Option(
            "--cols",
            metavar="A,B",
            help="Columns: AP, dAP, interval, other_images, p, gap_closed, n, latency_ms, ...; of --by-class "
            "arms. A wrong one tells all.",
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="COLUMN", help="Rows by a column: numbers highest first.")
    ] = None,
    classes: Annotated[bool, typer.Option("--by-class", help="AP of each class, a column an arm.")] = False,
    reported: Annotated[
        bool, typer.Option("--reported", help="Add published numbers of the same pair, from other codebases.")
    ] = False,
    plots: Annotated[
        bool,
        typer.Option("--plots", help="Write plots to results/: PNG, PDF and CSV; into --format html too."),
    ] = False,
    pool: Annotated[
        bool, typer.Option("--pool", help="Average seeds in micro-batches with those that ran whole.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write Markdown and CSV, or the format asked for, to results/.")
    ] = False,
) -> None:
    """Compare the arms of what was run.

    Means and deviations over seeds, gains over the baseline, and how sure they are.

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
    from kdlab.jobs.paths import Runs

    runs = Runs.here()
    # among the objects of ten thousand results the search for cycles takes a quarter of the time
    gc.disable()
    try:
        compared = list(_compared(screen, sources or [], runs, pool=pool, curves=plots))
        made = [_shaped(one, classes, reported, cols, sort) for one in compared]
    finally:
        gc.enable()
    _show(screen, made, compared, form, plots)
    formats = ("md", "csv") if form is Format.terminal else (form.value,)
    for comparison, one in zip(compared, made, strict=True):
        if write:
            written(screen, one, comparison.plan, formats, comparison if plots else None)
        if plots:
            _plot(screen, comparison)
    screen.next(_next(compared[0], plots))


def _next(comparison: Comparison, plots: bool) -> str:
    """The next command: train what is missing, else look closer."""
    recipe = comparison.plan.recipe
    name = shlex.quote(recipe["name"])
    if not all(arm.whole for arm in comparison.arms):
        return str(recipe.get("command") or f"kdlab run {name}")
    return f"kdlab report {name} {'--format explain' if plots else '--plots'}"


def _compared(
    screen: Screen, sources: list[str], runs: Runs, *, pool: bool, curves: bool
) -> Iterator[Comparison]:
    """Comparison of each source; of the newest plan where none is named.

    Args:
        screen: where it is said what takes time.
        sources: names of recipes, ids of plans, filters of MLflow.
        runs: where the jobs are.
        pool: average jobs that ran in micro-batches with those that ran whole.
        curves: with the learning curves, which plots show.
    """
    from kdlab import session
    from kdlab.jobs import store
    from kdlab.reporting import comparison, queries

    plans = []
    if not sources:
        plans = [store.newest_plan(runs, searches=False)]
        screen.say(f"plan {plans[0].id} of {plans[0].recipe['name']}, the newest in {runs.folder}")
    with screen.working("comparing") as progress:
        for source in sources:
            if source.startswith(queries.QUERY):
                send_all(screen, runs, session.TRACKING_S)
                plans += queries.plans(source.removeprefix(queries.QUERY), runs, progress)
            else:
                plans.append(store.plan(runs, source, searches=False, recipes=catalog.recipes()))
        for plan in plans:
            yield comparison.of_plan(plan, runs, pool=pool, curves=curves)


def send_all(screen: Screen, runs: Runs, limit_s: float = math.inf) -> None:
    """Bring trackers up to date with all plans, and say what they still lack."""
    from kdlab import session
    from kdlab.jobs import store

    tell_lacking(screen, session.catch_up(store.plans(runs), runs, limit_s))


def _shaped(
    comparison: Comparison, classes: bool, reported: bool, cols: str | None, sort: str | None
) -> Table:
    """The table of a comparison as it was asked for."""
    from kdlab.reporting import comparison_table, reference

    if classes and reported:
        raise UsageError("--reported has no numbers by class", fix="leave one of the two out")
    made = comparison_table.by_class(comparison) if classes else comparison_table.table(comparison)
    if reported:
        published = reference.published(comparison.plan.recipe["name"])
        made = comparison_table.with_reported(made, published)
    if sort:
        made = made.sorted_by(sort)
    if not cols:
        return made.usual()
    # commas in the brackets of an arm's name part nothing
    return made.only([word.strip() for word in re.split(r",(?![^\[]*\])", cols)])


def _show(screen: Screen, tables: list[Table], compared: list[Comparison], form: Format, plots: bool) -> None:
    """Print the tables; JSON and HTML are one whole."""
    from kdlab.reporting import renderers

    if screen.json or form is Format.json:
        screen.emit(tables=[one.to_dict() for one in tables])
    elif form is Format.html:
        screen.text(_page(tables, compared if plots else ()))
    elif form is Format.terminal:
        for one in tables:
            screen.data(renderers.to_terminal(one))
    else:
        screen.text("\n".join(renderers.FORMATS[form](one) for one in tables))


def _page(tables: Sequence[Table], plotted: Sequence[Comparison]) -> str:
    """Tables as one HTML page, each with the plots of its comparison, or without any."""
    from kdlab.reporting.renderers import html

    pictures: list[Any] = [()] * len(tables)
    if plotted:
        from kdlab.reporting.plots import pictures as drawn

        pictures = [drawn(one) for one in plotted]
    return html.page([html.Section(*pair) for pair in zip(tables, pictures, strict=True)])


def _plot(screen: Screen, comparison: Comparison) -> None:
    """Write the plots of a comparison to `results/` and say so."""
    from kdlab.reporting.plots import write_plots

    with forgiving(screen):
        files = write_plots(comparison, RESULTS, results_stem(comparison.plan))
        pictures = [str(path) for path in files if path.suffix == ".png"]
        told = f"written, each with .pdf and .csv: {', '.join(pictures)}"
        screen.say(told if pictures else "nothing to plot yet")


def written(
    screen: Screen,
    table: Table,
    plan: Plan,
    formats: Sequence[str] = ("md", "csv"),
    plotted: Comparison | None = None,
) -> list[Path]:
    """Write a table to `results/` and say so; a folder that cannot be written is told, not raised.

    Args:
        screen: where to say it.
        table: what to write.
        plan: it is of.
        formats: names of `renderers.FORMATS`.
        plotted: what to draw on an HTML page.

    Returns:
        The files.
    """
    from kdlab.jobs.files import write_text
    from kdlab.reporting import renderers

    files: list[Path] = []
    with forgiving(screen):
        files = renderers.write(table, RESULTS, results_stem(plan), formats)
        if plotted and "html" in formats:
            write_text(files[formats.index("html")], _page([table], [plotted]))
        screen.say(f"written: {', '.join(map(str, files))}")
    return files


@contextmanager
def forgiving(screen: Screen) -> Iterator[None]:
    """Tell that `results/` cannot be written where that is so."""
    try:
        yield
    except OSError as error:
        screen.err.print(f"warning: {RESULTS}/ cannot be written: {error}", soft_wrap=True)


def tell_lacking(screen: Screen, lacking: Sequence[Lacking]) -> None:
    """Say what trackers did not get."""
    for each in lacking:
        jobs = f"{each.jobs} job{'s' * (each.jobs != 1)}" if each.jobs else "the plan"
        screen.say(
            f"{each.tracker} lacks news of {jobs} ({each.why}); the next kdlab run or kdlab ui sends it"
        )


def results_stem(plan: Plan) -> str:
    """Path of a plan's table below `results/`, without its ending: its recipe's name.

    A plan of a recipe that `--set` changed, or that was edited since, keeps its id in the name, so that a
    trial never replaces the numbers of the recipe as it stands. A query's is under `query/`.
    """
    from kdlab.recipe import loader as recipes

    told = plan.recipe
    if "query" in told:
        return f"query/{plan.id}"
    name: str = told["name"]
    try:
        stands = recipes.load(told["path"] if Path(told["path"]).is_file() else name).to_dict()
    except KdlabError:
        stands = {}
    same = all(stands.get(key) == value for key, value in told.items() if key not in ("path", "command"))
    return name if same else f"{name}-{plan.id}"
