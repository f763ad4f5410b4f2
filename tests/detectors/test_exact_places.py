"""Places stay fp32 where a model computes in bf16, whose numbers have 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor

from kdlab.detectors import adapt

BF16 = torch.bfloat16


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn"])
def test_proposals_are_looked_up_where_they_are(build: Callable[..., Any], detector: str) -> None:
    model, seen = build(detector), []
    adapt(model)
    extractor = model.roi_head.bbox_roi_extractor
    for layer in extractor.roi_layers:
        layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[1]))
    rois = torch.tensor([[0, 1001.3, 703.9, 1017.6, 720.2]])
    size = 1088 // extractor.featmap_strides[0]
    maps = [torch.randn(1, extractor.out_channels, size >> level, size >> level, dtype=BF16)
            for level in range(extractor.num_inputs)]  # fmt: skip
    found = extractor(maps, rois)
    assert found.dtype == torch.float32
    assert torch.equal(torch.cat(seen), rois)


@pytest.mark.parametrize("detector", ["deformable_detr", "dino"])
def test_a_detr_has_boxes_and_samples_in_fp32(build: Callable[..., Any], detector: str) -> None:
    model = build(detector).eval()
    adapter = adapt(model)
    dtypes = set()
    for part in model.modules():
        if isinstance(part, MultiScaleDeformableAttention):
            part.value_proj.register_forward_hook(lambda _m, _i, out: dtypes.add(out.dtype))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        hidden, around = torch.randn(2, 1, 20, model.embed_dims), torch.rand(1, 20, 4)
        with torch.autocast("cpu", BF16):
            adapter.look(pixels)
            _, narrow = model.bbox_head(hidden, [around, around])
        _, wide = model.bbox_head(hidden, [around, around])
    assert dtypes == {torch.float32}
    assert narrow.dtype == torch.float32
    assert deviation(narrow, wide) < deviation(wide.to(BF16), wide) / 2


def deviation(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).abs().max())
