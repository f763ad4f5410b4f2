"""RTMDet: points, shared towers with norms of their own, dynamic labels (Lyu et al., arXiv 2212.07784)."""

from __future__ import annotations

import math

import torch
from mmdet.structures.bbox import bbox2distance
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from kdlab import backbones
from kdlab.detectors.dense import BACKGROUND, DenseAdapter
from kdlab.detectors.outputs import Branch, Priors
from kdlab.detectors.sizing import CONFIGS, set_classes
from kdlab.errors import JobError
from kdlab.jobs.spec import ModelSettings

STRIDES = (8, 16, 32)
HEAD_CONVS = 2
BLOCKS = {"cspnext_m": 2, "cspnext_l": 3, "cspnext_x": 4}
"""Of each layer of the neck; 1 for smaller ones and other backbones. The larger ones predict exponents."""


class RTMDet(DenseAdapter):
    """One point a cell, its top left corner; raw boxes are distances to the four edges in pixels."""

    heads = ("RTMDetSepBNHead",)

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's RTMDet with the recipe's sizes and plain BatchNorm.

        Raises:
            JobError: there are more strides than stages of the backbone.
        """
        model: ConfigDict = Config.fromfile(CONFIGS / "rtmdet/rtmdet_l_8xb32-300e_coco.py").model
        start, name = int(math.log2(settings.strides[0])) - 2, settings.backbone
        stages = start + len(settings.strides)
        if stages > 4:
            got, fix = str(list(settings.strides)), "end at stride 32: its neck makes no levels of its own"
            raise JobError("RTMDet has a level for each stage of its backbone", got=got, fix=fix)
        backbone, channels = backbones.kind_of(name).config(
            name, settings.width, stages, settings.init != "none"
        )
        model.backbone = ConfigDict(**backbone)
        model.backbone.out_indices = model.backbone.out_indices[start:]
        plain = {"type": "BN"}
        model.neck.update(
            in_channels=channels[start:],
            out_channels=settings.neck_channels,
            num_csp_blocks=BLOCKS.get(name, 1),
            norm_cfg=plain,
        )
        model.bbox_head.update(
            in_channels=settings.neck_channels,
            feat_channels=settings.neck_channels,
            stacked_convs=settings.head_convs,
            exp_on_reg=name in BLOCKS,
            norm_cfg=plain,
        )
        model.bbox_head.anchor_generator.strides = list(settings.strides)
        model.data_preprocessor.pad_size_divisor = 32
        if not name.startswith("cspnext"):
            # other backbones know red before blue
            pixels = model.data_preprocessor
            pixels.update(mean=pixels.mean[::-1], std=pixels.std[::-1], bgr_to_rgb=True)
        set_classes(model, num_classes)
        return model

    @property
    def has_towers(self) -> bool:
        """Whether a tower's convolution is one that can be gone on from."""
        return super().has_towers and not (self.head.use_depthwise or self.head.with_objectness)

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) boxes from distances (P, 4) to points (P, 2).

        A distance below 0, which the smaller sizes can predict, counts as 0: mmdet drops a box without area,
        and its overlap with another would be nonsense.
        """
        return self.head.bbox_coder.decode(priors, raw.clamp(min=0))

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) distances from points (P, 2) to the edges of boxes (P, 4)."""
        return bbox2distance(priors, boxes)

    def predict(self, branch: Branch, level: int, x: Tensor) -> Tensor:
        """Logits, or distances in pixels."""
        if branch == "cls":
            return self.head.rtm_cls[level](x)
        out = self.head.rtm_reg[level](x)
        return (out.exp() if self.head.exp_on_reg else out) * self.facts.strides[level]

    @torch.no_grad()
    def match(self, boxes: Tensor, pad_shape: tuple[int, int], priors: Priors) -> Tensor:
        """(N,) which of `boxes` (M, 4) is given to each prior by place alone; -1 none.

        The head's own assigner weighs what is predicted against objects of a class, and boxes have none. Here
        a box gets the points inside that are nearest to its centre, in strides, as many as the assigner
        looks at; a point that several want goes to the nearest.
        """
        if not len(boxes):
            return torch.full_like(priors.level, BACKGROUND)
        points = priors.boxes[:, None]
        inside = ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all(2)
        away = (points - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=2) / priors.strides[:, None]
        away = away.masked_fill(~inside, torch.inf)
        last = away.topk(min(self.head.assigner.topk, len(away)), dim=0, largest=False).values[-1]
        nearest, index = away.masked_fill(away > last, torch.inf).min(1)
        return torch.where(nearest.isfinite(), index, BACKGROUND)

    def _convs(self, branch: Branch, level: int) -> nn.ModuleList:
        return super()._convs(branch, level)[level]


FAMILY = RTMDet
