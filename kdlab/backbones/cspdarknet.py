"""CSPDarknet, the backbone of YOLOX (Ge et al., arXiv 2107.08430)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdlab.backbones.base import Backbone

DEPTHS = {0.33: "cspdarknet_s", 0.67: "cspdarknet_m", 1: "cspdarknet_l", 1.33: "cspdarknet_x"}
"""mmdet's factor of the number of blocks, by which a size is known whatever its width."""
ARCH = (
    (64, 128, 3, True, False),
    (128, 256, 9, True, False),
    (256, 512, 9, True, False),
    (512, 1024, 3, False, True),
)
"""mmdet's P5: channels in and out, blocks, whether they add their input, whether the stage pools pyramids."""


class CSPDarknet(Backbone):
    """Cross-stage partial layers of 3x3 convolutions behind a stem that folds pixels into channels.

    YOLOX-tiny is `cspdarknet_s` of width 48. `init:` takes a checkpoint of a YOLOX: no one trained it alone.
    """

    names = ("cspdarknet_s", "cspdarknet_m", "cspdarknet_l", "cspdarknet_x")
    width = (64, 96, 128, 160)
    width_step = 2

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """mmdet's CSPDarknet; nothing of it is frozen, as in YOLOX's own recipes."""
        factor = next(factor for factor, known in DEPTHS.items() if known == name)
        config: dict[str, Any] = dict(
            type="CSPDarknet",
            deepen_factor=factor,
            widen_factor=width / 128,
            out_indices=tuple(range(1, stages + 1)),
        )
        if stages < len(ARCH):
            # the parameter's name is mmdet's
            config["arch_ovewrite"] = [list(stage) for stage in ARCH[:stages]]
        return config, [width * 2**stage for stage in range(stages)]

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """ "cspdarknet_s"; one of another depth, or of depthwise layers, is none of these."""
        if config["type"] != "CSPDarknet" or config.get("use_depthwise"):
            return None
        return DEPTHS.get(config.get("deepen_factor", 1))


BACKBONE = CSPDarknet
