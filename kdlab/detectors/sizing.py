"""mmdet's own config of a detector, made smaller or larger as a recipe says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config, ConfigDict

from kdlab import backbones
from kdlab.jobs.spec import ModelSettings

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
STAGES = 4
"""Of every backbone, the first of stride 4."""


def on_backbone(base: str, settings: ModelSettings) -> tuple[ConfigDict, list[int], int]:
    """The model part of mmdet's config `base` on a recipe's backbone.

    Returns:
        The model, the channels of the backbone's stages, and which of them the first level reads.
    """
    # mmengine's `get_config` finds the same file after reading a hundred others
    model: ConfigDict = Config.fromfile(CONFIGS / base).model
    start = int(math.log2(settings.strides[0])) - 2
    stages = min(STAGES, start + len(settings.strides))
    name, learned = settings.backbone, settings.init != "none"
    backbone, channels = backbones.kind_of(name).config(name, settings.width, stages, learned)
    model.backbone = ConfigDict(**backbone)
    return model, channels, start


def resized(base: str, settings: ModelSettings, num_classes: int) -> ConfigDict:
    """The model part of mmdet's config `base` with a recipe's backbone, neck and classes."""
    model, channels, start = on_backbone(base, settings)
    model.neck.update(
        in_channels=channels,
        out_channels=settings.neck_channels,
        start_level=start,
        num_outs=len(settings.strides),
    )
    set_classes(model, num_classes)
    return model


def dense(base: str, settings: ModelSettings, num_classes: int, group_norm: bool = True) -> ConfigDict:
    """`resized` of a one-stage detector, with a recipe's towers."""
    model = resized(base, settings, num_classes)
    head, channels = model.bbox_head, settings.neck_channels
    head.update(in_channels=channels, feat_channels=channels, stacked_convs=settings.head_convs)
    if "anchor_generator" in head:
        head.anchor_generator.strides = list(settings.strides)
    if group_norm:
        head.norm_cfg = normalised_in_groups(channels)
    return model


def normalised_in_groups(channels: int) -> dict[str, Any]:
    """GroupNorm of mmdet's 32 groups at 256 channels, of fewer for fewer; they divide evenly."""
    most = max(1, min(32, channels // 8))
    groups = next(number for number in range(most, 0, -1) if channels % number == 0)
    return {"type": "GN", "num_groups": groups, "requires_grad": True}


def set_classes(model: ConfigDict, num_classes: int) -> None:
    """Write the number of classes into every head of a model that has one; an RPN has not."""
    for holder in (model, model.get("roi_head") or {}):
        for name in ("bbox_head", "mask_head"):
            part = holder.get(name) or []
            # a cascade has a list of heads
            for head in [part] if isinstance(part, dict) else part:
                if "num_classes" in head:
                    head["num_classes"] = num_classes
