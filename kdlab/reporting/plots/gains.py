"""What each arm is worth over the baseline, and how far that is from chance."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from kdlab.reporting.comparison import Comparison, Gain
from kdlab.reporting.plots.plot import COLOURS, INK, LEAST, SOFT, WIDTH, Plot, figure, framed, of_what, signed
from kdlab.reporting.statistics import Interval

_COLUMNS = ("arm", "dAP", "low", "high", "other_images_low", "other_images_high", "n")
_ASIDE = 0.24
"""How far above and below an arm's line its seeds and its second interval lie; lines are 1 apart."""


def draw(comparison: Comparison) -> Plot | None:
    """A dot and its intervals an arm, the first arm of the recipe on top."""
    gains = {arm.name: comparison.gains[arm.name] for arm in comparison.arms if arm.name in comparison.gains}
    baseline = comparison.baseline
    if not gains or baseline is None:
        return None
    grid = figure(WIDTH, 1.5 + 0.36 * len(gains))
    axes = grid.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    rows: list[list[str | float]] = []
    for place, (name, gain) in enumerate(gains.items()):
        _mark(axes, place, gain)
        ends = [one or Interval(math.nan, math.nan) for one in (gain.interval, gain.other_images)]
        numbers = [end for one in ends for end in (one.low, one.high)]
        rows.append([name, gain.mean, *numbers, len(gain.seeds)])
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -LEAST), max(high, LEAST))
    axes.set_yticks(range(len(gains)), list(gains))
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.set_xlabel(f"gain over {baseline.name} (AP points)")
    caption = "Dot: mean over the seeds that both have."
    if any(len(gain.seeds) > 1 for gain in gains.values()):
        caption += " Rings: single seeds."
    if sure := [gain for gain in gains.values() if gain.interval]:
        where = "" if all(gain.other_images for gain in sure) else ", where there is a thin line,"
        caption += f" Thick line: 95 % interval for other seeds and{where} other images."
    if any(gain.other_images for gain in gains.values()):
        caption += " Thin line: 95 % interval for these weights on other images."
    return framed("Gains", of_what(comparison), caption, grid, _COLUMNS, rows)


def _mark(axes: Axes, place: int, gain: Gain) -> None:
    told = signed(gain.mean)
    if gain.interval is not None:
        reach = _reach(gain.mean, gain.interval)
        axes.errorbar(gain.mean, place, xerr=reach, color=COLOURS[0], lw=2, capsize=4)
        told += f" [{signed(gain.interval.low)}, {signed(gain.interval.high)}]"
    if gain.other_images is not None:
        reach = _reach(gain.mean, gain.other_images)
        axes.errorbar(gain.mean, place + _ASIDE, xerr=reach, color=SOFT, lw=0.9, capsize=2)
    if len(gain.seeds) > 1:
        rings = [place - _ASIDE] * len(gain.seeds)
        axes.plot(gain.differences, rings, "o", mfc="none", mec=INK, mew=0.7, ms=3.5)
    axes.plot(gain.mean, place, "o", color=COLOURS[0], ms=6)
    told += f", n={len(gain.seeds)}"
    axes.text(1.01, place, told, transform=axes.get_yaxis_transform(), va="center", size=8)


def _reach(mean: float, interval: Interval) -> list[list[float]]:
    """How far an interval reaches to both sides of `mean`; 0 on a side where it does not hold it."""
    return [[max(0.0, mean - interval.low)], [max(0.0, interval.high - mean)]]
