"""RetinaNet: anchors, focal loss, a tower a branch (Lin et al., ICCV 2017)."""

from __future__ import annotations

from mmengine.config import ConfigDict

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.sizing import dense
from kdlab.jobs.spec import ModelSettings


class RetinaNet(DenseAdapter):
    """Nine anchors a cell; raw boxes are deltas to the anchor."""

    heads = ("RetinaHead",)
    provides = (*DenseAdapter.provides, "anchor_boxes")
    cls_predictor = "retina_cls"
    reg_predictor = "retina_reg"

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's RetinaNet with the recipe's sizes."""
        return dense("retinanet/retinanet_r50_fpn_1x_coco.py", settings, num_classes, group_norm=False)


FAMILY = RetinaNet
