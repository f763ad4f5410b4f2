"""FCOS: points instead of anchors, with centerness (Tian et al., ICCV 2019), in mmdet's improved form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox2distance
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from kdlab.detectors.base import Recording, wrapped
from kdlab.detectors.dense import BACKGROUND, DenseAdapter
from kdlab.detectors.outputs import Priors
from kdlab.detectors.sizing import dense
from kdlab.jobs.spec import ModelSettings

BASE = "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
INF = 1e8


class FCOS(DenseAdapter):
    """One point a cell; raw boxes are distances to the four edges, in strides where `norm_on_bbox` is set."""

    heads = ("FCOSHead",)
    provides = (*DenseAdapter.provides, "quality_maps")
    positive_weight = 1.0
    cls_predictor = "conv_cls"
    reg_predictor = "conv_reg"

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's FCOS with the recipe's sizes, on a backbone in torchvision's style and normalisation."""
        model = dense(BASE, settings, num_classes)
        strides = list(settings.strides)
        bounds = [-1, *(8 * stride for stride in strides[:-1]), INF]
        model.bbox_head.update(strides=strides, regress_ranges=tuple(pairwise(bounds)))
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

    def predict(self, level: int, cls: Tensor, reg: Tensor) -> tuple[Tensor, ...]:
        """Logits, distances with the level's own scale, and centerness logits of whichever tower has them."""
        logits, boxes = super().predict(level, cls, reg)
        boxes = boxes.clamp(min=0) if self.head.norm_on_bbox else boxes.exp()
        return logits, boxes, self.head.conv_centerness(reg if self.head.centerness_on_reg else cls)

    @contextmanager
    def capturing(self, caught: Recording) -> Iterator[None]:
        """Learn which object each prior serves from the labels of the targets: this head has no assigner.

        Labels are only looked up there, by object. So an image's objects enter under numbers beyond the
        background's in place of their labels, and go on under these.
        """

        def targets(original: Any, objects: InstanceData, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            background, count = self.head.num_classes, len(objects)
            numbered = objects.clone()
            numbered.labels = torch.arange(count, device=objects.labels.device) + background + 1
            numbers, boxes = original(numbered, *args, **kwargs)
            gt_index = (numbers - background - 1).clamp(min=BACKGROUND)
            caught.assigned.append((objects, gt_index))
            # the last entry is the label of background, which index -1 finds
            return F.pad(objects.labels, (0, 1), value=background)[gt_index], boxes

        with wrapped(self.head, "_get_targets_single", targets):
            yield

    @torch.no_grad()
    def match(self, boxes: Tensor, pad_shape: tuple[int, int], priors: Priors) -> Tensor:
        """(N,) which of `boxes` (M, 4) the head gives to each prior; -1 none."""
        objects = InstanceData(bboxes=boxes, labels=boxes.new_zeros(len(boxes), dtype=torch.long))
        ranges = priors.boxes.new_tensor(self.head.regress_ranges)[priors.level]
        caught = Recording()
        with self.capturing(caught):
            self.head._get_targets_single(objects, priors.boxes, ranges, priors.per_level)
        return caught.assigned[0][1]

    def _unit(self, strides: Tensor) -> Tensor | float:
        return strides[:, None] if self.head.norm_on_bbox else 1.0


FAMILY = FCOS
