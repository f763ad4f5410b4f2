"""Every distillation method, over every detector and every value of its options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kdlab import catalog
from kdlab.catalog import MethodInfo
from kdlab.training.detectors import family
from kdlab.training.distiller import Distiller
from kdlab.training.methods import method_class

DETECTORS = [name for name in catalog.detectors() if not family(name).masks]
METHODS = catalog.methods()

ZERO_AT_EQUALITY = ("rm", "pfi")
UNCHANGED_BY_DOUBLING = ("rm", "pfi", "soft_label")


def variants(info: MethodInfo) -> Iterator[tuple[str, dict[str, Any]]]:
    """The defaults, then each option at each of its other values; numbers at twice their default."""
    yield info.key, {}
    for name, option in info.options.items():
        values = {"choice": option.type.choices, "bool": (False, True)}.get(option.type.kind)
        for value in values or (option.default * 2,):
            if value != option.default:
                yield f"{info.key} {name}={value}", {name: value}


CASES = {label: (key, options) for key, info in METHODS.items() for label, options in variants(info)}
every_case = pytest.mark.parametrize("case", CASES)
every_method = pytest.mark.parametrize("method", METHODS)
every_detector = pytest.mark.parametrize("detector", DETECTORS)


@pytest.fixture
def paired(detector: str, build: Callable[..., Any], term: Callable[..., Any]) -> Callable[..., Distiller]:
    """A Distiller of one method, where the plan would not refuse this detector."""

    def paired(method: str, options: dict[str, Any] | None = None, *, teacher: nn.Module | None = None,
               **student: Any) -> Distiller:  # fmt: skip
        model = build(detector, 0, **student)
        needs, _ = METHODS[method].needs_for(options or {})
        if not set(needs) <= set(family(detector)(model).facts.provides):
            pytest.skip(f"the plan refuses {method} for {detector}")
        methods = {method: term(method, **(options or {}))}
        return Distiller(model, methods, teacher or build(detector, 99))

    return paired


def losses_of(distiller: Distiller, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The losses of the methods alone, each of weight 1."""
    distiller.train()
    inputs = distiller.data_preprocessor(data, True)
    losses = distiller(**inputs, mode="loss")
    return {name: losses[f"loss_{name}"] for name in distiller.raw_terms}


def check_gradients(distiller: Distiller, losses: dict[str, torch.Tensor]) -> None:
    """Finite, in the graph, and only of what trains."""
    assert losses
    for loss in losses.values():
        assert loss.dim() == 0
        assert torch.isfinite(loss)
        assert loss.requires_grad
    sum(losses.values()).backward()
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert all(parameter.grad is None for model in distiller._teacher for parameter in model.parameters())


def reached(module: nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@every_detector
@every_case
def test_loss_is_finite_and_its_gradient_reaches_the_student_only(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], case: str
) -> None:
    distiller = paired(*CASES[case])
    losses = losses_of(distiller, raw_batch())
    check_gradients(distiller, losses)
    assert sum(losses.values()) > 0
    assert reached(distiller.student.backbone)


@every_detector
@every_method
def test_loss_is_finite_and_computed_in_fp32_under_autocast(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = paired(method, neck_channels=8)
    seen: list[torch.Tensor] = []
    distiller.terms[method].method.register_forward_pre_hook(
        lambda _, args: seen.extend([*args[1].feats, *args[1].cls_maps, *args[2].feats, *args[2].box_maps])
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(distiller, raw_batch())
    check_gradients(distiller, losses)
    assert {value.dtype for value in [*seen, *losses.values()]} == {torch.float32}


@every_detector
@every_case
def test_a_batch_without_objects_stays_finite_and_in_the_graph(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], case: str
) -> None:
    distiller = paired(*CASES[case])
    check_gradients(distiller, losses_of(distiller, raw_batch([1, 1])))


@every_detector
@every_method
def test_a_batch_of_one_image_works(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = paired(method)
    check_gradients(distiller, losses_of(distiller, raw_batch([0])))


@every_detector
@every_method
def test_a_narrower_student_trains_its_connectors(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = paired(method, neck_channels=8)
    check_gradients(distiller, losses_of(distiller, raw_batch()))
    connectors = distiller.terms[method].connectors
    assert (connectors is None) == (distiller.terms[method].method.connector is None)
    assert connectors is None or all(reached(connector) for connector in connectors)


@every_detector
@pytest.mark.parametrize("method", ZERO_AT_EQUALITY)
def test_a_student_that_equals_its_teacher_costs_nothing(
    paired: Callable[..., Any], build: Callable[..., Any], raw_batch: Callable[..., Any], detector: str,
    method: str,
) -> None:  # fmt: skip
    distiller = paired(method, teacher=build(detector, 0))
    losses = losses_of_equal_models(distiller, raw_batch())
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-9)


@every_detector
def test_soft_labels_of_an_equal_teacher_cost_its_entropy_or_nothing(
    paired: Callable[..., Any], build: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    softmax = paired("soft_label", {"form": "softmax"}, teacher=build(detector, 0))
    assert losses_of_equal_models(softmax, raw_batch())["soft_label"].item() == pytest.approx(0, abs=1e-9)
    sigmoid = paired("soft_label", teacher=build(detector, 0))
    seen: list[torch.Tensor] = []
    method = sigmoid.terms["soft_label"].method
    method.register_forward_pre_hook(lambda _, args: seen.append(entropy_at_positives(*args)))
    losses = losses_of_equal_models(sigmoid, raw_batch())
    assert losses["soft_label"].item() == pytest.approx(seen[0].item(), rel=1e-5)


def entropy_at_positives(batch: Any, student: Any, teacher: Any, assignment: Any) -> torch.Tensor:
    image, prior, _ = assignment.positives(batch)
    p = teacher.gather_logits(image, prior).double().sigmoid()
    return -(p * p.log() + (1 - p) * (1 - p).log()).sum() / len(image)


def losses_of_equal_models(distiller: Distiller, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The losses where the student's BatchNorm reads its statistics, as the teacher's does."""
    distiller.eval()
    distiller.student.bbox_head.train()
    losses = distiller(**distiller.data_preprocessor(data, True), mode="loss")
    return {name: losses[f"loss_{name}"] for name in distiller.raw_terms}


@every_detector
@pytest.mark.parametrize("method", UNCHANGED_BY_DOUBLING)
def test_the_same_images_twice_cost_the_same(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = paired(method)
    once, twice = (
        losses_of_equal_models(distiller, raw_batch(images))[method] for images in ([0, 1, 2], [0, 1, 2] * 2)
    )
    assert twice.item() == pytest.approx(once.item(), rel=1e-5)


@every_method
def test_what_catalog_reads_is_what_the_class_says(method: str) -> None:
    info, cls = METHODS[method], method_class(method)
    for name in ("default_weight", "default_weight_when", "needs", "needs_when", "requires_equal",
                 "requires_equal_when"):  # fmt: skip
        assert getattr(info, name) == getattr(cls, name)


@every_method
def test_summary_source_and_differences_are_told(method: str) -> None:
    assert METHODS[method].summary
    assert "Source:" in (method_class(method).__doc__ or "")
    assert "Differs:" in (method_class(method).__doc__ or "")
