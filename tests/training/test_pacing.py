"""Seconds of a batch before there is anything to learn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlab.jobs.spec import Schedule
from kdlab.training import pacing
from tests.stubs.jobs import SCHEDULE, method, model

STUDENT = model(strides=(8, 16, 32)).model_dump(mode="json")
TEACHER = model(strides=(8, 16, 32), width=16, init="imagenet").model_dump(mode="json")


def asking(**changes: Any) -> dict[str, Any]:
    schedule = Schedule.model_validate(SCHEDULE).model_dump(mode="json")
    request = {"student": STUDENT, "teacher": None, "methods": {}, "schedule": schedule}
    return {**request, "classes": 3, "size": [96, 64], "batch": 4, "threads": 1, **changes}


def test_a_student_alone_has_one_kind_of_step() -> None:
    told = pacing.seconds(asking())
    assert [*told] == ["student"]
    assert told["student"] > 0


def test_a_pair_has_four_and_needs_no_weights_of_a_server() -> None:
    methods = {"rm": method("rm"), "pfi": method("pfi")}
    told = pacing.seconds(asking(teacher=TEACHER, methods=methods))
    assert {*told} == {"student", "teacher", "forward", "distilled"}
    assert min(told.values()) > 0


@pytest.mark.parametrize(("step_s", "images"), [(0.01, 8), (1.0, 2)])
def test_of_a_batch_that_takes_long_its_first_images_stand_for_all(
    step_s: float, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level of one pixel with BatchNorm needs two images."""
    seen = []

    def stepping(_: Any, __: Any, data: Any, ___: int) -> dict[str, float]:
        seen.append(len(data["inputs"]))
        return {"student_step_s": seen[-1] * step_s}

    monkeypatch.setattr(pacing, "timed", lambda step: (step(), step_s)[1])
    monkeypatch.setattr(pacing, "step_times", stepping)
    told = pacing.seconds(asking(batch=8, size=[32, 32]))
    assert seen == [images]
    assert told["student"] == pytest.approx(8 * step_s)


def test_threads_are_those_of_the_job() -> None:
    before = torch.get_num_threads()
    try:
        pacing.seconds(asking(threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
