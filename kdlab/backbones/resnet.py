"""ResNet in torchvision's form (He et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.backbones.base import Backbone


class ResNet(Backbone):
    """Basic blocks up to 34 layers, bottlenecks with four times the channels from 50 on."""

    names = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    width = 64

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """mmdet's ResNet; with learned weights its first stage is frozen."""
        depth = int(name.removeprefix("resnet"))
        expansion = 1 if depth < 50 else 4
        channels = [width * expansion * 2**stage for stage in range(stages)]
        return dict(type="ResNet", depth=depth, **stages_of(width, stages, learned)), channels

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """ "resnet50"."""
        return f"resnet{config.get('depth')}" if config["type"] == "ResNet" else None


def stages_of(width: int, stages: int, learned: bool) -> dict[str, Any]:
    """The keys that mmdet's ResNet and ResNeXt share."""
    return dict(
        base_channels=width,
        num_stages=stages,
        strides=(1, 2, 2, 2)[:stages],
        dilations=(1,) * stages,
        out_indices=tuple(range(stages)),
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
        frozen_stages=1 if learned else -1,
        norm_eval=learned,
    )


BACKBONE = ResNet
