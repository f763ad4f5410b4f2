"""ResNeXt-101 with 64 groups of 4 channels (Xie et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.backbones.base import Backbone
from kdlab.backbones.resnet import stages_of


class ResNeXt(Backbone):
    """Bottlenecks in groups, whose size follows from the width: so there is one."""

    names = ("resnext101_64x4d",)
    width = 64
    one_width = True

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """mmdet's ResNeXt; with learned weights its first stage is frozen."""
        kind = dict(type="ResNeXt", depth=101, groups=64, base_width=4)
        channels = [width * 4 * 2**stage for stage in range(stages)]
        return {**kind, **stages_of(width, stages, learned)}, channels

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """ "resnext101_64x4d"."""
        if config["type"] != "ResNeXt":
            return None
        return f"resnext{config.get('depth')}_{config.get('groups', 1)}x{config.get('base_width', 4)}d"


BACKBONE = ResNeXt
