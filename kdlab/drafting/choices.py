"""Sizes and a schedule for a dataset, a machine and the time at hand, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALES = (160, 224, 320, 416, 512, 640, 800, 1024, 1333)
"""Longer sides that images are resized to fit."""
USUAL_SIDE = 320
"""Below it images are resized only where the time is short, or they are smaller themselves."""
SMALL_PX, LARGE_PX = 14.0, 380.0
"""Sides of the box that a level of stride 8 and one of stride 32 still tell well."""
SEEDS = 3
USUAL_STEPS, FEWEST_STEPS = 1500, 300
"""Steps of a training where no time is given, and below which smaller images are better."""
TEACHER_EPOCHS = 1.5
"""Epochs of the teacher for one of a student."""
BESIDES = 1.25
"""Evaluation, reading and starting, as a factor of the steps."""
ARMS = {
    "baseline": "{}",
    "rm": "{rm: {}}",
    "pfi": "{pfi: {}}",
    "rm+pfi": "{rm: {}, pfi: {}}",
}


@dataclass(frozen=True)
class Facts:
    """What the choice follows from.

    Args:
        images: (N, 2) width and height of the training images.
        boxes: (M, 2) width and height of their boxes, in the pixels of their images.
        fit: (M,) longer side of each box's image.
        slots: trainings that run at once: GPUs, or cores.
        gpu_gb: memory of a GPU; 0 without.
        minutes: for all trainings; None where it does not matter.
        init: of the backbones.
    """

    images: NDArray[np.float64]
    boxes: NDArray[np.float64]
    fit: NDArray[np.float64]
    slots: int
    gpu_gb: float
    minutes: float | None
    init: str


@dataclass(frozen=True)
class Choice:
    """A recipe's numbers, and why.

    Args:
        scale: width and height that images are resized to fit.
        strides: of the levels.
        batch: images of a step.
        epochs: of a student.
        arms: names of those of `ARMS` that are trained.
        teacher: model settings.
        student: the same.
        why: a reason by the key that it explains.
        minutes: what all trainings are expected to take; None where nothing was measured.
    """

    scale: tuple[int, int]
    strides: tuple[int, ...]
    batch: int
    epochs: int
    arms: tuple[str, ...]
    teacher: dict[str, Any]
    student: dict[str, Any]
    why: dict[str, str]
    minutes: float | None = None

    @property
    def teacher_epochs(self) -> int:
        """Its own schedule's."""
        return math.ceil(TEACHER_EPOCHS * self.epochs)


@dataclass(frozen=True)
class Cost:
    """Measured seconds of a step: a student alone, with a teacher's forward pass, the teacher's own."""

    student: float
    distilled: float
    teacher: float


def sized(facts: Facts, longest: int | None = None) -> Choice:
    """A choice whose schedule is the usual one.

    Args:
        facts: of data and machine.
        longest: no longer side above it.
    """
    side, reason = _side(facts, longest)
    median = np.median(facts.images, axis=0)
    ratio = side / max(median)
    scale = (round(median[0] * ratio), round(median[1] * ratio))
    scaled = np.sqrt(facts.boxes.prod(1)) * np.minimum(1.0, side / facts.fit)
    low, high = np.percentile(scaled, [10, 90])
    strides: tuple[int, ...] = (8, 16, 32)
    why_strides = f"one box of ten is below {low:.0f} px there, one above {high:.0f}"
    if low < SMALL_PX:
        strides = (4, 8, 16)
        why_strides = f"one box of ten is below {low:.0f} px there"
    elif high > LARGE_PX:
        strides = (8, 16, 32, 64)
    batch, why_batch = _batch(facts, side)
    steps = math.ceil(len(facts.images) / batch)
    epochs = min(100, max(8, math.ceil(USUAL_STEPS / steps)))
    teacher, student, pair = _pair(facts)
    return Choice(
        scale=scale,
        strides=strides,
        batch=batch,
        epochs=epochs,
        arms=tuple(ARMS),
        teacher=teacher,
        student=student,
        why={
            "scale": reason,
            "strides": why_strides,
            "batch_size": why_batch,
            "epochs": f"{epochs * steps:,} steps of a student",
            "pair": pair,
        },
    )


def _side(facts: Facts, longest: int | None) -> tuple[int, str]:
    """The longer side of the images, and why."""
    own = float(np.median(facts.images.max(1)))
    # at most the images' own: larger ones show no more
    most = max([side for side in SCALES if side <= own * 1.05] or [SCALES[0]])
    sides = np.sqrt(facts.boxes.prod(1)) / facts.fit
    small = max(float(np.percentile(sides, 10)), 1e-6)
    wanted = next((side for side in SCALES if small * side >= SMALL_PX), SCALES[-1])
    usual = side = min(most, max(wanted, USUAL_SIDE))
    limit = longest or (SCALES[-1] if facts.gpu_gb else 512)
    if side > limit:
        side = max((one for one in SCALES if one <= limit), default=SCALES[0])
    reason = f"small boxes are then {small * side:.0f} px; the images have {own:.0f}"
    if side < usual:
        cause = "the time is short" if longest else "there is no GPU"
        reason = f"not {usual}, for {cause}: small boxes are then {small * side:.0f} px"
    return side, reason


def _batch(facts: Facts, side: int) -> tuple[int, str]:
    if not facts.gpu_gb:
        return 4, "on a CPU more images cost as much as more steps"
    # a ResNet-50 at 1333x800 takes about 2.5 GB an image
    fits = int(facts.gpu_gb * 0.7 / (2.5 * (side / 1333) ** 2 + 0.05))
    batch = max(2, min(16, 2 ** int(math.log2(max(2, fits)))))
    return batch, f"by a guess at what {facts.gpu_gb:.0f} GB hold"


def _pair(facts: Facts) -> tuple[dict[str, Any], dict[str, Any], str]:
    if facts.gpu_gb:
        teacher = {"backbone": "resnet50", "neck_channels": 256, "head_convs": 4}
        student = {"backbone": "resnet18", "neck_channels": 256, "head_convs": 4}
        return teacher, student, "ResNet-50 to ResNet-18"
    if facts.init == "none":
        teacher = {"backbone": "resnet18", "width": 32, "neck_channels": 64, "head_convs": 2}
        student = {"backbone": "resnet18", "width": 16, "neck_channels": 32, "head_convs": 1}
        return teacher, student, "small enough for a CPU and for learning from nothing"
    teacher = {"backbone": "mobilenet_v2", "neck_channels": 64, "head_convs": 2}
    student = {"backbone": "mobilenet_v2", "neck_channels": 16, "head_convs": 1}
    return teacher, student, "small enough for a CPU; the student's neck and head are slim"


def timed(choice: Choice, facts: Facts, cost: Cost) -> Choice:
    """The choice with what it takes, and where minutes are given as many epochs and arms as they allow."""
    steps = math.ceil(len(facts.images) / choice.batch)
    if facts.minutes is None:
        return replace(choice, minutes=_minutes(choice, choice.epochs, steps, facts.slots, cost))
    for arms in (tuple(ARMS), ("baseline", "rm+pfi")):
        found = replace(choice, arms=arms)
        each = _minutes(found, 1, steps, facts.slots, cost)
        epochs = min(150, int(facts.minutes / each))
        if epochs * steps >= FEWEST_STEPS:
            break
    epochs = max(2, epochs)
    why = choice.why | {
        "epochs": f"what {facts.minutes:g} minutes allow: {epochs * steps:,} steps of a student"
    }
    if len(arms) < len(ARMS):
        why["arms"] = "these two only, for lack of time"
    return replace(found, epochs=epochs, why=why, minutes=_minutes(found, epochs, steps, facts.slots, cost))


def enough(choice: Choice, facts: Facts) -> bool:
    """Whether a student has the steps below which smaller images are better."""
    return choice.epochs * math.ceil(len(facts.images) / choice.batch) >= FEWEST_STEPS


def _minutes(choice: Choice, epochs: int, steps: int, slots: int, cost: Cost) -> float:
    """Of the teacher, which is first and alone, and of the students side by side."""
    distilled = len(choice.arms) - 1
    students = SEEDS * (cost.student + distilled * cost.distilled)
    rounds = math.ceil(SEEDS * len(choice.arms) / slots) * slots / (SEEDS * len(choice.arms))
    seconds = steps * epochs * (TEACHER_EPOCHS * cost.teacher + students * rounds / slots)
    return BESIDES * seconds / 60
