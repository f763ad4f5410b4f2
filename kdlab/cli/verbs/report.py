"""kdlab report: the comparison tables and plots of what was run."""

from __future__ import annotations

import gc
import shlex
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdlab import catalog
from kdlab.cli.screen.console import Screen
from kdlab.cli.screen.detections import with_errors
from kdlab.cli.screen.options import names_in, plan_names
from kdlab.cli.screen.results import (
    RESULTS,
    again,
    forgiving,
    makes_again,
    results_stem,
    send_all,
    written,
)
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
            help="Columns: AP, dAP, interval, p, gap_closed, n, cls, both_find, ...; of --by-class arms. "
            "A wrong one tells all.",
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="COLUMN", help="Rows by a column: numbers highest first.")
    ] = None,
    classes: Annotated[bool, typer.Option("--by-class", help="AP of each class, a column an arm.")] = False,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors",
            help="Where AP50 is lost: kinds of error, confused classes, agreement with the teacher.",
        ),
    ] = False,
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
        if errors and (classes or reported):
            other = "--by-class" if classes else "--reported"
            raise UsageError(f"{other} has no errors to tell", fix="leave one of the two out")
        if errors or _asks_for_errors(cols):
            compared = [with_errors(screen, one, runs) for one in compared]
        made = [
            {"": _shaped(one, classes, errors, reported, cols, sort), **(_more(one) if errors else {})}
            for one in compared
        ]
    finally:
        # what was read stays to the end, so the collector need not go through it
        gc.freeze()
        gc.enable()
    _show(screen, made, compared, form, plots=plots, errors=errors)
    formats = ("md", "csv") if form is Format.terminal else (form.value,)
    for comparison, tables in zip(compared, made, strict=True):
        if write:
            page = _page([tables], [comparison]) if plots and form is Format.html else ""
            _write(screen, comparison, tables, formats, page, _beside(classes, errors, pool))
        if plots:
            _plot(screen, comparison)
    screen.next(_next(compared[0], plots, errors))


def _next(comparison: Comparison, plots: bool, errors: bool) -> str:
    """The next command: train what is missing, else look closer."""
    recipe = comparison.plan.recipe
    name = shlex.quote(recipe["name"])
    if not all(arm.whole for arm in comparison.arms):
        return again(comparison.plan)
    asked = " --errors" if errors else ""
    return f"kdlab report {name}{asked} {'--format explain' if plots else '--plots'}"


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


def _words(cols: str | None) -> list[str]:
    """The columns that --cols names."""
    return names_in(cols) if cols else []


def _asks_for_errors(cols: str | None) -> bool:
    """Whether one of the columns that are named needs detections."""
    from kdlab.reporting.columns import AGREEMENT, ERRORS

    return not {*ERRORS, *AGREEMENT}.isdisjoint(_words(cols))


def _more(comparison: Comparison) -> dict[str, Table]:
    """The tables of errors below the first, by the ends of their files' names."""
    from kdlab.reporting import error_table

    made = {"gains": error_table.gains(comparison), "confused": error_table.confused(comparison)}
    return {part: one for part, one in made.items() if one is not None}


def _beside(classes: bool, errors: bool, pool: bool) -> str:
    """End of the names of files that must not take the place of the comparison's own."""
    return f"{'-errors' * errors}{'-by-class' * classes}{'-pooled' * pool}"


def _write(
    screen: Screen,
    comparison: Comparison,
    tables: dict[str, Table],
    formats: Sequence[str],
    page: str,
    beside: str,
) -> None:
    """Write the tables of a comparison to `results/`, those of errors with the confusion matrices."""
    for part, one in tables.items():
        written(screen, one, comparison.plan, formats, "" if part else page, f"{beside}{part and '-'}{part}")
    if "-errors" in beside:
        from kdlab.reporting.error_table import matrix_table

        # too wide for a page
        if matrices := matrix_table(comparison):
            written(screen, matrices, comparison.plan, ("csv",), part=f"{beside}-confusion")


def _shaped(
    comparison: Comparison, classes: bool, errors: bool, reported: bool, cols: str | None, sort: str | None
) -> Table:
    """The table of a comparison as it was asked for."""
    from kdlab.reporting import comparison_table, reference

    if classes and reported:
        raise UsageError("--reported has no numbers by class", fix="leave one of the two out")
    if errors and not cols:
        return comparison_table.errors(comparison, sort)
    made = comparison_table.by_class(comparison) if classes else comparison_table.table(comparison)
    if reported:
        published = reference.published(comparison.plan.recipe["name"])
        made = comparison_table.with_reported(made, published)
    if sort:
        made = made.sorted_by(sort)
    if not cols:
        return made.usual()
    return made.only(_words(cols))


def _show(
    screen: Screen,
    made: list[dict[str, Table]],
    compared: list[Comparison],
    form: Format,
    *,
    plots: bool,
    errors: bool,
) -> None:
    """Print the tables; JSON and HTML are one whole."""
    from kdlab.reporting import renderers

    tables = [one for own in made for one in own.values()]
    if screen.json or form is Format.json:
        more = {}
        if errors:
            from kdlab.reporting.error_table import plain_matrices

            more = {"confusion": [plain_matrices(one) for one in compared]}
        screen.emit(tables=[one.to_dict() for one in tables], **more)
    elif form is Format.html:
        screen.text(_page(made, compared if plots else ()))
    elif form is Format.terminal:
        for place, one in enumerate(tables):
            if errors and place:
                screen.data("")
            screen.data(renderers.to_terminal(one))
    else:
        screen.text("\n".join(renderers.FORMATS[form](one) for one in tables))


def _page(made: Sequence[dict[str, Table]], plotted: Sequence[Comparison]) -> str:
    """The tables of comparisons as one HTML page, below the first of each its plots, or without any."""
    from kdlab.reporting.renderers import html

    pictures: list[Any] = [()] * len(made)
    if plotted:
        from kdlab.reporting.plots import pictures as drawn

        pictures = [drawn(one) for one in plotted]
    sections = []
    for own, shown in zip(made, pictures, strict=True):
        first, *others = own.values()
        sections += [html.Section(first, shown), *map(html.Section, others)]
    return html.page(sections)


def _plot(screen: Screen, comparison: Comparison) -> None:
    """Write the plots of a comparison to `results/` and say so."""
    from kdlab.reporting.plots import write_plots

    with forgiving(screen):
        files = write_plots(comparison, RESULTS, results_stem(comparison.plan))
        pictures = [str(path) for path in files if path.suffix == ".png"]
        told = f"written, each with .pdf and .csv: {', '.join(pictures)}"
        screen.say(told if pictures else "nothing to plot yet")
