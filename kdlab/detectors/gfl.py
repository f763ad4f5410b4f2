"""Generalized Focal Loss: joint quality scores and distributions over box edges (Li et al., NeurIPS 2020)."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from mmdet.structures.bbox import bbox2distance
from mmengine.config import ConfigDict
from torch import Tensor

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.outputs import Facts
from kdlab.detectors.sizing import dense
from kdlab.jobs.spec import ModelSettings


class GFL(DenseAdapter):
    """One anchor a cell; raw boxes are logits over R + 1 distances for each edge, in strides."""

    heads = ("GFLHead",)
    provides = (*DenseAdapter.provides, "anchor_boxes", "box_distributions")
    cls_predictor = "gfl_cls"
    reg_predictor = "gfl_reg"

    @cached_property
    def facts(self) -> Facts:
        """What the plan and the methods may know of the model."""
        return replace(super().facts, bins=self.head.reg_max + 1)

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's GFL with the recipe's sizes."""
        return dense("gfl/gfl_r50_fpn_1x_coco.py", settings, num_classes)

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from distributions (P, 4*(R+1)): an edge is at its mean distance from the centre."""
        distances = self.head.integral(raw) * strides[:, None]
        return self.head.bbox_coder.decode(self.head.anchor_center(priors), distances)

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) distances in strides from the anchor's centre to the edges, clipped to [0, R)."""
        centres = self.head.anchor_center(priors) / strides[:, None]
        return bbox2distance(centres, boxes / strides[:, None], self.head.reg_max)


FAMILY = GFL
