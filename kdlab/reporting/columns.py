"""Columns of a comparison: one function each, in the order of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from kdlab.jobs.resampled import RESAMPLES
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import SIGNIFICANT, Comparison, Gain
from kdlab.reporting.tables import NONE, Cell, Column

_LEAST_P = 0.001
_STEPS = "median over seeds of medians of steps that took turns in the job, or by kdlab bench"
ALONE = ("student_step_s",)
WITH_TEACHER = ("student_step_s", "teacher_forward_s")
"""Parts of a job's timing that its training step is compared with."""
STAR = (
    f"* p Holm < {SIGNIFICANT}: p corrected over all arms of the plan, finished or not; "
    "bold: the highest AP, where its gain has a star; underlined: then the second, both of arms that lack no "
    "seed"
)

Fill = Callable[[Comparison, Arm, Column], Cell | None]
COLUMNS: list[tuple[Column, Fill]] = []
"""All columns from left to right, with what fills them; None where an arm can have no such number."""


def _fills(*columns: Column) -> Callable[[Fill], Fill]:
    """Decorator that puts columns into the table with the function that fills them."""

    def add(fill: Fill) -> Fill:
        COLUMNS.extend((column, fill) for column in columns)
        return fill

    return add


@_fills(Column("arm", "arm", digits=None))
def _name(comparison: Comparison, arm: Arm, column: Column) -> Cell:
    return Cell(arm.name)


_INHERITS = "inherits: tensors of the student's neck and head that start from the teacher's"


@_fills(Column("inherits", "inherits", digits=None, reading=_INHERITS))
def _inherits(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    """ "31 of 34" as soon as a job has counted."""
    if not arm.inherits:
        return None
    found = next((result.model.get("inherited") for result in arm.results.values()), None)
    return Cell(f"{found['tensors']} of {found['of']}" if found else "yes")


@_fills(Column("AP", "AP"))
def _ap(comparison: Comparison, arm: Arm, column: Column) -> Cell:
    values = arm.by_seed("AP")
    how = _listed(column, values).replace("mean of", "mean ± sample deviation of")
    return column.over(values.values(), how)


@_fills(Column("dAP", "dAP", signed=True))
def _gain(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    if not comparison.can_gain(arm):
        return None
    if (gain := comparison.gain(arm)) is None:
        return NONE
    differences = dict(zip(gain.seeds, gain.differences, strict=True))
    cell = column.cell(gain.mean, how=f"paired by seed; {_listed(column, differences)}")
    return replace(cell, text=f"{cell.text} *") if gain.supported else cell


_INTERVAL = "dAP 95 %: of the gain, for other seeds and other images; of each arm alone"


@_fills(Column("interval", "dAP 95 %", signed=True, reading=_INTERVAL))
def _interval(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    gain = comparison.gain(arm)
    if gain is None or gain.interval is None:
        return None
    how = f"t interval of the mean difference over {len(gain.seeds)} seeds"
    if gain.other_images:
        images = f"{RESAMPLES:,} resamples of {comparison.images:,} images"
        how += f"; squared half-widths of this and of that over {images} are added"
    return column.span(gain.interval, how)


_P = f"p: two-sided, by the same arithmetic: < {SIGNIFICANT} exactly where dAP 95 % excludes 0"


@_fills(Column("p", "p", digits=3, reading=_P))
def _p(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    gain = comparison.gain(arm)
    if gain is None or gain.p is None:
        return None
    how = f"paired t test over {len(gain.seeds)} seeds, two-sided"
    if gain.other_images:
        how = "1 minus the confidence at which dAP 95 % would just reach 0"
    return _probability(column, gain.p, how)


@_fills(Column("p_holm", "p Holm", digits=3))
def _p_holm(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    gain = comparison.gain(arm)
    if gain is None or gain.p_holm is None:
        return None
    counted = f"{comparison.tests} arm{'s' * (comparison.tests != 1)}"
    return _probability(column, gain.p_holm, f"p corrected with Holm over {counted}")


def _probability(column: Column, p: float, how: str) -> Cell:
    return Cell(f"<{_LEAST_P}" if p < _LEAST_P else column.plain(p), p, how=how)


_IMAGES = "these weights, other images: 95 % of the gain over resampled validation images; no word on seeds"


@_fills(Column("other_images", "these weights, other images", signed=True, reading=_IMAGES))
def _other_images(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    gain = comparison.gain(arm)
    if gain is None or gain.other_images is None:
        return None
    how = f"middle 95 % of the gain over {RESAMPLES:,} resamples of {comparison.images:,} images"
    return column.span(gain.other_images, how)


_VOC = "VOC07: PASCAL VOC's mAP at IoU 0.5, mean precision at 11 recalls; VOC12: area under the curve"


@_fills(
    *(Column(metric, metric) for metric in ("AP50", "AP75", "APs", "APm", "APl")),
    Column("VOC07", "VOC07", reading=_VOC),
    Column("VOC12", "VOC12"),
)
def _metric(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    values = arm.by_seed(column.key)
    return column.cell(fmean(values.values()), how=_listed(column, values)) if values else None


_GAP = (
    "gap closed: gain / (teacher - baseline); "
    '"-" where the teacher is not above the baseline, or by no more than noise'
)


def gap_left_open(gain: Gain) -> str:
    """Why no share of a gap is told; "" where one is, or where nobody knows the gap."""
    if gain.gap is None or gain.gap_closed is not None:
        return ""
    if gain.gap <= 0 or gain.gap_noise is None:
        return f"teacher - baseline is {gain.gap:+.1f}: there is no gap to close"
    ends = f"[{gain.gap_noise.low:+.1f}, {gain.gap_noise.high:+.1f}]"
    return f"teacher - baseline is {gain.gap:+.1f}, 95 % {ends}: the gap is smaller than its noise"


@_fills(Column("gap_closed", "gap closed", digits=0, unit=" %", reading=_GAP))
def _gap_closed(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    teacher = comparison.teacher
    if teacher is None or not teacher.results or not comparison.can_gain(arm):
        return None
    gain = comparison.gain(arm)
    if gain is None:
        return NONE
    if gain.gap_closed is None:
        return replace(NONE, how=gap_left_open(gain))
    how = "mean gain over (teacher - baseline) of the same seeds"
    if gain.gap_interval:
        how += "; interval by Fieller, for other seeds and images and this teacher"
    return column.cell(gain.gap_closed, interval=gain.gap_interval, how=how)


@_fills(Column("n", "n", digits=0))
def _n(comparison: Comparison, arm: Arm, column: Column) -> Cell:
    done = len(arm.results)
    return Cell(f"{done}" if arm.whole else f"{done} of {arm.planned}", done)


def step_ratios(comparison: Comparison, arm: Arm, parts: Sequence[str]) -> list[float]:
    """Time of a training step over the sum of `parts`, one a seed that took them in turns.

    What `kdlab bench` measured with nothing beside it stands for what the jobs did.
    """
    results = arm.results.values()
    benched = [comparison.benched[one.id] for one in results if one.id in comparison.benched]
    timings = [result.timing for result in benched or results]
    measured = [timing for timing in timings if "distill_step_s" in timing]
    return [timing["distill_step_s"] / sum(timing[part] for part in parts) for timing in measured]


_STEP = "step x: time of a training step, the student alone = 1"


@_fills(Column("step_x", "step x", digits=2, reading=_STEP))
def _step_x(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    if arm is comparison.teacher or not arm.results:
        return None
    return _median(column, step_ratios(comparison, arm, ALONE), _STEPS) if arm.distils else column.cell(1.0)


_METHOD = "method x: the same, the student alone and a teacher's forward pass = 1"


@_fills(Column("method_x", "method x", digits=2, reading=_METHOD))
def _method_x(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    # one that was a student itself has its own method's
    if arm is comparison.teacher:
        return None
    return _median(column, step_ratios(comparison, arm, WITH_TEACHER), _STEPS)


_BEST = "best AP: of the best epoch, which was chosen on the evaluation set; enters no test"


@_fills(Column("best_AP", "best AP", reading=_BEST))
def _best(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    evaluations = [result.best.metrics for result in arm.results.values()]
    values = [metrics["AP"] for metrics in evaluations if "AP" in metrics]
    return column.over(values) if values else None


_LATENCY = "latency: one image, from pixels to boxes, median, on the device of the jobs"


@_fills(Column("latency_ms", "latency", digits=2, unit=" ms", reading=_LATENCY))
def _latency(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    found = comparison.latency_ms(arm)
    turns = "each measured alone" if comparison.latencies_apart else "teacher and student took turns in each"
    return None if found is None else column.cell(found, how=f"median over jobs of this network; {turns}")


@_fills(Column("params_m", "params", digits=2, unit=" M"))
def _params(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    models = [result.model for result in arm.results.values()]
    return _median(column, [model["params"] / 1e6 for model in models if "params" in model])


_TAU = "tau: Kendall's tau-b of each object's priors as student and teacher score them, by kdlab diagnose"
_TOP = "top-1: share of objects of which both score the same prior highest, by kdlab diagnose"


@_fills(
    Column("tau", "tau", digits=2, reading=_TAU, usual=False),
    Column("top-1", "top-1", digits=0, unit=" %", reading=_TOP, usual=False),
)
def _ranks_as_teacher(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    """Mean over the seeds that were diagnosed, of a pair that shares its priors."""
    name, scale = {"tau": ("tau", 1), "top-1": ("top", 100)}[column.key]
    values = {}
    for seed, result in arm.results.items():
        told = comparison.diagnosed.get(result.id)
        if told and "score" in (found := told.diagnosis.get(name, {})):
            values[seed] = scale * found["score"]
    return column.over(values.values(), _listed(column, values)) if values else None


_LOST = (
    "cls to FN: points that AP50 would gain if that error alone were put right (TIDE; IoU 0.5, background "
    "up to 0.1, 100 detections an image): wrong class, wrong place, both, an object's second detection, on "
    "nothing, object missed; FP, FN: all false detections, all objects not found. They do not add up"
)
ERRORS = ("cls", "loc", "both", "dup", "bkg", "miss", "fp", "fn")
"""Keys of `tide.KINDS`, which is not imported here, for numpy takes a while."""
AGREEMENT = ("both_find", "box_iou", "score_gap", "score_r")


@_fills(
    *(
        Column(key, key.upper() if len(key) == 2 else key, digits=1, reading=_LOST, usual=False)
        for key in ERRORS
    )
)
def _lost(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    values = {seed: one.gains[column.key] for seed, one in comparison.lost_of(arm).items()}
    return _mean_of(column, values) if values else _not_detected(comparison, arm)


_BOTH_FIND = (
    "both find: share of all objects that student and teacher both find (IoU 0.5, right class); of these: "
    "box IoU, mean of their two boxes; score gap, the student's score minus the teacher's, mean; score r, "
    "correlation of the two scores"
)


@_fills(
    Column("both_find", "both find", digits=0, unit=" %", reading=_BOTH_FIND, usual=False),
    Column("box_iou", "box IoU", digits=2, reading=_BOTH_FIND, usual=False),
    Column("score_gap", "score gap", digits=2, signed=True, reading=_BOTH_FIND, usual=False),
    Column("score_r", "score r", digits=2, reading=_BOTH_FIND, usual=False),
)
def _agrees(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    """Mean over the seeds that were measured on the teacher's objects."""
    if comparison.teacher is None or arm is comparison.teacher:
        return None
    name, scale = {
        "both_find": ("both", 100),
        "box_iou": ("iou", 1),
        "score_gap": ("score", 1),
        "score_r": ("correlation", 1),
    }[column.key]
    values = {seed: scale * getattr(one, name) for seed, one in comparison.agreements(arm).items()}
    values = {seed: value for seed, value in values.items() if not math.isnan(value)}
    return _mean_of(column, values) if values else _not_detected(comparison, arm)


def _not_detected(comparison: Comparison, arm: Arm) -> Cell | None:
    """ "-" of an arm whose errors were asked for and cannot be told."""
    return NONE if comparison.lost and arm.results else None


def _mean_of(column: Column, values: Mapping[int, float]) -> Cell:
    return column.cell(fmean(values.values()), how=_listed(column, values))


@_fills(Column("train_min", "wall time", digits=1, unit=" min", usual=False))
def _minutes(comparison: Comparison, arm: Arm, column: Column) -> Cell | None:
    minutes = [result.wall_s / 60 for result in arm.results.values()]
    return _median(column, minutes, "median over seeds of training and evaluation")


def _median(column: Column, values: Sequence[float], how: str = "") -> Cell | None:
    return column.cell(median(values), how=how) if values else None


def _listed(column: Column, values: Mapping[int, float]) -> str:
    """ "mean of seed 0: 31.9, seed 1: 32.7"."""
    listed = ", ".join(f"seed {seed}: {column.shown(value)}" for seed, value in sorted(values.items()))
    return f"mean of {listed}" if len(values) > 1 else listed
