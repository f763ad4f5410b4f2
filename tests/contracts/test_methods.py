"""Every distillation method, over every detector and every value of its options.

What an earlier case has nearly shown, the same code on another detector, is seen with `-m slow` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from kdlab.catalog import MethodInfo
from kdlab.methods import method_class
from kdlab.training.distiller import Distiller
from tests.stubs.pairs import DETECTORS, METHODS, kinds, serves

ONE_OF_EACH_KIND = ("gfl", "fcos", "faster_rcnn")

# the tests of these methods hold what an equal teacher costs
NOT_ZERO_AT_EQUALITY = (
    "soft_label", "frs", "gid", "icd", "mgd", "fbkd", "crosskd", "ppyoloe", "detrdistill",
)  # fmt: skip
# and of these, which draw at random, why more images cost as much as few
RANDOM = ("mgd", "maskd", "dkd", "icd", "kd_detr")
# these imitate in regions that some levels of the small images lack
IN_REGIONS_ONLY = ("fgfi",)
# these exchange or compare towers or queries, which are as wide as the neck
AS_WIDE = tuple(key for key, info in METHODS.items() if {"head", "channels"} & {*info.needs_for({})[1]})


def variants(info: MethodInfo) -> Iterator[tuple[str, dict[str, Any]]]:
    """The defaults, then each option at each of its other values; numbers at half their default."""
    defaults = {name: option.default for name, option in info.options.items()}
    yield info.key, {}
    for name, option in info.options.items():
        values = {"choice": option.type.choices, "bool": (False, True)}.get(option.type.kind)
        for value in values or (type(option.default)(option.default / 2),):
            if value != option.default:
                options = enabling(info, name, defaults) | {name: value}
                yield " ".join([info.key, *(f"{key}={value}" for key, value in options.items())]), options


def enabling(info: MethodInfo, name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Values of other options under which this one has an effect."""
    found = {}
    for (option, value), names in info.unused_when.items():
        if name in names and defaults[option] == value:
            kind = info.options[option].type
            found[option] = next(v for v in kind.choices or (False, True) if v != value)
    return found


CASES = {label: (key, options) for key, info in METHODS.items() for label, options in variants(info)}


def every_case() -> pytest.MarkDecorator:
    """Methods with every detector that they serve; under other values of their options, one of each kind."""
    pairs = []
    for case, (method, options) in CASES.items():
        different = kinds(method, options)
        served = [name for name in DETECTORS if serves(method, options, name)]
        some = [name for name in ONE_OF_EACH_KIND if name in different]
        quick = some[:1] if options else different
        for name in some if options else served:
            pairs.append(pytest.param(case, name, marks=() if name in quick else pytest.mark.slow))
    return pytest.mark.parametrize(("case", "detector"), pairs)


def every_method(but: Container[str] = ()) -> pytest.MarkDecorator:
    """Methods as they are by default, with the detectors that make a difference to them."""
    pairs = [(key, name) for key in METHODS if key not in but for name in kinds(key, {})]
    return pytest.mark.parametrize(("method", "detector"), pairs)


@pytest.fixture
def paired(detector: str, build: Callable[..., Any], term: Callable[..., Any]) -> Callable[..., Distiller]:
    """A Distiller of one method."""

    def paired(method: str, options: dict[str, Any] | None = None, *, teacher: nn.Module | None = None,
               **student: Any) -> Distiller:  # fmt: skip
        model = build(detector, 0, **student)
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


@every_case()
def test_loss_is_finite_and_its_gradient_reaches_the_student_only(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], case: str
) -> None:
    distiller = paired(*CASES[case])
    losses = losses_of(distiller, raw_batch())
    check_gradients(distiller, losses)
    assert sum(losses.values()) > 0
    assert reached(distiller.student.backbone)
    # without objects; of one image
    for numbers in ([1, 1], [0]):
        distiller.zero_grad()
        check_gradients(distiller, losses_of(distiller, raw_batch(numbers)))


@every_method()
def test_loss_is_finite_and_computed_in_fp32_under_autocast(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = paired(method, **({} if method in AS_WIDE else {"neck_channels": 8}))
    seen: list[torch.Tensor] = []
    distiller.terms[method].method.register_forward_pre_hook(
        lambda _, args: seen.extend([*maps_of(args[1]), *maps_of(args[2])])
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(distiller, raw_batch())
    check_gradients(distiller, losses)
    assert {value.dtype for value in [*seen, *losses.values()]} == {torch.float32}


def maps_of(outputs: Any) -> list[torch.Tensor]:
    return [*outputs.feats, *(outputs.cls_maps or []), *(outputs.box_maps or [])]


@every_method(but=AS_WIDE)
def test_a_narrower_student_trains_its_connectors(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    distiller = paired(method, neck_channels=8)
    check_gradients(distiller, losses_of(distiller, raw_batch()))
    connectors = distiller.terms[method].connectors
    assert (connectors is None) == (distiller.terms[method].method.connector is None)
    trained = any if method in IN_REGIONS_ONLY else all
    assert connectors is None or trained(reached(connector) for connector in connectors)


@every_method()
def test_all_that_a_method_trains_belongs_to_the_levels_that_meet(
    build: Callable[..., Any],
    term: Callable[..., Any],
    raw_batch: Callable[..., Any],
    method: str,
    detector: str,
) -> None:
    levels = [8, 16] if "feats" in METHODS[method].needs_for({})[0] else None
    methods = {method: term(method, levels=levels)}
    distiller = Distiller(build(detector, 0), methods, build(detector, 99))
    sum(losses_of(distiller, raw_batch()).values()).backward()
    for name, parameter in distiller.terms.named_parameters():
        # with several GPUs one that no loss reaches would be waited for
        assert parameter.grad is not None or not parameter.requires_grad, name


BY_POSITION = [
    (method, detector)
    for method in METHODS
    for detector in kinds(method, {})
    if "feats" in METHODS[method].needs_for({})[0] and not METHODS[method].requires_equal
]


@pytest.mark.parametrize(("method", "detector"), BY_POSITION)
def test_neck_maps_of_other_sizes_meet_by_position(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], detector: str,
    method: str,
) -> None:  # fmt: skip
    teacher = build(detector, 99, strides=(16, 32, 64))
    distiller = Distiller(build(detector, 0), {method: term(method, match="index")}, teacher)
    check_gradients(distiller, losses_of(distiller, raw_batch()))


@every_method(but=NOT_ZERO_AT_EQUALITY)
def test_a_student_that_equals_its_teacher_costs_nothing(
    paired: Callable[..., Any], build: Callable[..., Any], raw_batch: Callable[..., Any], detector: str,
    method: str,
) -> None:  # fmt: skip
    distiller = paired(method, teacher=build(detector, 0))
    without_connectors(distiller)
    losses = losses_of_equal_models(distiller, raw_batch())
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-6)


def without_connectors(distiller: Distiller) -> None:
    """Let the student's maps through as they are, also where a method trains a convolution always."""
    for term in distiller.terms.values():
        if term.connectors is not None:
            term.connectors = nn.ModuleList(nn.Identity() for _ in term.connectors)


@pytest.mark.parametrize("detector", [name for name in DETECTORS if serves("soft_label", {}, name)])
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
    if hasattr(distiller.student, "bbox_head"):
        for module in distiller.student.bbox_head.train().modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
    # a DETR says what its loss needs in training alone, where its dropout stays off
    distiller.student.training = "queries" in distiller.adapter.facts.provides
    losses = distiller(**distiller.data_preprocessor(data, True), mode="loss")
    return {name: losses[f"loss_{name}"] for name in distiller.raw_terms}


@pytest.mark.parametrize("images", [[0, 1, 2], [1]], ids=["mixed", "empty"])
@every_method(but=RANDOM)
def test_the_same_images_twice_cost_the_same(
    paired: Callable[..., Any], raw_batch: Callable[..., Any], method: str, images: list[int]
) -> None:
    if method == "detrdistill" and images == [1]:
        pytest.skip("mmdet's loss of a DETR counts objects, at least one, and grows with images without any")
    distiller = paired(method)
    once, twice = (losses_of_equal_models(distiller, raw_batch(images * times)) for times in (1, 2))
    assert once
    # which regions gid looks at is a choice that the rounding of another batch size can change
    exact = 1e-2 if method == "gid" else 1e-4
    for name, loss in once.items():
        assert twice[name].item() == pytest.approx(loss.item(), rel=exact), name


@pytest.mark.parametrize("method", METHODS)
def test_what_catalog_reads_is_what_the_class_says(method: str) -> None:
    info, cls = METHODS[method], method_class(method)
    for name in ("default_weight", "default_weight_when", "needs", "needs_when", "requires_equal",
                 "requires_equal_when", "defaults_for", "measured_for", "unused_when"):  # fmt: skip
        assert getattr(info, name) == getattr(cls, name)


@pytest.mark.parametrize("method", METHODS)
def test_summary_source_and_differences_are_told(method: str) -> None:
    assert METHODS[method].summary
    assert "Source:" in (method_class(method).__doc__ or "")
    assert "Differs:" in (method_class(method).__doc__ or "")
