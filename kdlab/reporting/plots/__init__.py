"""Comparison -> plots: one file a plot, each with the numbers it shows."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context

from kdlab.jobs.files import replacing, write_text
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.plots import classes, epochs, gains, latency, losses, sizes
from kdlab.reporting.plots.plot import STYLE, Plot
from kdlab.reporting.renderers.html import Picture

__all__ = ["PLOTS", "draw", "pictures", "write_plots"]

PLOTS = (epochs.draw, gains.draw, sizes.draw, latency.draw, losses.draw, classes.draw)


def draw(comparison: Comparison) -> list[Plot]:
    """All plots that the results of a plan have numbers for."""
    with rc_context(STYLE):
        plots = [one(comparison) for one in PLOTS]
    return [plot for plot in plots if plot is not None]


def write_plots(comparison: Comparison, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>-<plot>.png`, `.pdf` and `.csv` under `folder`; equal results give equal files.

    Args:
        comparison: what to show.
        folder: where; made if it is not there.
        stem: file name without suffix, may name folders ("coco/retinanet_r101_r50").

    Returns:
        The files, three a plot.
    """
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in draw(comparison):
        png, pdf, csv = (folder / f"{stem}-{plot.name}.{suffix}" for suffix in ("png", "pdf", "csv"))
        for path in (png, pdf):
            with replacing(path) as file:
                plot.save(file, path.suffix[1:])
        write_text(csv, plot.csv())
        files += [png, pdf, csv]
    return files


def pictures(comparison: Comparison) -> list[Picture]:
    """The same plots for the page of `renderers.html`."""
    return [Picture(plot.svg(), plot.title, plot.caption) for plot in draw(comparison)]
