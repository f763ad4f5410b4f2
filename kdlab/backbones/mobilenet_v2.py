"""MobileNetV2, its width that of the stem (Sandler et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdlab.backbones.base import Backbone
from kdlab.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = (1, 2, 4, 6)
"""The last layer of each stride in mmdet's MobileNetV2."""
CHANNELS = (24, 32, 96, 320)
"""Of these layers at the paper's width."""


class MobileNetV2(Backbone):
    """Inverted residuals; a width scales all channels, to multiples of 8."""

    names = ("mobilenet_v2",)
    width = 32
    foreign_keys = ("features.1.conv.0.0.weight",)

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """mmdet's MobileNetV2."""
        from mmdet.models.utils import make_divisible

        factor = width / MobileNetV2.width
        config = dict(type="MobileNetV2", widen_factor=factor, out_indices=LAYERS[:stages], norm_eval=learned)
        return config, [make_divisible(channels * factor, 8) for channels in CHANNELS[:stages]]

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """ "mobilenet_v2"."""
        return "mobilenet_v2" if config["type"] == "MobileNetV2" else None

    @staticmethod
    def renamed(
        model: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Torchvision's names brought to mmdet's: both list the same tensors in the same order."""
        names = [name for name in model if not name.endswith("num_batches_tracked")]
        features = {
            name: value
            for name, value in given.items()
            if name.startswith("features.") and not name.endswith("num_batches_tracked")
        }
        pairs = list(zip(names, features.values(), strict=False))
        wrong = [name for name, value in pairs if model[name].shape != value.shape]
        if wrong or len(names) != len(features):
            first = wrong[0] if wrong else "none"
            raise JobError(
                "this is torchvision's MobileNetV2, and the backbone is not, or of another width",
                where=where,
                got=f"{len(features)} tensors for {len(names)}; first of another shape: {first}",
                fix="name a file of this very backbone",
            )
        besides = {name: value for name, value in given.items() if name not in features}
        return model, {**dict(pairs), **besides}


BACKBONE = MobileNetV2
