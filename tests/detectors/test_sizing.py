"""Backbones of every kind under every detector: channels, strides and what starts frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.config import Config

from kdlab import catalog
from kdlab.detectors.sizing import CONFIGS, resized, set_classes

BACKBONES = {
    "resnet34": 8,
    "resnet50": 8,
    "resnet101": 8,
    "resnet152": 8,
    "resnext101_64x4d": 64,
    "mobilenet_v2": 8,
    "swin_t": 32,
    "swin_s": 32,
}
BASE = "retinanet/retinanet_r50_fpn_1x_coco.py"


@pytest.mark.parametrize(("backbone", "width"), BACKBONES.items())
def test_a_backbone_meets_its_neck_at_the_asked_strides(
    build: Callable[..., Any], backbone: str, width: int
) -> None:
    model = build("gfl", backbone=backbone, width=width, strides=(4, 8, 16, 32, 64)).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in maps] == [(16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]


@pytest.mark.parametrize("detector", catalog.detectors())
def test_every_detector_takes_a_backbone_that_is_no_resnet(build: Callable[..., Any], detector: str) -> None:
    model = build(detector, backbone="mobilenet_v2", width=8).eval()
    with torch.no_grad():
        assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 3


def settings(backbone: str, **changes: Any) -> dict[str, Any]:
    usual = {"resnet50": 64, "resnext101_64x4d": 64, "mobilenet_v2": 32, "swin_t": 96}
    return {
        "backbone": backbone,
        "width": usual[backbone],
        "neck_channels": 256,
        "strides": (8, 16, 32, 64, 128),
        "init": "none",
    } | changes


def test_mmdets_own_retinanet_comes_out_of_its_own_sizes() -> None:
    own = Config.fromfile(CONFIGS / BASE).model
    ours = resized(BASE, settings("resnet50", init="imagenet"), 80)
    assert {**ours.backbone, "init_cfg": None} == {
        **own.backbone,
        "init_cfg": None,
        # what mmdet leaves at its defaults
        "base_channels": 64,
        "strides": (1, 2, 2, 2),
        "dilations": (1, 1, 1, 1),
    }
    assert ours.neck == own.neck
    assert ours.bbox_head == own.bbox_head


@pytest.mark.parametrize("backbone", ["resnet50", "resnext101_64x4d", "mobilenet_v2"])
def test_statistics_stand_still_only_where_they_were_learned(backbone: str) -> None:
    assert resized(BASE, settings(backbone, init="imagenet"), 3).backbone.norm_eval
    assert not resized(BASE, settings(backbone), 3).backbone.norm_eval


def test_the_widths_of_swin_and_mobilenet_are_mmdets() -> None:
    assert resized(BASE, settings("swin_t"), 3).neck.in_channels == [96, 192, 384, 768]
    assert resized(BASE, settings("swin_t"), 3).backbone.num_heads == (3, 6, 12, 24)
    assert resized(BASE, settings("mobilenet_v2"), 3).neck.in_channels == [24, 32, 96, 320]


def test_classes_reach_every_head_but_the_first_stage() -> None:
    model = Config.fromfile(CONFIGS / "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py").model
    set_classes(model, 7)
    assert [head.num_classes for head in model.roi_head.bbox_head] == [7, 7, 7]
    assert model.roi_head.mask_head.num_classes == 7
    assert "num_classes" not in model.rpn_head
