"""Comparison -> plots: one file a plot, each with the numbers it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from kdlab.jobs.files import replacing
from kdlab.reporting.comparison import Comparison
from kdlab.reporting.diagnosis import Scene
from kdlab.reporting.plots import (
    ap50_lost,
    classes,
    confusion,
    detections,
    difference_maps,
    epochs,
    gains,
    kept_boxes,
    latency,
    losses,
    sizes,
)
from kdlab.reporting.plots.plot import STYLE, Plot, finished, write
from kdlab.reporting.predictions import Predictions, Seen
from kdlab.reporting.renderers.html import Picture

__all__ = ["PLOTS", "draw", "pictures", "write_detections", "write_plots", "write_scene"]

_PAGE_DPI = 100
"""Of photographs on a page of HTML, whose size they decide; boxes and words are as sharp in any."""

PLOTS: dict[str, Callable[[Comparison], Plot | None]] = {
    "ap_by_epoch": epochs.draw,
    "gains": gains.draw,
    "ap_by_size": sizes.draw,
    "ap_by_latency": latency.draw,
    "losses": losses.draw,
    "gradient_shares": losses.draw_shares,
    "gains_by_class": classes.draw,
    "ap50_lost": ap50_lost.draw,
    "confusion": confusion.draw,
}
"""All plots by the end of their files' names; each is None where a comparison lacks its numbers."""


def draw(comparison: Comparison, names: Iterable[str] = tuple(PLOTS)) -> dict[str, Plot]:
    """The plots by name that the results have numbers for; none before a student has finished."""
    if not finished(comparison.arms):
        return {}
    with rc_context(STYLE):
        plots = {name: PLOTS[name](comparison) for name in names}
    return {name: plot for name, plot in plots.items() if plot is not None}


def write_plots(comparison: Comparison, folder: Path, stem: str) -> list[Path]:
    """Write the plots as `plot.write` does; equal results give equal files."""
    return write(draw(comparison), folder, stem)


def write_scene(scene: Scene, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>-boxes` and, where its maps were kept, `<stem>-maps` of one image as `plot.write` does."""
    with rc_context(STYLE):
        drawn = {"boxes": kept_boxes.draw(scene), "maps": difference_maps.draw(scene)}
    return write({name: plot for name, plot in drawn.items() if plot is not None}, folder, stem)


def write_detections(
    found: Predictions, read: Callable[[Seen], Any], folder: Path
) -> tuple[list[Path], list[Picture]]:
    """Write `page-1.png` and so on into a folder, and remove pages that an earlier call left behind them.

    Args:
        found: what to draw.
        read: (H, W, 3) RGB of an image.
        folder: is made.

    Returns:
        The files, and the same pictures for `renderers.html`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, drawn = [], []
    with rc_context(STYLE):
        for number, plot in enumerate(detections.pages(found, read), start=1):
            files.append(folder / f"page-{number}.png")
            with replacing(files[-1]) as file:
                plot.save(file, "png")
            drawn.append(Picture(plot.svg(_PAGE_DPI), plot.title, plot.caption))
    for stale in set(folder.glob("page-[0-9]*.png")) - {*files}:
        stale.unlink()
    return files, drawn


def pictures(comparison: Comparison) -> list[Picture]:
    """The same plots for the page of `renderers.html`."""
    return [Picture(plot.svg(), plot.title, plot.caption) for plot in draw(comparison).values()]
