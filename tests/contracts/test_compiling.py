"""A compiled teacher says what a plain one says, and methods that call it find it plain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kdlab import catalog
from kdlab.detectors import family
from kdlab.errors import MachineError

DETECTORS = [name for name in catalog.detectors() if not family(name).masks]
METHOD = {name: "pkd" if name == "faster_rcnn" else "rm" for name in DETECTORS}
QUICK = ("gfl", "faster_rcnn", "deformable_detr")
PAIRS = [
    pytest.param(*pair, marks=() if pair[0] in QUICK else pytest.mark.slow)
    for pair in [*METHOD.items(), ("gfl", "crosskd"), ("gfl", "bckd")]
]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def made(build: Callable[..., Any], term: Callable[..., Any]) -> Callable[..., Any]:
    """A distiller of two models of a detector."""
    from kdlab.training.distiller import Distiller

    def distiller(detector: str, compiled: bool, method: str) -> Any:
        models = build(detector, seed=0), build(detector, seed=99)
        return Distiller(models[0], {method: term(method)}, models[1], teacher_compiled=compiled).train()

    return distiller


def outputs(distiller: Any) -> list[torch.Tensor]:
    """All maps that methods see of the teacher."""
    seen = distiller.teacher_outputs(IMAGES)
    maps = [getattr(seen, name) or [] for name in ("neck_maps", "cls_maps", "box_maps", "quality_maps")]
    return [level for levels in (*maps, *seen.towers.values()) for level in levels]


def compile_by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


@pytest.mark.parametrize(("detector", "method"), PAIRS)
def test_a_compiled_teacher_shows_the_same_and_is_plain_afterwards(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, detector: str, method: str
) -> None:
    calls = []

    def traced(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        calls.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_by(monkeypatch, traced)
    distiller = made(detector, True, method)
    found, expected = outputs(distiller), outputs(made(detector, False, method))
    assert calls
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    (teacher,) = distiller._teacher
    assert all("forward" not in vars(part) for part in teacher.modules())


def test_a_teacher_that_cannot_be_compiled_is_an_error_with_a_way_out(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("No working C++ compiler found")

    torch._dynamo.reset()
    compile_by(monkeypatch, broken)
    with pytest.raises(MachineError, match="cannot be compiled here") as caught:
        outputs(made("gfl", True, "rm"))
    assert "No working C++ compiler found" in str(caught.value)
    assert "--set teacher.compile=false" in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_what_torch_makes_of_a_teacher_is_within_a_hundred_thousandth(made: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    for one, other in zip(outputs(made("gfl", True, "rm")), outputs(made("gfl", False, "rm")), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5
