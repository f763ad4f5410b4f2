"""Coordinates in fp32 where a model computes in 16 bits.

bfloat16 has 8 bits: at 1,000 px it tells only every fourth pixel. mmdet rounds places to the dtype of what it
looks up there, and DETR's heads add boxes up in that of their last layer, so these layers speak fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

_NARROW = (torch.float16, torch.bfloat16)
_KEPT = "kdlab_keeps_places"


def keep(model: nn.Module) -> None:
    """Give fp32 to what RoI extractors and deformable attention sample, and to a DETR's logits and boxes.

    In fp32 nothing changes, to the bit. A model that was told already is left alone.
    """
    if getattr(model, _KEPT, False):
        return
    setattr(model, _KEPT, True)
    head = getattr(model, "bbox_head", None)
    for branches in ("cls_branches", "reg_branches"):
        for branch in getattr(head, branches, ()):
            branch.register_forward_hook(_widened)
    for part in model.modules():
        if isinstance(part, MultiScaleDeformableAttention):
            part.value_proj.register_forward_hook(_widened)
        elif isinstance(part, BaseRoIExtractor):
            part.register_forward_pre_hook(_widened_maps)


def _widened(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
    return out.float() if out.dtype in _NARROW else out


def _widened_maps(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    maps, *rest = inputs
    return tuple(_widened(module, None, level) for level in maps), *rest
