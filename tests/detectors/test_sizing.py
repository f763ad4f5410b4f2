"""Configs of detectors in a recipe's sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.config import Config

from kdlab import catalog
from kdlab.detectors.sizing import CONFIGS, resized, set_classes

BASE = "retinanet/retinanet_r50_fpn_1x_coco.py"


@pytest.mark.parametrize("detector", catalog.detectors())
def test_every_detector_takes_a_backbone_that_is_no_resnet(build: Callable[..., Any], detector: str) -> None:
    model = build(detector, backbone="mobilenet_v2", width=8).eval()
    with torch.no_grad():
        assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 3


def test_mmdets_own_retinanet_comes_out_of_its_own_sizes(model_settings: Callable[..., Any]) -> None:
    sizes = model_settings(
        "retinanet", backbone="resnet50", width=64, neck_channels=256, strides=(8, 16, 32, 64, 128)
    )
    own = Config.fromfile(CONFIGS / BASE).model
    ours = resized(BASE, sizes.model_copy(update={"init": "imagenet"}), 80)
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


def test_classes_reach_every_head_but_the_first_stage() -> None:
    model = Config.fromfile(CONFIGS / "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py").model
    set_classes(model, 7)
    assert [head.num_classes for head in model.roi_head.bbox_head] == [7, 7, 7]
    assert model.roi_head.mask_head.num_classes == 7
    assert "num_classes" not in model.rpn_head
