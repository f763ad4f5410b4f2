"""What kdlab asks of every plugin, for the tests of one's own: `check_method("mine")` in a test of pytest.

Each builds tiny models with random weights and raises AssertionError, with what is wrong, where a promise of
docs/methods.md or docs/detectors.md is broken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlab import catalog, detectors
from kdlab.jobs.spec import MethodSettings, ModelSpec
from kdlab.training.distiller import Distiller
from kdlab.training.pacing import batch

CLASSES = 3
SIZE = (96, 64)
_TINY = {"backbone": "resnet18", "width": 8, "neck_channels": 16, "head_convs": 2, "strides": [8, 16, 32]}


def model(detector: str, seed: int = 0, **sizes: Any) -> nn.Module:
    """A tiny detector of a family, with random weights.

    Args:
        detector: its key.
        seed: of the weights.
        sizes: model settings of a recipe in place of the tiny ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return detectors.build(ModelSpec.model_validate({"detector": detector} | _TINY | sizes), CLASSES)


def losses(method: str, detector: str = "gfl", **options: Any) -> tuple[Distiller, dict[str, Tensor]]:
    """A distiller of a tiny pair, and the raw losses of a method in one step on images of noise.

    Args:
        method: its key.
        detector: family of both models.
        options: of the method, as a recipe has them.
    """
    info = catalog.methods()[method].serving(detector)
    values = {name: option.default for name, option in info.options.items()} | options
    settings = MethodSettings(method=method, weight=1.0, options=values)
    distiller = Distiller(model(detector, 0), {method: settings}, model(detector, 1)).train()
    data = distiller.data_preprocessor(batch(CLASSES, *SIZE, 2), True)
    found = distiller(**data, mode="loss")
    return distiller, {name: found[f"loss_{name}"] for name in distiller.raw_terms}


def check_method(method: str, detector: str = "gfl", **options: Any) -> None:
    """A method's losses are finite scalars in the graph, reach the student, and leave the teacher alone.

    Args:
        method: its key.
        detector: a family that it serves.
        options: of the method.

    Raises:
        AssertionError: a promise is broken.
    """
    distiller, found = losses(method, detector, **options)
    assert found, f"{method} gave no loss"
    for name, loss in found.items():
        assert loss.dim() == 0, f"{name} is no scalar: {tuple(loss.shape)}"
        assert torch.isfinite(loss), f"{name} is {loss.item()}"
        assert loss.requires_grad, f"{name} is not in the graph"
    torch.stack(list(found.values())).sum().backward()
    reached = [p for p in distiller.student.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert reached, f"no gradient of {method} reaches the student"
    for name, parameter in distiller.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), f"the gradient of {name}"
    for teacher in distiller._teacher:
        assert all(p.grad is None for p in teacher.parameters()), "a gradient reaches the teacher"


def check_detector(detector: str, **sizes: Any) -> None:
    """A family shows methods what its head computes, and looking on changes no loss.

    Args:
        detector: its key.
        sizes: model settings of a recipe in place of tiny ones.

    Raises:
        AssertionError: a promise is broken.
    """
    built = model(detector, **sizes).train()
    adapter = detectors.adapt(built)
    known = adapter.facts.detector
    assert known == detector, f"the head of {detector} is known as that of {known}: see `heads`"
    data = built.data_preprocessor(batch(CLASSES, *SIZE, 2), True)
    plain = built.loss(data["inputs"], data["data_samples"])
    with adapter.recording() as caught, adapter.capturing(caught):
        seen = built.loss(data["inputs"], data["data_samples"])
    outputs = adapter.outputs(caught)
    assert plain.keys() == seen.keys(), "looking on changes the losses"
    assert len(outputs.feats) == len(adapter.facts.strides), "it has not one neck map a level"
    for feat in outputs.feats:
        assert feat.shape[1] == adapter.facts.channels, f"channels of the neck: {feat.shape[1]}"
    if "assignment" in adapter.facts.provides:
        assignment = adapter.assignment(caught, outputs, data["data_samples"])
        assert assignment is not None, "it promises an assignment and gives none"
        priors = len(outputs.priors.boxes)
        assert assignment.gt_index.shape == (2, priors), f"no object or -1 for each of {priors} priors"
        assert outputs.cls_logits.shape == (2, priors, CLASSES), f"logits: {tuple(outputs.cls_logits.shape)}"
        assert outputs.boxes.shape == (2, priors, 4), f"boxes: {tuple(outputs.boxes.shape)}"
