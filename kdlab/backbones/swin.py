"""Swin Transformer, T and S (Liu et al., ICCV 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdlab.backbones.base import Backbone

if TYPE_CHECKING:
    from torch import Tensor

DEPTHS = {"swin_t": (2, 2, 6, 2), "swin_s": (2, 2, 18, 2)}
HEAD_CHANNELS = 32
TORCHVISION_NAMES = (
    (r"features\.0\.0\.", r"patch_embed.proj."),
    (r"features\.0\.2\.", r"patch_embed.norm."),
    *((rf"features\.{2 * stage + 1}\.(\d+)\.", rf"layers.{stage}.blocks.\1.") for stage in range(4)),
    *((rf"features\.{2 * stage + 2}\.", rf"layers.{stage}.downsample.") for stage in range(3)),
    (r"\.mlp\.0\.", r".mlp.fc1."),
    (r"\.mlp\.3\.", r".mlp.fc2."),
)
"""From torchvision's names to those of Swin's authors, which mmdet knows how to read."""
MADE_BY_MMDET = re.compile(r"norm\d\.|.*\.relative_position_index$")
"""Parts of mmdet's Swin that no classifier has: the norms of its outputs, and what it computes itself."""


class Swin(Backbone):
    """Attention in shifted windows, in heads of 32 channels."""

    names = ("swin_t", "swin_s")
    width = 96
    width_step = 32
    # torchvision's, and that of the authors
    foreign_keys = ("features.1.0.attn.qkv.weight", "layers.0.blocks.0.attn.qkv.weight")

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """mmdet's Swin Transformer; nothing of it is ever frozen."""
        config = dict(
            type="SwinTransformer",
            embed_dims=width,
            depths=DEPTHS[name][:stages],
            num_heads=tuple(width // HEAD_CHANNELS * 2**stage for stage in range(stages)),
            strides=(4, 2, 2, 2)[:stages],
            out_indices=tuple(range(stages)),
            drop_path_rate=0.2,
        )
        return config, [width * 2**stage for stage in range(stages)]

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """ "swin_t", as mmdet's own default is; "swin" for other depths."""
        if config["type"] != "SwinTransformer":
            return None
        depths = tuple(config.get("depths", DEPTHS["swin_t"]))
        return next((name for name, known in DEPTHS.items() if known == depths), "swin")

    @staticmethod
    def renamed(
        model: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """The names of torchvision or of the authors brought to mmdet's, without what no classifier has."""
        from mmdet.models.backbones.swin import swin_converter

        theirs = dict(given)
        if Swin.foreign_keys[0] in given:
            theirs = {renamed(name): value for name, value in given.items() if not name.startswith("norm.")}
        theirs = {n: v for n, v in theirs.items() if not MADE_BY_MMDET.match(n) and "attn_mask" not in n}
        wanted = {name: value for name, value in model.items() if not MADE_BY_MMDET.match(name)}
        return wanted, swin_converter(theirs)


def layers(backbone: Any) -> list[list[Any]]:
    """Modules of a backbone, an mmdet model, layer by layer; [] for one without blocks in sequence.

    First the patch embedding, then each block. What merges patches belongs to the block before it, and the
    norms of the outputs, which no classifier has, to no layer.
    """
    if not (hasattr(backbone, "patch_embed") and hasattr(backbone, "stages")):
        return []
    found = [[backbone.patch_embed]]
    for stage in backbone.stages:
        found += [[block] for block in stage.blocks]
        if stage.downsample is not None:
            found[-1].append(stage.downsample)
    return found


def renamed(name: str) -> str:
    """The authors' name of what torchvision calls `name`."""
    for pattern, replacement in TORCHVISION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


BACKBONE = Swin
