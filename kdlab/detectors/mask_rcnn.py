"""Mask R-CNN: Faster R-CNN with masks (He et al., ICCV 2017); a teacher only: data sets have no masks."""

from __future__ import annotations

from mmengine.config import ConfigDict

from kdlab.detectors.faster_rcnn import FasterRCNN, two_stage
from kdlab.jobs.spec import ModelSettings

STRIDES = (4, 8, 16, 32, 64)
HEAD_CONVS = 0


class MaskRCNN(FasterRCNN):
    """As Faster R-CNN to methods; its boxes alone are measured."""

    masks = True

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's Mask R-CNN with the recipe's sizes."""
        model = two_stage("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", settings, num_classes)
        channels = settings.neck_channels
        model.roi_head.mask_head.update(in_channels=channels, conv_out_channels=channels)
        return model


FAMILY = MaskRCNN
