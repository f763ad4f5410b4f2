"""kdlab report: the comparison tables and plots of what was run."""

from __future__ import annotations

import gc
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.options import plan_names
from kdlab.cli.screen.results import RESULTS, forgiving, makes_again, results_stem, send_all, written
from kdlab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdlab.jobs.paths import Runs
    from kdlab.reporting.comparison import Comparison
    from kdlab.reporting.tables import Table


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
            help="Columns: AP, dAP, interval, p, p_holm, other_images, gap_closed, n, ...; of --by-class "
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
      teacher   76.6         ...
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
        # what was read stays to the end, so the collector need not go through it
        gc.freeze()
        gc.enable()
    _show(screen, made, compared, form, plots)
    formats = ("md", "csv") if form is Format.terminal else (form.value,)
    for comparison, one in zip(compared, made, strict=True):
        if write:
            page = _page([one], [comparison]) if plots and form is Format.html else ""
            written(screen, one, comparison.plan, formats, page)
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
    from kdlab.jobs import store
    from kdlab.reporting import comparison, queries

    plans = []
    if not sources:
        plans = [store.newest_plan(runs, comparing=True)]
        screen.say(f"plan {plans[0].id} of {plans[0].recipe['name']}, the newest in {runs.folder}")
    with screen.working("comparing") as progress:
        for source in sources:
            if source.startswith(queries.QUERY):
                from kdlab import session

                send_all(screen, runs, session.TRACKING_S)
                plans += queries.plans(source.removeprefix(queries.QUERY), runs, progress)
            else:
                plans.append(store.plan(runs, source, comparing=True, recipes=catalog.recipes()))
        for plan in plans:
            compared = comparison.of_plan(plan, runs, pool=pool, curves=curves)
            yield compared if makes_again(plan) else replace(compared, outdated=True)


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
