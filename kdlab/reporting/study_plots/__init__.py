"""Study -> plots: one file a plot, each with the numbers it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdlab.reporting.plots.plot import Plot, drawn, write
from kdlab.reporting.renderers.html import Picture
from kdlab.reporting.study import Study
from kdlab.reporting.study_plots import course, front, history, parallel, slices

__all__ = ["PLOTS", "draw", "pictures", "write_plots"]

PLOTS: dict[str, Callable[[Study], Plot | None]] = {
    "history": history.draw,
    "slices": slices.draw,
    "parallel": parallel.draw,
    "front": front.draw,
    "course": course.draw,
}
"""All plots by the end of their files' names; each is None where a study lacks its numbers."""


def draw(study: Study) -> dict[str, Plot]:
    """The plots by name that the trials have numbers for; none where all of them failed."""
    return drawn(PLOTS, study)


def write_plots(study: Study, folder: Path, stem: str) -> list[Path]:
    """Write the plots as `plot.write` does; equal trials give equal files."""
    return write(draw(study), folder, stem)


def pictures(study: Study) -> list[Picture]:
    """The same plots for the page of `renderers.html`."""
    return [Picture(plot.svg(), plot.title, plot.caption) for plot in draw(study).values()]
