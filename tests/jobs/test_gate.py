"""A teacher is judged by its result, and only from below."""

from __future__ import annotations

from typing import Any

import pytest

from kdlab.jobs import gate
from kdlab.jobs.job import Job
from tests.stubs.jobs import make


def teacher(kind: str = "evaluate", **inputs: Any) -> Job:
    return make(f"{kind}-1", "teacher", inputs=inputs)


@pytest.mark.parametrize(("found", "misses"), [(38.9, False), (38.4, False), (38.3, True), (60.0, False)])
def test_half_a_point_below_is_tolerated_and_better_is_no_fault(found: float, misses: bool) -> None:
    assert (gate.fault(teacher(expect_ap=38.9), {"AP": found}) is not None) == misses


def test_nothing_expected_is_nothing_missed() -> None:
    assert gate.fault(teacher(), {"AP": 0.0}) is None


def test_both_numbers_and_causes_are_told() -> None:
    told = str(gate.fault(teacher(expect_ap=38.9), {"AP": 2.0}))
    assert "AP 2.0" in told
    assert "38.9" in told
    assert "preprocessing" in told
    assert "order of classes" in told


def test_a_checkpoint_accepted_in_part_is_the_first_suspect() -> None:
    told = str(gate.fault(teacher(expect_ap=38.9, partial=True), {"AP": 2.0}))
    assert "what teacher.partial left out" in told


def test_a_trained_teacher_is_judged_too() -> None:
    assert "schedule" in str(gate.fault(teacher("teacher", expect_ap=38.9), {"AP": 2.0}))
