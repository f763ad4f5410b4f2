"""mmdet's own config of a detector, made smaller or larger as a recipe says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
from mmdet.models.utils import make_divisible
from mmengine.config import Config, ConfigDict

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
SWIN_DEPTHS = {"swin_t": (2, 2, 6, 2), "swin_s": (2, 2, 18, 2)}
_SWIN_HEAD_CHANNELS = 32
_MOBILENET_WIDTH = 32
_MOBILENET_LAYERS = (1, 2, 4, 6)
_MOBILENET_CHANNELS = (24, 32, 96, 320)


def resized(base: str, settings: dict[str, Any], num_classes: int) -> ConfigDict:
    """The model part of mmdet's config `base` with a recipe's backbone, neck and classes."""
    # mmengine's `get_config` finds the same file after reading a hundred others
    model: ConfigDict = Config.fromfile(CONFIGS / base).model
    start = int(math.log2(settings["strides"][0])) - 2
    stages = min(4, start + len(settings["strides"]))
    model.backbone, channels = _backbone(settings, stages)
    model.neck.update(
        in_channels=channels,
        out_channels=settings["neck_channels"],
        start_level=start,
        num_outs=len(settings["strides"]),
    )
    set_classes(model, num_classes)
    return model


def dense(base: str, settings: dict[str, Any], num_classes: int) -> ConfigDict:
    """`resized` of a one-stage detector, with a recipe's towers."""
    model = resized(base, settings, num_classes)
    model.bbox_head.update(
        in_channels=settings["neck_channels"],
        feat_channels=settings["neck_channels"],
        stacked_convs=settings["head_convs"],
    )
    return model


def set_classes(model: ConfigDict, num_classes: int) -> None:
    """Write the number of classes into every head of a model that has one; an RPN has not."""
    for holder in (model, model.get("roi_head") or {}):
        for name in ("bbox_head", "mask_head"):
            for head in _several(holder.get(name)):
                if "num_classes" in head:
                    head["num_classes"] = num_classes


def _several(part: Any) -> Iterator[dict[str, Any]]:
    """A head, the heads of a cascade, or none."""
    if isinstance(part, dict):
        yield part
    elif part:
        yield from part


def group_norm(channels: int) -> dict[str, Any]:
    """The norm of a head's towers: mmdet's 32 groups at 256 channels, fewer for fewer; they divide evenly."""
    most = max(1, min(32, channels // 8))
    groups = next(number for number in range(most, 0, -1) if channels % number == 0)
    return {"type": "GN", "num_groups": groups, "requires_grad": True}


def _backbone(settings: dict[str, Any], stages: int) -> tuple[ConfigDict, list[int]]:
    """mmdet's config of a backbone of so many stages, from stride 4 on, and the channels of each."""
    name, width = settings["backbone"], settings["width"]
    pretrained = settings["init"] != "none"
    make = _mobilenet if name == "mobilenet_v2" else _swin if name in SWIN_DEPTHS else _resnet
    config, channels = make(name, width, stages, pretrained)
    return ConfigDict(**config), channels


def _resnet(name: str, width: int, stages: int, pretrained: bool) -> tuple[dict[str, Any], list[int]]:
    if name == "resnext101_64x4d":
        kind: dict[str, Any] = dict(type="ResNeXt", depth=101, groups=64, base_width=4)
    else:
        kind = dict(type="ResNet", depth=int(name.removeprefix("resnet")))
    config = dict(
        **kind,
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
    )
    expansion = 1 if kind["depth"] < 50 else 4
    return config, [width * expansion * 2**stage for stage in range(stages)]


def _mobilenet(name: str, width: int, stages: int, pretrained: bool) -> tuple[dict[str, Any], list[int]]:
    factor = width / _MOBILENET_WIDTH
    config = dict(
        type="MobileNetV2",
        widen_factor=factor,
        out_indices=_MOBILENET_LAYERS[:stages],
        norm_eval=pretrained,
    )
    return config, [make_divisible(channels * factor, 8) for channels in _MOBILENET_CHANNELS[:stages]]


def _swin(name: str, width: int, stages: int, pretrained: bool) -> tuple[dict[str, Any], list[int]]:
    config = dict(
        type="SwinTransformer",
        embed_dims=width,
        depths=SWIN_DEPTHS[name][:stages],
        num_heads=tuple(width // _SWIN_HEAD_CHANNELS * 2**stage for stage in range(stages)),
        strides=(4, 2, 2, 2)[:stages],
        out_indices=tuple(range(stages)),
        drop_path_rate=0.2,
    )
    return config, [width * 2**stage for stage in range(stages)]
