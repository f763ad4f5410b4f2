"""Results of jobs of kind "bench" -> the table of what arms cost."""

from __future__ import annotations

from collections.abc import Mapping

from kdlab.jobs.job import Job
from kdlab.jobs.result import JobResult
from kdlab.jobs.spec import BenchSpec
from kdlab.reporting.statistics import Interval
from kdlab.reporting.tables import Cell, Column, Table

_QUARTILES = "[...]: quartiles"
_COLUMNS = (
    Column("arm", "arm", digits=None),
    Column(
        "step_ms", "step, ms", reading="step: a training step of one batch, without the wait for its data"
    ),
    Column("step_x", "step x", digits=2, reading="step x: the same, the student alone = 1"),
    Column(
        "method_x",
        "method x",
        digits=2,
        reading="method x: the same, the student alone and a teacher's forward pass = 1",
    ),
    Column("data_ms", "data, ms", reading="data: the wait for the next batch where nothing else is done"),
    Column(
        "memory_gb", "memory, GB", digits=2, reading="memory: of the process (CPU), or allocated on the GPU"
    ),
    Column("latency_ms", "latency, ms", reading="latency: one image, from pixels to boxes"),
    Column("images_s", "images/s", digits=0, reading="images/s: the same in whole batches"),
    Column("gflops", "GFLOPs", digits=2, reading="GFLOPs: of one image, 2 a multiply-add"),
    Column("params_m", "params, M", digits=2),
)


def cost(title: str, measured: Mapping[str, tuple[Job, JobResult]]) -> Table:
    """A row an arm, the teacher's first: time, memory and size.

    Args:
        title: of the recipe.
        measured: the job and its result, by arm.
    """
    rows = [_row(arm, job, result) for arm, (job, result) in measured.items()]
    _, result = next(iter(measured.values()))
    with_teacher = [pair for pair in measured.values() if "teacher_forward_s" in pair[1].timing]
    if with_teacher:
        rows.insert(0, _teacher(*with_teacher[0]))
    made = result.environment
    specs = [one.spec for one, _ in measured.values() if isinstance(one.spec, BenchSpec)]
    spec, teachers = specs[0], {str(one.teacher_precision) for one in specs if one.teacher_precision}
    teachers |= {"compiled" for one in specs if one.teacher_compiled}
    precision = ", teacher ".join([spec.schedule.precision, *sorted(teachers)])
    images = spec.images_a_forward or spec.batch_size
    notes = [
        *(column.reading for column in _COLUMNS if column.reading),
        f"medians of {spec.rounds} that took turns on {images} images; {_QUARTILES}",
        "teacher: its forward pass; weights are random, so NMS finds little to do",
        f"measured on {spec.asked} UTC, commit {made.get('commit') or 'unknown'}",
        f"machine: {made.get('device')}, cores {made.get('cores')}, precision {precision}",
        ", ".join(f"{name} {made.get(name, 'unknown')}" for name in ("kdlab", "torch", "mmdet")),
    ]
    busy = [arm for arm, (_, one) in measured.items() if _method_x(one) < 1]
    if busy:
        notes.append(f"method x below 1 cannot be; the machine was busy with other work: {', '.join(busy)}")
    return Table(f"{title}: what a step and an image cost", _COLUMNS, tuple(rows), tuple(notes))


def _row(arm: str, job: Job, result: JobResult) -> tuple[Cell, ...]:
    timing, learns = result.timing, "distill_step_s" in result.timing
    step, alone = "distill_step_s" if learns else "student_step_s", timing["student_step_s"]
    cells = {
        "arm": Cell(arm),
        "step_ms": _time("step_ms", timing, step),
        "step_x": _number("step_x", timing[step] / alone),
        "method_x": _number("method_x", _method_x(result)) if learns else Cell(),
        "data_ms": _time("data_ms", timing, "data_s"),
        "memory_gb": _number("memory_gb", result.peak_memory_gb),
        "latency_ms": _time("latency_ms", timing, "latency_s"),
        "images_s": _number("images_s", 1 / timing["batch_image_s"]),
        "gflops": _number("gflops", job.inputs.flops / 1e9),
        "params_m": _number("params_m", result.model["params"] / 1e6),
    }
    return tuple(cells[column.key] for column in _COLUMNS)


def _method_x(result: JobResult) -> float:
    """A step over the student alone and a teacher's forward pass; 1 without methods."""
    timing = result.timing
    both = timing["student_step_s"] + timing.get("teacher_forward_s", 0.0)
    return timing.get("distill_step_s", both) / both


def _teacher(job: Job, result: JobResult) -> tuple[Cell, ...]:
    cells = {
        "arm": Cell("teacher"),
        "step_ms": _time("step_ms", result.timing, "teacher_forward_s"),
        "latency_ms": _time("latency_ms", result.timing, "teacher_latency_s"),
        "gflops": _number("gflops", job.inputs.flops_teacher / 1e9),
    }
    return tuple(cells.get(column.key, Cell()) for column in _COLUMNS)


def _column(key: str) -> Column:
    return next(column for column in _COLUMNS if column.key == key)


def _number(key: str, value: float) -> Cell:
    return _column(key).cell(value)


def _time(key: str, timing: Mapping[str, float], name: str) -> Cell:
    """Milliseconds with their quartiles."""
    ends = Interval(1000 * timing[f"{name}.low"], 1000 * timing[f"{name}.high"])
    return _column(key).cell(1000 * timing[name], interval=ends)
