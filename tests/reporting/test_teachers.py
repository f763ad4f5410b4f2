"""What a table says of its teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdlab.jobs.result import Evaluation, JobResult
from kdlab.jobs.status import JobStatus, State
from kdlab.reporting import comparison, comparison_table
from kdlab.reporting.footnotes import teacher_notes
from tests.stubs.jobs import MODEL, make, method

CHECKPOINT = {"file": "gfl_r101.pth", "sha256": "0123456789abcdef", "keys": {"whole": True}}


def record(ap: float, model: dict[str, Any] | None = None, **inputs: Any) -> JobStatus:
    job = make("evaluate-1", "teacher", inputs=inputs)
    result = JobResult(job.id, job.kind, job.arm, 0, Evaluation({"AP": ap}), model=model or {})
    return JobStatus(job, state=State.DONE, result=result)


def test_a_checkpoint_is_named_with_its_digest() -> None:
    assert list(teacher_notes(record(30.0, {"checkpoint": CHECKPOINT}))) == [
        "teacher: measured from gfl_r101.pth, sha256 01234567"
    ]


def test_a_checkpoint_loaded_in_part_is_marked() -> None:
    checkpoint = {**CHECKPOINT, "keys": {"whole": False}}
    (note,) = teacher_notes(record(30.0, {"checkpoint": checkpoint}))
    assert note.endswith("loaded in part")


@pytest.mark.parametrize(
    ("ap", "inputs", "told"),
    [
        (0.4, {}, ["warning: the teacher has AP 0.4, so there is nothing to learn from it"]),
        (1.0, {}, []),
        (0.4, {"expect_ap": 0.5}, []),
        (39.9, {"expect_ap": 38.9}, ["teacher: 1.0 AP above teacher.expect_ap 38.9"]),
        (36.9, {"expect_ap": 38.9}, ["teacher: 2.0 AP below teacher.expect_ap 38.9"]),
    ],
)
def test_worth_of_a_teacher(ap: float, inputs: dict[str, Any], told: list[str]) -> None:
    assert list(teacher_notes(record(ap, **inputs))) == told


def test_a_teacher_without_result_says_its_state() -> None:
    assert list(teacher_notes(replace(record(1.0), state="failed", result=None))) == ["teacher: failed"]


def test_a_students_row_as_teacher_has_its_ap_and_a_note_says_whose_it_is(bench: Any) -> None:
    """It was distilled with a method of its own, and shares that method's name with an arm of the plan."""
    rm = {"methods": {"rm": method("rm")}, "teacher": MODEL}
    jobs = [
        replace(bench.job("teacher"), arm="teacher of teacher"),
        bench.job("teacher", kind="student", settings=rm, parents=("teacher-teacher0",)),
        bench.job("baseline", settings={}),
        bench.job("rm", settings=rm, parents=("student-teacher0",)),
    ]
    told = {
        "name": "digits/small",
        "arms": {"baseline": {}, "rm": {"rm": {}}},
        "teacher": {"recipe": "../large.yaml", "arm": "rm", "seed": 4},
        "stage": {"name": "digits/large"},
    }
    timing = {"student_step_s": 0.2, "teacher_forward_s": 0.1, "distill_step_s": 0.4}
    for job, ap in zip(jobs, (50.0, 40.0, 20.0, 30.0), strict=True):
        bench.finish(job, ap, timing=timing)
    found = comparison.of_plan(bench.plan(jobs, recipe=told), bench.runs)
    assert found.teacher and found.teacher.over_seeds("AP") == [40.0]
    assert found.gains["rm"].gap == 20.0
    table = comparison_table.table(found)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[0] for row in rows] == ["teacher", "baseline", "rm"]
    assert "teacher: rm seed 4 of digits/large" in table.footnotes
    place = [column.key for column in table.columns].index("method_x")
    assert [rows[0][place], rows[2][place]] == ["", "1.33"]
