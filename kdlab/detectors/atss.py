"""ATSS: one anchor a cell, positives chosen by their IoUs' statistics, centerness (Zhang, CVPR 2020)."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.outputs import Branch, Priors
from kdlab.detectors.sizing import dense, group_norm


class ATSS(DenseAdapter):
    """One anchor a cell; raw boxes are deltas to the anchor."""

    heads = ("ATSSHead",)
    provides = (*DenseAdapter.provides, "anchor_boxes", "quality_maps")
    labels_at = 1
    label_weights_at = 2
    cls_predictor = "atss_cls"
    reg_predictor = "atss_reg"

    @staticmethod
    def config(settings: dict[str, Any], num_classes: int) -> ConfigDict:
        """mmdet's ATSS with the recipe's sizes."""
        model = dense("atss/atss_r50_fpn_1x_coco.py", settings, num_classes)
        model.bbox_head.anchor_generator.strides = list(settings["strides"])
        model.bbox_head.norm_cfg = group_norm(settings["neck_channels"])
        return model

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from deltas (P, 4) to anchors (P, 4)."""
        return self.head.bbox_coder.decode(priors, raw)

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) deltas from anchors (P, 4) to boxes (P, 4)."""
        return self.head.bbox_coder.encode(priors, boxes)

    def predict(self, branch: Branch, level: int, x: Tensor) -> Tensor:
        """Logits, or deltas with the level's own scale."""
        out = super().predict(branch, level, x)
        return out if branch == "cls" else self.head.scales[level](out).float()

    def predict_quality(self, branch: Branch, x: Tensor) -> list[Tensor]:
        """Centerness logits, from the tower of boxes."""
        return [self.head.atss_centerness(x)] if branch == "reg" else []

    def targets(self, objects: InstanceData, priors: Priors, pad_shape: tuple[int, int]) -> None:
        """Have the head compute the targets of one image with these objects."""
        meta = {"img_shape": pad_shape}
        inside = self._inside(priors, pad_shape)
        self.head._get_targets_single(priors.boxes, inside, priors.per_level, objects, meta, None)


FAMILY = ATSS
