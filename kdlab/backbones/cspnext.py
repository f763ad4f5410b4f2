"""CSPNeXt, the backbone of RTMDet (Lyu et al., arXiv 2212.07784)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.backbones.base import Backbone

DEPTHS = {0.167: "cspnext_tiny", 0.33: "cspnext_s", 0.67: "cspnext_m", 1: "cspnext_l", 1.33: "cspnext_x"}
"""mmdet's factor of the number of blocks, by which a size is known whatever its width."""
ARCH = (
    (64, 128, 3, True, False),
    (128, 256, 6, True, False),
    (256, 512, 6, True, False),
    (512, 1024, 3, False, True),
)
"""mmdet's P5: channels in and out, blocks, whether they add their input, whether the stage pools pyramids."""


class CSPNeXt(Backbone):
    """Large-kernel depthwise blocks in cross-stage partial layers, with channel attention.

    `init:` takes mmdet's `cspnext-*_imagenet_600e.pth`; nothing of it is frozen, as in RTMDet's own recipes.
    """

    names = ("cspnext_tiny", "cspnext_s", "cspnext_m", "cspnext_l", "cspnext_x")
    width = (48, 64, 96, 128, 160)
    width_step = 8

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """mmdet's CSPNeXt with plain BatchNorm, where mmdet's is averaged over GPUs."""
        factor = next(factor for factor, known in DEPTHS.items() if known == name)
        config: dict[str, Any] = dict(
            type="CSPNeXt",
            deepen_factor=factor,
            widen_factor=width / 128,
            out_indices=tuple(range(1, stages + 1)),
            norm_cfg=dict(type="BN"),
            act_cfg=dict(type="SiLU", inplace=True),
        )
        if stages < len(ARCH):
            # the parameter's name is mmdet's
            config["arch_ovewrite"] = [list(stage) for stage in ARCH[:stages]]
        return config, [width * 2**stage for stage in range(stages)]

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """ "cspnext_s"; one of another depth is none of these."""
        if config["type"] != "CSPNeXt":
            return None
        return DEPTHS.get(config.get("deepen_factor", 1))


BACKBONE = CSPNeXt
