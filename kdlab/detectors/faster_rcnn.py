"""Faster R-CNN: proposals first, then a class and a box for each (Ren et al., NeurIPS 2015), on an FPN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from torch import Tensor, nn

from kdlab.detectors.base import Adapter, Recording, strides_of, wrapped
from kdlab.detectors.outputs import DetectorOutputs, Facts, RoiOutputs, Rois
from kdlab.detectors.sizing import resized
from kdlab.jobs.spec import ModelSettings

STRIDES = (4, 8, 16, 32, 64)
HEAD_CONVS = 0
_DEEPEST_STRIDE = 32  # of a backbone's stage; levels beyond it are pooled, for proposals only
_CANONICAL_CELLS = 14  # mmdet: an object of 56 px on the level of stride 4


class FasterRCNN(Adapter):
    """A first stage without classes, so no class maps; methods see neck maps and the proposals' classes."""

    heads = ("StandardRoIHead",)
    provides = (*Adapter.provides, "roi_outputs")

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """One box head, mmdet's own, and masks or not."""
        ours = super().fits(model) and isinstance(model.roi_head.bbox_head, BBoxHead)
        return ours and model.roi_head.with_mask == cls.masks

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's Faster R-CNN with the recipe's sizes."""
        return two_stage("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", settings, num_classes)

    @cached_property
    def facts(self) -> Facts:
        """What the plan and the methods may know of the model."""
        name = type(self).__module__.rpartition(".")[2]
        return replace(super().facts, detector=name, softmax=True)

    def neck(self) -> tuple[tuple[int, ...], int]:
        """Strides and channels of the maps that the first stage reads; none where no neck makes them."""
        if not self.model.with_neck:
            return (), 0
        return strides_of(self.model.rpn_head.prior_generator), self.model.rpn_head.in_channels

    @contextmanager
    def capturing(self, caught: Recording) -> Iterator[None]:
        """Learn on which proposals the loss inside trains the second stage, and what that says of them."""

        def bbox_loss(original: Any, x: Any, sampling_results: list[Any]) -> dict[str, Any]:
            out: dict[str, Any] = original(x, sampling_results)
            # in mmdet's order: image by image, its positives first
            labels, objects = [], []
            for sampled in sampling_results:
                positives, negatives = sampled.pos_gt_labels, len(sampled.neg_priors)
                labels += [positives, positives.new_full((negatives,), self.num_classes)]
                objects += [sampled.pos_assigned_gt_inds, positives.new_full((negatives,), -1)]
            boxes = bbox2roi([sampled.priors for sampled in sampling_results])
            caught.rois = Rois(boxes, torch.cat(labels), torch.cat(objects))
            caught.roi_outputs = RoiOutputs(out["cls_score"].float(), out["bbox_pred"].float())
            return out

        with wrapped(self.head, "bbox_loss", bbox_loss):
            yield

    def outputs(self, caught: Recording) -> DetectorOutputs:
        """The interface over what one pass produced, in fp32."""
        return replace(super().outputs(caught), rois=caught.rois, own_roi_outputs=caught.roi_outputs)

    def roi_outputs(self, neck_maps: list[Tensor], rois: Rois) -> RoiOutputs:
        """What the second stage says of proposals on these neck maps; gradients reach the maps."""
        found = self.head._bbox_forward(neck_maps, rois.boxes)
        return RoiOutputs(found["cls_score"], found["bbox_pred"])

    def forward_all(self, inputs: Tensor) -> None:
        """Both stages, the second on as many proposals as it sees in a test."""
        self.model.rpn_head(self.model.extract_feat(inputs))
        extractor, head = self.head.bbox_roi_extractor, self.head.bbox_head
        size = extractor.roi_layers[0].output_size
        proposals = self.model.test_cfg.rpn.max_per_img
        regions = torch.empty(proposals, extractor.out_channels, *size, device=inputs.device)
        head(self.head.shared_head(regions) if self.head.with_shared_head else regions)


def two_stage(base: str, settings: ModelSettings, num_classes: int) -> ConfigDict:
    """mmdet's two-stage config `base` with the recipe's backbone, widths, strides and classes."""
    model = resized(base, settings, num_classes)
    channels, strides = settings.neck_channels, list(settings.strides)
    model.rpn_head.update(in_channels=channels, feat_channels=channels)
    model.rpn_head.anchor_generator.strides = strides
    for part in ("bbox", "mask"):
        if extractor := model.roi_head.get(f"{part}_roi_extractor"):
            pooled = [stride for stride in strides if stride <= _DEEPEST_STRIDE]
            extractor.update(
                out_channels=channels,
                featmap_strides=pooled,
                finest_scale=_CANONICAL_CELLS * strides[0],
            )
    # mmdet's 1024 at 256 channels
    model.roi_head.bbox_head.update(in_channels=channels, fc_out_channels=4 * channels)
    return model


FAMILY = FasterRCNN
