"""YOLOX: points, objectness, towers for each level, dynamic labels (Ge et al., arXiv 2107.08430)."""

from __future__ import annotations

from dataclasses import replace

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from kdlab.detectors.dynamic import DynamicAdapter
from kdlab.detectors.outputs import Branch, DetectorOutputs, joint_logit
from kdlab.jobs.augment import GREY
from kdlab.jobs.spec import ModelSettings

STRIDES = (8, 16, 32)
HEAD_CONVS = 2
_THINNEST = 1e-3


class YOLOX(DynamicAdapter):
    """One point a cell; raw boxes are the centre's offset from it and the logarithm of the size, in strides.

    Background is told by the objectness alone: class logits are trained at positives only, and mean nothing
    elsewhere. So class maps here are logits of class and objectness together, by which the head's own
    threshold and NMS go.
    """

    heads = ("YOLOXHead",)
    base = "yolox/yolox_s_8xb8-300e_coco.py"
    own = {"cspdarknet_s": 1, "cspdarknet_m": 2, "cspdarknet_l": 3, "cspdarknet_x": 4}
    seen_at = 0.5
    one_class = True
    clips = False

    @classmethod
    def config(cls, settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's own with the recipe's sizes; pixels that are not normalised are padded in grey."""
        model = super().config(settings, num_classes)
        model.bbox_head.strides = tuple(settings.strides)
        if settings.backbone in cls.own:
            model.data_preprocessor.pad_value = GREY
        return model

    @property
    def has_towers(self) -> bool:
        """Whether a tower's convolution is one that can be gone on from."""
        return super().has_towers and not self.head.dcn_on_last_conv

    @property
    def candidates(self) -> int:
        """How many points its assigner looks at, at most, for one object."""
        return int(self.head.assigner.candidate_topk)

    def with_maps(
        self,
        outputs: DetectorOutputs,
        cls_maps: list[Tensor],
        box_maps: list[Tensor],
        quality_maps: list[Tensor] | None = None,
    ) -> DetectorOutputs:
        """The same outputs with what the head gave, class and objectness as one."""
        assert quality_maps is not None
        joint = [joint_logit(*level) for level in zip(cls_maps, quality_maps, strict=True)]
        return replace(outputs, cls_maps=joint, box_maps=box_maps)

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from offsets and sizes (P, 4) at points (P, 2)."""
        scale = strides[:, None]
        return self.head._bbox_decode(torch.cat([priors, scale, scale], 1), raw)

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) offsets and sizes that give boxes (P, 4) at points (P, 2); no side is 0."""
        scale, (low, high) = strides[:, None], (boxes[:, :2], boxes[:, 2:])
        size = ((high - low) / scale).clamp(min=_THINNEST)
        return torch.cat([((low + high) / 2 - priors) / scale, size.log()], 1)

    def predict(self, level: int, cls: Tensor, reg: Tensor) -> tuple[Tensor, ...]:
        """Class logits, offsets and sizes, and objectness logits; these from the tower of boxes."""
        head = self.head
        boxes, objectness = head.multi_level_conv_reg[level](reg), head.multi_level_conv_obj[level](reg)
        return head.multi_level_conv_cls[level](cls), boxes, objectness

    def finish(self) -> None:
        """Add the L1 loss of boxes, as its authors do once images are no longer mixed."""
        self.head.use_l1 = True

    def _convs(self, branch: Branch, level: int) -> nn.ModuleList:
        return getattr(self.head, f"multi_level_{branch}_convs")[level]


FAMILY = YOLOX
