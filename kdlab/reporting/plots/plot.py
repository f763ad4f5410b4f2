"""What the plots have in common: how they look, their frame, their files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdlab.jobs.files import csv_text, replacing, write_text
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison

INK, SOFT = "#000000", "#767676"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, which the colour-blind tell apart; marker and dash tell them apart in grey."""
MARKERS = ("s", "^", "D", "v", "P", "X")
DASHES = ((4, 1.5), (1, 1), (6, 1.5, 1, 1.5), (3, 1, 1, 1, 1, 1), (8, 2), (2, 2))
TOGETHER = 1 + len(COLOURS)
"""Arms that one pair of axes holds, the baseline among them; more get a panel each."""
WIDTH = 7.5
"""Inches of a plot that needs no more, so that letters are of one size in all."""
DPI = 200
LEAST = 0.1
"""AP points that an axis or a scale of gains spans to both sides of 0; what rounding left of none is less."""
_PANELS_A_ROW = 4
_PANEL_TITLE = 30
"""Characters that fit above a panel."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    # text stays text in papers, and no identifier of an SVG is random
    "pdf.fonttype": 42,
    "svg.hashsalt": "kdlab",
}
METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": "kdlab", "Producer": None},
    "svg": {"Date": None, "Creator": "kdlab"},
}


@dataclass(frozen=True)
class Plot:
    """A figure and the numbers in it.

    Args:
        title: what it shows, of which recipe, over how many seeds.
        caption: how to read it.
        figure: as matplotlib draws it.
        columns: names of the numbers.
        rows: one a mark in the figure.
    """

    title: str
    caption: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def csv(self) -> str:
        """The numbers, "" where one is missing, after title and caption in `#` lines."""
        rows = [[_plain(value) for value in row] for row in self.rows]
        return csv_text([self.columns, *rows], (self.title, self.caption))

    def save(self, file: IO[bytes], suffix: str, dpi: int = DPI) -> None:
        """Write the figure as "png", "pdf" or "svg", the same bytes every time.

        Args:
            file: open for writing.
            suffix: the format.
            dpi: pixels of an inch; of a "pdf" or "svg" those of the images in it.
        """
        with rc_context(STYLE):
            self.figure.savefig(file, format=suffix, dpi=dpi, metadata=METADATA[suffix])

    def svg(self, dpi: int = DPI) -> str:
        """The figure as the text of an SVG file; `dpi` as for `save`."""
        file = io.BytesIO()
        self.save(file, "svg", dpi)
        return file.getvalue().decode()


def framed(
    what: str,
    of: str,
    caption: str,
    figure: Figure,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float]],
) -> Plot:
    """A plot with its title, "what: of", above and its caption below the axes that `figure` has."""
    inches = figure.get_figwidth()
    told = f"{what}: {of}"
    figure.suptitle(textwrap.fill(told, int(11 * inches)), x=0.01, ha="left", size=10)
    lines = textwrap.fill(caption, int(16 * inches))
    figure.supxlabel(lines, x=0.01, ha="left", size=7.5, color="#444444")
    # arranging the axes takes longer than drawing them, and once is enough for all files
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return Plot(told, caption, figure, columns, rows)


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that arranges its axes itself."""
    return Figure((width, height), layout="constrained")


def panels(titles: Sequence[str], x: str, y: str) -> tuple[Figure, list[Axes]]:
    """A figure and axes in a grid that share their scales, one a title; `x` and `y` are their labels."""
    rows = math.ceil(len(titles) / _PANELS_A_ROW)
    columns = math.ceil(len(titles) / rows)
    grid = figure(max(WIDTH, 0.6 + 2.3 * columns), 1.2 + 1.7 * rows)
    axes = list(grid.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for spare in axes[len(titles) :]:
        spare.remove()
    axes = axes[: len(titles)]
    for one, title in zip(axes, titles, strict=True):
        one.set_title(textwrap.fill(title, _PANEL_TITLE, break_on_hyphens=False), loc="left")
    for one in axes[::columns]:
        one.set_ylabel(y)
    for one in axes[-columns:]:
        one.set_xlabel(x)
        one.tick_params(labelbottom=True)
    return grid, axes


def look(arms: Iterable[Arm], baseline: Arm | None) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each arm by name; the baseline is black and not dashed."""
    looks: dict[str, dict[str, Any]] = {}
    others = [arm.name for arm in arms if baseline is None or arm.name != baseline.name]
    for place, name in enumerate(others):
        turn = place % len(COLOURS)
        looks[name] = {"color": COLOURS[turn], "marker": MARKERS[turn], "dashes": DASHES[turn]}
    if baseline is not None:
        looks[baseline.name] = {"color": INK, "marker": "o", "dashes": (None, None)}
    return looks


def legend(grid: Figure, *axes: Axes) -> None:
    """What the marks in the axes mean, each once, to the right of them."""
    handles: dict[str, Any] = {}
    for one in axes:
        for handle, name in zip(*one.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    grid.legend(handles.values(), handles, loc="outside right center")


def label(name: str) -> str:
    """A name for a legend, which would leave out one that begins with an underscore."""
    return f" {name}"


def signed(points: float) -> str:
    """ "+1.2", with a minus as on the axes and never a minus before 0.0."""
    return f"{round(points, 1) + 0.0:+.1f}".replace("-", "−")


def write(plots: Mapping[str, Plot], folder: Path, stem: str) -> list[Path]:
    """Write `<stem>-<name>.png`, `.pdf` and `.csv` under `folder`; equal plots give equal files.

    The stem may name folders ("coco/retinanet_r101_r50"), which are made. Returns the files, three a plot.
    """
    (folder / stem).parent.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in plots.items():
        png, pdf, csv = (folder / f"{stem}-{name}.{suffix}" for suffix in ("png", "pdf", "csv"))
        for path in (png, pdf):
            with replacing(path) as file:
                plot.save(file, path.suffix[1:])
        write_text(csv, plot.csv())
        files += [png, pdf, csv]
    return files


def finished(arms: Iterable[Arm]) -> list[Arm]:
    """The arms of which a job has finished."""
    return [arm for arm in arms if arm.results]


def of_what(comparison: Comparison) -> str:
    """ "RetinaNet R101 -> R50, n=3, after epoch 24"."""
    epochs = [result.last.epoch for arm in comparison.arms for result in arm.results.values()]
    last = f", after epoch {max(epochs)}" if any(epochs) else ""
    return f"{comparison.title}{last}"


def _plain(value: str | float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{round(value, 6) + 0.0:g}"
    return str(value)
