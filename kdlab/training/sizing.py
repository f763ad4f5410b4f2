"""mmdet's own config of a detector, made smaller or larger as a recipe says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config, ConfigDict

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}


def resized(base: str, settings: dict[str, Any], num_classes: int) -> ConfigDict:
    """The model part of mmdet's config `base` with a recipe's backbone, widths, strides and classes."""
    # mmengine's `get_config` finds the same file after reading a hundred others
    model: ConfigDict = Config.fromfile(CONFIGS / base).model
    start = int(math.log2(settings["strides"][0])) - 2
    stages = min(4, start + len(settings["strides"]))
    channels = _size_backbone(model.backbone, settings, stages)
    model.neck.update(
        in_channels=channels,
        out_channels=settings["neck_channels"],
        start_level=start,
        num_outs=len(settings["strides"]),
    )
    model.bbox_head.update(
        num_classes=num_classes,
        in_channels=settings["neck_channels"],
        feat_channels=settings["neck_channels"],
        stacked_convs=settings["head_convs"],
    )
    return model


def group_norm(channels: int) -> dict[str, Any]:
    """The norm of a head's towers: mmdet's 32 groups at 256 channels, fewer for fewer; they divide evenly."""
    most = max(1, min(32, channels // 8))
    groups = next(number for number in range(most, 0, -1) if channels % number == 0)
    return {"type": "GN", "num_groups": groups, "requires_grad": True}


def _size_backbone(backbone: ConfigDict, settings: dict[str, Any], stages: int) -> list[int]:
    """Set depth, width and first weights in place; returns the channels of each stage."""
    name, width = settings["backbone"], settings["width"]
    pretrained = settings["init"] != "none"
    backbone.update(
        depth=DEPTHS[name],
        base_channels=width,
        num_stages=stages,
        strides=(1, 2, 2, 2)[:stages],
        dilations=(1,) * stages,
        out_indices=tuple(range(stages)),
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
        # frozen layers and frozen statistics only make sense on weights that were learned somewhere
        frozen_stages=1 if pretrained else -1,
        norm_eval=pretrained,
        # `detectors.build` loads it: mmengine's own way says nothing of keys that are missing
        init_cfg=None,
    )
    expansion = 1 if DEPTHS[name] < 50 else 4
    return [width * expansion * 2**stage for stage in range(stages)]
