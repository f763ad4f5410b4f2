"""ATSS: one anchor a cell, positives chosen by their IoUs' statistics, centerness (Zhang, CVPR 2020)."""

from __future__ import annotations

from mmengine.config import ConfigDict
from torch import Tensor

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.sizing import dense
from kdlab.jobs.spec import ModelSettings


class ATSS(DenseAdapter):
    """One anchor a cell; raw boxes are deltas to the anchor."""

    heads = ("ATSSHead",)
    provides = (*DenseAdapter.provides, "anchor_boxes", "quality_maps")
    cls_predictor = "atss_cls"
    reg_predictor = "atss_reg"

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's ATSS with the recipe's sizes."""
        return dense("atss/atss_r50_fpn_1x_coco.py", settings, num_classes)

    def predict(self, level: int, cls: Tensor, reg: Tensor) -> tuple[Tensor, ...]:
        """Logits, deltas and centerness logits; these from the tower of boxes."""
        return *super().predict(level, cls, reg), self.head.atss_centerness(reg)


FAMILY = ATSS
