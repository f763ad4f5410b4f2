"""What a comparison shows of an arm: one function a column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev

from kdlab.jobs.resampled import RESAMPLES
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import SIGNIFICANT, Comparison, Gain
from kdlab.reporting.tables import Cell, Column, Mark

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "VOC07", "VOC12")
NONE = Cell("-", mark="dim")
_LEAST_P = 0.001


@dataclass(frozen=True)
class View:
    """One row to be: an arm among those it is compared with.

    Args:
        comparison: all arms.
        arm: the row's; the teacher has one too.
        mark: how its AP stands out.
    """

    comparison: Comparison
    arm: Arm
    mark: Mark = ""

    @property
    def gain(self) -> Gain | None:
        """Over the baseline; None for the teacher and the baseline itself."""
        return None if self.arm is self.comparison.teacher else self.comparison.gains.get(self.arm.name)

    @property
    def compared(self) -> bool:
        """Whether the arm can have a gain: it is no baseline, and has results."""
        return bool(self.comparison.baseline and self.arm.results and not self.arm.plain)


Fill = Callable[[View, Column], Cell | None]
ALONE = ("student_step_s",)
WITH_TEACHER = ("student_step_s", "teacher_forward_s")
"""Parts of a job's timing that its training step is compared with."""


def _name(view: View, column: Column) -> Cell:
    return Cell(view.arm.name)


def _inherits(view: View, column: Column) -> Cell | None:
    """ "31 of 34" as soon as a job has counted."""
    if not view.arm.inherits:
        return None
    found = next((result.model.get("inherited") for result in view.arm.results.values()), None)
    return Cell(f"{found['tensors']} of {found['of']}" if found else "yes")


def _metric(view: View, column: Column) -> Cell | None:
    """After the last epoch; AP has its deviation, and a dash where there is none."""
    name = column.key
    found = {seed: result.metrics.get(name) for seed, result in view.arm.results.items()}
    values = {seed: value for seed, value in found.items() if value is not None}
    if not values:
        return NONE if name == "AP" else None
    if name != "AP":
        return column.cell(fmean(values.values()), how=_listed(column, values))
    spread = _deviation(list(values.values()))
    how = _listed(column, values).replace("mean of", "mean ± sample deviation of")
    return replace(column.cell(fmean(values.values()), spread, how=how), mark=view.mark)


def _best(view: View, column: Column) -> Cell | None:
    evaluations = [result.best.metrics for result in view.arm.results.values()]
    values = [metrics["AP"] for metrics in evaluations if "AP" in metrics]
    return column.cell(fmean(values), _deviation(values)) if values else None


def _gain(view: View, column: Column) -> Cell | None:
    if not view.compared:
        return None
    if (gain := view.gain) is None:
        return NONE
    differences = dict(zip(gain.seeds, gain.differences, strict=True))
    cell = column.cell(gain.mean, how=f"paired by seed; {_listed(column, differences)}")
    return replace(cell, text=f"{cell.text} *" if gain.supported else cell.text, mark=view.mark)


def _interval(view: View, column: Column) -> Cell | None:
    if not (gain := view.gain) or gain.interval is None:
        return None
    images = view.comparison.images
    how = (
        f"t interval of the mean difference; its variance is that between {len(gain.seeds)} seeds and that "
        f"which {RESAMPLES:,} resamples of {images:,} images add to all of them"
    )
    return column.span(gain.interval, how)


def _other_images(view: View, column: Column) -> Cell | None:
    if not (gain := view.gain) or gain.other_images is None:
        return None
    how = f"middle 95 % of the gain over {RESAMPLES:,} resamples of {view.comparison.images:,} images"
    return column.span(gain.other_images, how)


def _gap_closed(view: View, column: Column) -> Cell | None:
    if not view.compared or not (view.comparison.teacher and view.comparison.teacher.results):
        return None
    if not (gain := view.gain) or gain.gap_closed is None:
        return NONE
    how = "mean gain over (teacher - baseline) of the same seeds"
    if gain.gap_interval:
        how += "; interval by Fieller, for other seeds and images and this teacher"
    return column.cell(gain.gap_closed, interval=gain.gap_interval, how=how)


def _p(view: View, column: Column) -> Cell | None:
    if not (gain := view.gain) or gain.p is None or gain.p_holm is None:
        return None
    compared = sum(one.p is not None for one in view.comparison.gains.values())
    how = (
        f"paired t test over {len(gain.seeds)} seeds, two-sided: p = {gain.p:.2g}; Holm over {compared} arms"
    )
    small = f"<{_LEAST_P}" if gain.p_holm < _LEAST_P else column.plain(gain.p_holm)
    return Cell(small, gain.p_holm, how=how)


def _n(view: View, column: Column) -> Cell:
    done, planned = len(view.arm.results), view.arm.planned
    return Cell(f"{done}" if done == planned else f"{done} of {planned}", done)


def step_ratios(arm: Arm, parts: Sequence[str]) -> list[float]:
    """Time of a training step over the sum of `parts`, one a seed that took them in turns."""
    timings = [result.timing for result in arm.results.values()]
    return [
        timing["distill_step_s"] / sum(timing[part] for part in parts)
        for timing in timings
        if "distill_step_s" in timing
    ]


_STEPS = "median over seeds of medians of steps that took turns in the job"


def _step_x(view: View, column: Column) -> Cell | None:
    if view.arm is view.comparison.teacher or not view.arm.results:
        return None
    if not view.arm.distils:
        return column.cell(1.0)
    return _median(column, step_ratios(view.arm, ALONE), _STEPS)


def _method_x(view: View, column: Column) -> Cell | None:
    return _median(column, step_ratios(view.arm, WITH_TEACHER), _STEPS)


def _latency(view: View, column: Column) -> Cell | None:
    found = view.comparison.latency_ms(view.arm)
    return None if found is None else column.cell(found, how="median over the jobs of this network")


def _params(view: View, column: Column) -> Cell | None:
    models = [result.model for result in view.arm.results.values()]
    return _median(column, [model["params"] / 1e6 for model in models if "params" in model])


def _minutes(view: View, column: Column) -> Cell | None:
    minutes = [result.wall_s / 60 for result in view.arm.results.values()]
    return _median(column, minutes, "median over seeds of training and evaluation")


def _median(column: Column, values: Sequence[float], how: str = "") -> Cell | None:
    return column.cell(median(values), how=how) if values else None


def _deviation(values: list[float]) -> float | None:
    """Sample standard deviation, None for a single value."""
    return stdev(values) if len(values) > 1 else None


def _listed(column: Column, values: dict[int, float]) -> str:
    """ "mean of seed 0: 31.9, seed 1: 32.7"."""
    listed = ", ".join(f"seed {seed}: {column.shown(value)}" for seed, value in sorted(values.items()))
    return f"mean of {listed}" if len(values) > 1 else listed


_INTERVAL_READING = (
    "dAP 95 %: of the gain, for other seeds and other validation images; not corrected for the number of arms"
)
_IMAGES_READING = (
    "these weights, other images: 95 % of the gain over resampled validation images; no word on seeds"
)
_GAP_READING = 'gap closed: gain / (teacher - baseline); "-" where the teacher is not above the baseline'
P_READING = (
    "p: paired t test over seeds, two-sided, corrected with Holm over the arms of this table; "
    f"* p < {SIGNIFICANT}; bold: the highest AP, where its gain has a star; "
    "underlined: then the second, both of arms that lack no seed"
)
_VOC_READING = "VOC07: PASCAL VOC's mAP at IoU 0.5, mean precision at 11 recalls; VOC12: area under the curve"
_LATENCY_READING = "latency: one image, from pixels to boxes, median, on the device of the job"

COLUMNS: tuple[tuple[Column, Fill], ...] = (
    (Column("arm", "arm", digits=None), _name),
    (
        Column(
            "inherits",
            "inherits",
            digits=None,
            reading="inherits: tensors of the student's neck and head that start from the teacher's",
        ),
        _inherits,
    ),
    (Column("AP", "AP"), _metric),
    (Column("dAP", "dAP", signed=True), _gain),
    (Column("interval", "dAP 95 %", signed=True, reading=_INTERVAL_READING), _interval),
    (
        Column("other_images", "these weights, other images", signed=True, reading=_IMAGES_READING),
        _other_images,
    ),
    (Column("p", "p", digits=3), _p),
    *((Column(metric, metric), _metric) for metric in METRICS[1:6]),
    (Column("VOC07", "VOC07", reading=_VOC_READING), _metric),
    (Column("VOC12", "VOC12"), _metric),
    (Column("gap_closed", "gap closed", digits=0, unit=" %", reading=_GAP_READING), _gap_closed),
    (Column("n", "n", digits=0), _n),
    (
        Column(
            "step_x", "step x", digits=2, reading="step x: time of a training step, the student alone = 1"
        ),
        _step_x,
    ),
    (
        Column(
            "method_x",
            "method x",
            digits=2,
            reading="method x: the same, the student alone and a teacher's forward pass = 1",
        ),
        _method_x,
    ),
    (
        Column("best_AP", "best epoch", reading="best epoch: chosen on the evaluation set, enters no test"),
        _best,
    ),
    (
        Column("latency_ms", "latency", digits=2, unit=" ms", reading=_LATENCY_READING, usual=False),
        _latency,
    ),
    (Column("params_m", "params", digits=2, unit=" M", usual=False), _params),
    (Column("train_min", "trained", digits=1, unit=" min", usual=False), _minutes),
)
