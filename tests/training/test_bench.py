"""What distillation costs is measured with and without it, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdlab.training import bench
from kdlab.training.bench import latencies_s, step_times
from kdlab.training.distiller import Distiller
from kdlab.training.optimising import build_optimiser
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


def test_what_is_timed_is_a_usual_step_whatever_the_place_in_the_training(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"rm": term("rm", stop=0.5)})
    distiller.iteration, distiller.max_iterations = 950, 1000
    looks: list[dict[str, Any]] = []
    distiller.terms["rm"].register_forward_hook(lambda *_: looks.append(distiller.shares))
    step_times(distiller, build_optimiser(distiller, SCHEDULE), raw_batch([0]), rounds=1)
    # its method had stopped there, and its shares were looked at
    assert looks == [{}] * 3
    assert distiller.shares == {}
    assert (distiller.iteration, distiller.max_iterations) == (950, 1000)


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


def test_teacher_and_student_take_turns_at_single_images_and_keep_their_modes(
    distil: Callable[..., Distiller],
    term: Callable[..., Any],
    raw_batch: Callable[..., Any],
    monkeypatch: Any,
) -> None:
    distiller = distil("gfl", {"rm": term("rm")}).train()
    shown: list[tuple[str, int]] = []
    for name, model in distiller.models.items():

        def val_step(data: Any, name: str = name, predict: Any = model.val_step) -> Any:
            shown.append((name, len(data["inputs"])))
            return predict(data)

        monkeypatch.setattr(model, "val_step", val_step)
    found = latencies_s(distiller.models, raw_batch([0, 1, 2]), runs=3)
    # each of three images once, which does not count
    assert shown == [("latency_s", 1), ("teacher_latency_s", 1)] * 6
    assert found.keys() == {"latency_s", "teacher_latency_s"} and min(found.values()) > 0
    assert [model.training for model in distiller.models.values()] == [True, False]


def test_without_methods_the_student_alone_has_a_latency(distil: Callable[..., Distiller]) -> None:
    assert distil("gfl").models.keys() == {"latency_s"}
