"""What each arm is worth over the baseline, and how far that is from chance."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from kdlab.reporting.comparison import Comparison, Gain
from kdlab.reporting.plots.plot import COLOURS, INK, SOFT, WIDTH, Plot, figure, framed, of_what, signed
from kdlab.reporting.statistics import Interval

_COLUMNS = ("arm", "dAP", "low", "high", "other_images_low", "other_images_high", "n")
_ASIDE = 0.24
"""How far above and below an arm's line its seeds and its second interval lie; lines are 1 apart."""


def draw(comparison: Comparison) -> Plot | None:
    """A dot and its intervals an arm, the first arm of the recipe on top."""
    arms = [arm for arm in comparison.arms if arm.name in comparison.gains]
    baseline = comparison.baseline
    if not arms or baseline is None:
        return None
    gains = [comparison.gains[arm.name] for arm in arms]
    grid = figure(WIDTH, 1.5 + 0.36 * len(arms))
    axes = grid.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    for place, gain in enumerate(gains):
        _mark(axes, place, gain)
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel(f"gain over {baseline.name} (AP points)")
    caption = _caption(gains)
    rows = [_row(arm.name, gain) for arm, gain in zip(arms, gains, strict=True)]
    return framed("Gains", of_what(comparison), caption, grid, _COLUMNS, rows)


def _mark(axes: Axes, place: int, gain: Gain) -> None:
    colour, by_seed = COLOURS[0], gain.differences
    if gain.interval is not None:
        axes.errorbar(gain.mean, place, xerr=_reach(gain.mean, gain.interval), color=colour, lw=2, capsize=4)
    if gain.other_images is not None:
        reach = _reach(gain.mean, gain.other_images)
        axes.errorbar(gain.mean, place + _ASIDE, xerr=reach, color=SOFT, lw=0.9, capsize=2)
    if len(by_seed) > 1:
        axes.plot(by_seed, [place - _ASIDE] * len(by_seed), "o", mfc="none", mec=INK, mew=0.7, ms=3.5)
    axes.plot(gain.mean, place, "o", color=colour, ms=6)
    told = f"{signed(gain.mean)}{_shown(gain.interval)}, n={len(gain.seeds)}"
    axes.text(1.01, place, told, transform=axes.get_yaxis_transform(), va="center", size=8)


def _caption(gains: list[Gain]) -> str:
    """What the marks that are there mean."""
    parts = ["Dot: mean over the seeds that both have."]
    if any(len(gain.seeds) > 1 for gain in gains):
        parts.append("Rings: single seeds.")
    if any(gain.interval is not None for gain in gains):
        parts.append("Thick line: 95 % interval for other seeds and other images.")
    if any(gain.other_images is not None for gain in gains):
        parts.append("Thin line: 95 % interval for these weights on other images.")
    return " ".join(parts)


def _row(name: str, gain: Gain) -> list[str | float]:
    ends = [end for one in (gain.interval, gain.other_images) for end in _ends(one)]
    return [name, gain.mean, *ends, len(gain.seeds)]


def _ends(interval: Interval | None) -> tuple[float, float]:
    return (math.nan, math.nan) if interval is None else (interval.low, interval.high)


def _reach(mean: float, interval: Interval) -> list[list[float]]:
    """How far an interval reaches to both sides of `mean`; 0 on a side where it does not hold it."""
    return [[max(0.0, mean - interval.low)], [max(0.0, interval.high - mean)]]


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f" [{signed(interval.low)}, {signed(interval.high)}]"
