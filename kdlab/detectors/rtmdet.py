"""RTMDet: points, shared towers with norms of their own, dynamic labels (Lyu et al., arXiv 2212.07784)."""

from __future__ import annotations

from mmdet.structures.bbox import bbox2distance
from mmengine.config import ConfigDict
from torch import Tensor

from kdlab.detectors.dynamic import DynamicAdapter
from kdlab.jobs.spec import ModelSettings

STRIDES = (8, 16, 32)
HEAD_CONVS = 2


class RTMDet(DynamicAdapter):
    """One point a cell; raw boxes are distances to the four edges in pixels."""

    heads = ("RTMDetSepBNHead",)
    base = "rtmdet/rtmdet_l_8xb32-300e_coco.py"
    own = {"cspnext_tiny": 1, "cspnext_s": 1, "cspnext_m": 2, "cspnext_l": 3, "cspnext_x": 4}
    seen_at = 0.0

    @classmethod
    def config(cls, settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's own with the recipe's sizes and plain BatchNorm; the larger ones predict exponents."""
        model = super().config(settings, num_classes)
        for part in (model.neck, model.bbox_head):
            part.norm_cfg = {"type": "BN"}
        model.bbox_head.anchor_generator.strides = list(settings.strides)
        model.bbox_head.exp_on_reg = cls.own.get(settings.backbone, 1) > 1
        return model

    @property
    def has_towers(self) -> bool:
        """Whether a tower's convolution is one that can be gone on from."""
        return super().has_towers and not self.head.with_objectness

    @property
    def candidates(self) -> int:
        """How many points its assigner looks at, at most, for one object."""
        return int(self.head.assigner.topk)

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from distances (P, 4) to points (P, 2).

        A distance below 0, which the smaller sizes can predict, counts as 0: mmdet drops a box without area,
        and its overlap with another would be nonsense.
        """
        return self.head.bbox_coder.decode(priors, raw.clamp(min=0))

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) distances from points (P, 2) to the edges of boxes (P, 4)."""
        return bbox2distance(priors, boxes)

    def predict(self, level: int, cls: Tensor, reg: Tensor) -> tuple[Tensor, ...]:
        """Logits, and distances in pixels."""
        boxes = self.head.rtm_reg[level](reg)
        boxes = (boxes.exp() if self.head.exp_on_reg else boxes) * self.facts.strides[level]
        return self.head.rtm_cls[level](cls), boxes


FAMILY = RTMDet
