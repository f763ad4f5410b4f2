"""What distillation costs is measured with and without it, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdlab.training import bench
from kdlab.training.bench import latency_s, step_times
from kdlab.training.distiller import Distiller
from kdlab.training.loop import build_optimiser
from tests.stubs.jobs import schedule


@pytest.fixture(autouse=True)
def warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_WARMUP", 2)


SCHEDULE = schedule(optimizer="sgd", weight_decay=0.0, clip_grad=None)


def test_without_methods_there_is_only_the_students_step(
    distil: Callable[..., Distiller], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl")
    times = step_times(distiller, build_optimiser(distiller, SCHEDULE), raw_batch([0]), rounds=1)
    assert times.keys() == {"student_step_s"}
    assert times["student_step_s"] > 0


def test_with_methods_all_three_are_timed_and_only_one_distils(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"rm": term("rm")})
    calls: list[bool] = []
    distiller.terms["rm"].register_forward_hook(lambda *_: calls.append(distiller.distilling))
    times = step_times(distiller, build_optimiser(distiller, SCHEDULE), raw_batch([0]), rounds=1)
    assert times.keys() == {"student_step_s", "teacher_forward_s", "distill_step_s"}
    # once a round and twice to warm up
    assert calls == [True] * 3
    assert distiller.distilling


def test_latency_is_of_single_images_and_leaves_the_model_in_its_mode(
    distil: Callable[..., Distiller], raw_batch: Callable[..., Any], monkeypatch: Any
) -> None:
    student = distil("gfl").student.train()
    shown: list[int] = []
    predict = student.val_step
    monkeypatch.setattr(student, "val_step", lambda data: (shown.append(len(data["inputs"])), predict(data)))
    assert latency_s(student, raw_batch([0, 1]), runs=3) > 0
    assert shown == [1] * 5
    assert student.training
