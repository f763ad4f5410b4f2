"""FCOS: points instead of anchors, with centerness (Tian et al., ICCV 2019), in mmdet's improved form."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from mmdet.structures.bbox import bbox2distance
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.outputs import Branch, Priors
from kdlab.detectors.sizing import dense, group_norm

BASE = "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
INF = 1e8


class FCOS(DenseAdapter):
    """One point a cell; raw boxes are distances to the four edges, in strides where `norm_on_bbox` is set."""

    heads = ("FCOSHead",)
    provides = (*DenseAdapter.provides, "quality_maps")
    label_weights_at = None
    cls_predictor = "conv_cls"
    reg_predictor = "conv_reg"

    @staticmethod
    def config(settings: dict[str, Any], num_classes: int) -> ConfigDict:
        """mmdet's FCOS with the recipe's sizes, on a backbone in torchvision's style and normalisation."""
        model = dense(BASE, settings, num_classes)
        strides = list(settings["strides"])
        bounds = [-1, *(8 * stride for stride in strides[:-1]), INF]
        model.bbox_head.update(
            strides=strides,
            regress_ranges=tuple(pairwise(bounds)),
            norm_cfg=group_norm(settings["neck_channels"]),
        )
        model.data_preprocessor.update(
            mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
        )
        return model

    def as_in_training(self, box_maps: list[Tensor]) -> list[Tensor]:
        """Undo the stride by which mmdet multiplies raw boxes in eval mode only."""
        if self.head.training or not self.head.norm_on_bbox:
            return box_maps
        return [level / stride for level, stride in zip(box_maps, self.facts.strides, strict=True)]

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from distances (P, 4) to points (P, 2)."""
        return self.head.bbox_coder.decode(priors, raw * self._unit(strides))

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) distances from points (P, 2) to the edges of boxes (P, 4)."""
        return bbox2distance(priors, boxes) / self._unit(strides)

    def predict(self, branch: Branch, level: int, x: Tensor) -> Tensor:
        """Logits, or distances with the level's own scale."""
        out = super().predict(branch, level, x)
        if branch == "cls":
            return out
        out = self.head.scales[level](out).float()
        return out.clamp(min=0) if self.head.norm_on_bbox else out.exp()

    def predict_quality(self, branch: Branch, x: Tensor) -> list[Tensor]:
        """Centerness logits, from whichever tower the head takes them."""
        made_here = self.head.centerness_on_reg == (branch == "reg")
        return [self.head.conv_centerness(x)] if made_here else []

    def targets(self, objects: InstanceData, priors: Priors, pad_shape: tuple[int, int]) -> None:
        """Have the head compute the targets of one image with these objects."""
        ranges = priors.boxes.new_tensor(self.head.regress_ranges)[priors.level]
        self.head._get_targets_single(
            objects, points=priors.boxes, regress_ranges=ranges, num_points_per_lvl=priors.per_level
        )

    def _unit(self, strides: Tensor) -> Tensor | float:
        return strides[:, None] if self.head.norm_on_bbox else 1.0


FAMILY = FCOS
