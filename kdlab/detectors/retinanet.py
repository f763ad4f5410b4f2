"""RetinaNet: anchors, focal loss, a tower a branch (Lin et al., ICCV 2017)."""

from __future__ import annotations

from typing import Any

from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.outputs import Priors
from kdlab.detectors.sizing import dense


class RetinaNet(DenseAdapter):
    """Nine anchors a cell; raw boxes are deltas to the anchor."""

    heads = ("RetinaHead",)
    provides = (*DenseAdapter.provides, "anchor_boxes")
    cls_predictor = "retina_cls"
    reg_predictor = "retina_reg"

    @staticmethod
    def config(settings: dict[str, Any], num_classes: int) -> ConfigDict:
        """mmdet's RetinaNet with the recipe's sizes."""
        model = dense("retinanet/retinanet_r50_fpn_1x_coco.py", settings, num_classes)
        model.bbox_head.anchor_generator.strides = list(settings["strides"])
        return model

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from deltas (P, 4) to anchors (P, 4)."""
        return self.head.bbox_coder.decode(priors, raw)

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) deltas from anchors (P, 4) to boxes (P, 4)."""
        return self.head.bbox_coder.encode(priors, boxes)

    def targets(self, objects: InstanceData, priors: Priors, pad_shape: tuple[int, int]) -> None:
        """Have the head compute the targets of one image with these objects."""
        meta = {"img_shape": pad_shape}
        self.head._get_targets_single(priors.boxes, self._inside(priors, pad_shape), objects, meta)


FAMILY = RetinaNet
