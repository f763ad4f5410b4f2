"""What follows from boxes, machine and time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdlab.drafting.choices import Cost, Facts, enough, sized, timed

COST = Cost(student=0.2, distilled=0.4, teacher=0.5)


def facts(side: float = 60, image: tuple[int, int] = (640, 480), count: int = 200, **changes: Any) -> Facts:
    """As many images of one size, each with ten boxes of one side."""
    boxes = np.full((10 * count, 2), side)
    given: dict[str, Any] = {"slots": 2, "gpu_gb": 0.0, "minutes": None, "init": "imagenet"} | changes
    return Facts(np.array([image] * count, float), boxes, np.full(10 * count, float(max(image))), **given)


def test_images_are_as_large_as_small_boxes_want_and_no_larger_than_they_are() -> None:
    # 60 of 640 px are 14 at 160: the smallest that is taken is 320
    assert sized(facts(60)).scale == (320, 240)
    assert sized(facts(20)).scale == (512, 384)
    # 10 px want 1024, but the images have 640
    assert sized(facts(10, gpu_gb=24.0)).scale == (640, 480)
    assert sized(facts(10)).scale == (512, 384)


def test_upright_images_stay_upright() -> None:
    assert sized(facts(60, (480, 640))).scale == (240, 320)


@pytest.mark.parametrize(
    ("side", "image", "strides"),
    [(10, (640, 480), (4, 8, 16)), (60, (640, 480), (8, 16, 32)), (600, (800, 800), (8, 16, 32))],
)
def test_levels_follow_the_boxes(side: float, image: tuple[int, int], strides: tuple[int, ...]) -> None:
    assert sized(facts(side, image)).strides == strides


def test_a_gpu_has_larger_models_and_batches() -> None:
    cpu, gpu = sized(facts()), sized(facts(gpu_gb=24.0, slots=1))
    assert (cpu.batch, cpu.student["backbone"]) == (4, "mobilenet_v2")
    assert (gpu.batch, gpu.student["backbone"]) == (16, "resnet18")
    assert sized(facts(init="none")).student["backbone"] == "resnet18"


def test_without_minutes_a_student_takes_the_usual_steps() -> None:
    choice = sized(facts(count=200))
    assert choice.epochs * 50 == 1500
    told = timed(choice, facts(count=200), COST)
    assert told.epochs == choice.epochs
    # 1.5 teachers of half a second, then three seeds of four arms, two at once
    seconds = 1500 * (1.5 * 0.5 + 3 * (0.2 + 3 * 0.4) / 2)
    assert told.minutes == pytest.approx(1.25 * seconds / 60)


def test_minutes_decide_the_epochs_and_then_the_arms() -> None:
    given = facts(minutes=60.0)
    choice = timed(sized(given), given, COST)
    assert choice.minutes is not None
    assert 50 < choice.minutes <= 60
    assert choice.arms == ("baseline", "rm", "pfi", "rm+pfi")
    short = facts(minutes=12.0)
    choice = timed(sized(short), short, COST)
    assert choice.arms == ("baseline", "rm+pfi")
    assert "time" in choice.why["arms"]
    assert choice.minutes is not None
    assert choice.minutes <= 12


def test_too_little_time_is_told_by_the_steps() -> None:
    hurried = facts(minutes=3.0)
    assert not enough(timed(sized(hurried), hurried, COST), hurried)
    assert enough(timed(sized(facts(minutes=60.0)), facts(minutes=60.0), COST), facts())
    assert max(sized(facts(20), longest=511).scale) == 416
    # boxes that would be large enough at less than the usual side
    small = sized(facts(200), longest=319)
    assert max(small.scale) == 224
    assert small.why["scale"].startswith("not 320, for the time is short: small boxes are then ")


def test_a_teacher_trains_half_as_long_again() -> None:
    choice = sized(facts())
    assert choice.teacher_epochs == 45
