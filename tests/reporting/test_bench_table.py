from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdlab.jobs.job import Job
from kdlab.jobs.result import JobResult
from kdlab.jobs.spec import plain, read_spec
from kdlab.reporting.bench_table import cost
from kdlab.reporting.tables import Table
from tests.stubs.jobs import make


def measured(arm: str, **seconds: float) -> tuple[Job, JobResult]:
    job = make(f"student-{arm}", arm)
    told = {**plain(job.spec), "kind": "bench", "asked": "2026-12-01 10:00:00", "rounds": 20}
    job = replace(
        job, spec=read_spec(told), inputs=replace(job.inputs, flops=2 * 10**9, flops_teacher=5 * 10**9)
    )
    named = {"data_s": 0.002, "batch_image_s": 0.001, "latency_s": 0.004, **seconds}
    timing = {f"{key}{end}": value * by for key, value in named.items()
              for end, by in (("", 1.0), (".low", 0.9), (".high", 1.2))}  # fmt: skip
    made: dict[str, Any] = {"device": "cpu: EPYC", "cores": 2, "commit": "abc", "torch": "2"}
    model = {"params": 250_000}
    return job, JobResult(
        job.id, "bench", arm, 0, timing=timing, model=model, environment=made, peak_memory_gb=0.5
    )


@pytest.fixture
def table() -> Table:
    rm = measured(
        "rm", student_step_s=0.030, teacher_forward_s=0.010, distill_step_s=0.042, teacher_latency_s=0.008
    )
    return cost("digits", {"baseline": measured("baseline", student_step_s=0.030), "rm": rm})


def row(table: Table, arm: str) -> dict[str, str]:
    keys = [column.key for column in table.columns]
    cells = next(cells for cells in table.rows if cells[0].text == arm)
    return {key: cell.text for key, cell in zip(keys, cells, strict=True)}


def test_a_step_is_told_beside_what_it_cannot_do_without(table: Table) -> None:
    assert [cells[0].text for cells in table.rows] == ["teacher", "baseline", "rm"]
    assert row(table, "teacher")["step_ms"] == "10.0 [9.0, 12.0]"
    assert (row(table, "baseline")["step_x"], row(table, "baseline")["method_x"]) == ("1.00", "")
    found = row(table, "rm")
    assert (found["step_ms"], found["step_x"], found["method_x"]) == ("42.0 [37.8, 50.4]", "1.40", "1.05")


def test_size_memory_and_speed_of_an_image_are_told(table: Table) -> None:
    found = row(table, "rm")
    assert (found["gflops"], found["params_m"], found["memory_gb"]) == ("2.00", "0.25", "0.50")
    assert (found["latency_ms"], found["data_ms"]) == ("4.0 [3.6, 4.8]", "2.0 [1.8, 2.4]")
    assert found["images_s"] == "1000"
    teacher = row(table, "teacher")
    assert (teacher["gflops"], teacher["latency_ms"]) == ("5.00", "8.0 [7.2, 9.6]")


def test_footnotes_name_when_where_and_on_what(table: Table) -> None:
    notes = " | ".join(table.footnotes)
    assert "measured on 2026-12-01 10:00:00 UTC, commit abc" in notes
    assert "machine: cpu: EPYC, cores 2, precision fp32" in notes
    assert "medians of 20 that took turns on 4 images" in notes


def test_a_busy_machine_is_named() -> None:
    fast = measured(
        "pfi", student_step_s=0.030, teacher_forward_s=0.010, distill_step_s=0.035, teacher_latency_s=0.008
    )
    assert "the machine was busy with other work: pfi" in " | ".join(cost("digits", {"pfi": fast}).footnotes)
