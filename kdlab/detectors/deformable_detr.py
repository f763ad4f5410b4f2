"""Deformable DETR: learned queries that attend to points of four levels (Zhu et al., ICLR 2021)."""

from __future__ import annotations

from kdlab.detectors.detr import DetrAdapter

STRIDES = (8, 16, 32, 64)
HEAD_CONVS = 0
QUERIES = 300
LAYERS = 6


class DeformableDETR(DetrAdapter):
    """mmdet's plain form; `overrides` turn on the refinement of boxes and the queries of two stages."""

    heads = ("DeformableDETRHead",)
    base = "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"


FAMILY = DeformableDETR
