"""Methods on neck maps alone: any teacher serves them, and its head is never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdlab import catalog, detectors
from kdlab.detectors.mmdet_config import read_config
from kdlab.jobs.spec import ModelSpec
from kdlab.training.distiller import Distiller

NECK = {"feats", "assignment", "anchor_boxes"}
ON_THE_NECK = [
    key
    for key, info in catalog.methods().items()
    if set(info.needs_for({})[0]) <= NECK and not info.needs_for({})[1]
]
TEACHERS = ("mask_rcnn", "rtmdet/rtmdet_tiny_8xb32-300e_coco")


@pytest.fixture
def foreign(request: pytest.FixtureRequest, build: Callable[..., Any]) -> Any:
    """A teacher that shares nothing with a RetinaNet but levels: a family's, or one of an mmdet config."""
    if request.param == "mask_rcnn":
        return build("mask_rcnn", 7, strides=(4, 8, 16, 32), neck_channels=24)
    path = catalog.config_file(request.param)
    assert path is not None
    return detectors.build(ModelSpec(detector="rtmdet", **read_config(path, "none")), 3)


def test_some_methods_read_the_neck_alone() -> None:
    assert {"fitnet", "fgd", "mgd", "pkd", "fgfi"} <= set(ON_THE_NECK)


@pytest.mark.parametrize("foreign", TEACHERS, indirect=True)
@pytest.mark.parametrize("method", ON_THE_NECK)
def test_a_neck_method_takes_any_teacher_and_leaves_its_head_alone(
    foreign: Any, method: str, build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the teacher's head was run")

    for head in ("bbox_head", "rpn_head", "roi_head"):
        if hasattr(foreign, head):
            monkeypatch.setattr(getattr(foreign, head), "forward", refuse)
    distiller = Distiller(build("retinanet", strides=(8, 16, 32, 64)), {"it": term(method)}, foreign).train()
    assert [level for level, _ in distiller.terms["it"].levels] == [0, 1, 2]
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    sum(losses[f"loss_{name}"] for name in distiller.raw_terms).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.student.backbone.parameters())
    assert all(parameter.grad is None for parameter in foreign.parameters())
