"""Heads on a PAFPN with one point a cell, whose assigner weighs what they predict: RTMDet and YOLOX."""

from __future__ import annotations

from typing import ClassVar

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from kdlab.detectors.dense import BACKGROUND, DenseAdapter
from kdlab.detectors.outputs import Branch, Priors
from kdlab.detectors.sizing import STAGES, on_backbone, set_classes
from kdlab.errors import JobError
from kdlab.jobs.spec import ModelSettings

RED_FIRST = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
"""Pixels as backbones know them that are not of the family's own."""


class DynamicAdapter(DenseAdapter):
    """A family whose labels follow predictions; the points are the cells' top left corners.

    `own` are the backbones that were made for it, by the layers in each block of its neck; another backbone
    has 1.
    """

    base: ClassVar[str]
    own: ClassVar[dict[str, int]]
    seen_at: ClassVar[float]
    """Where its assigner sees a point, in strides from that corner."""

    @classmethod
    def config(cls, settings: ModelSettings, num_classes: int) -> ConfigDict:
        """mmdet's own with the recipe's sizes and plain BatchNorm.

        Raises:
            JobError: there are more strides than stages of the backbone.
        """
        model, channels, start = on_backbone(cls.base, settings)
        if start + len(settings.strides) > STAGES:
            got, fix = str(list(settings.strides)), "end at stride 32: its neck makes no levels of its own"
            raise JobError(f"{cls.__name__} has a level for each stage of its backbone", got=got, fix=fix)
        model.backbone.out_indices = model.backbone.out_indices[start:]
        width, blocks = settings.neck_channels, cls.own.get(settings.backbone, 1)
        model.neck.update(in_channels=channels[start:], out_channels=width, num_csp_blocks=blocks)
        model.bbox_head.update(in_channels=width, feat_channels=width, stacked_convs=settings.head_convs)
        model.data_preprocessor.update(pad_size_divisor=32, batch_augments=None)
        if settings.backbone not in cls.own:
            model.data_preprocessor.update(RED_FIRST)
        set_classes(model, num_classes)
        return model

    @property
    def has_towers(self) -> bool:
        """Whether a tower's convolution is one that can be gone on from."""
        return super().has_towers and not self.head.use_depthwise

    @property
    def candidates(self) -> int:
        """How many points its assigner looks at, at most, for one object."""
        raise NotImplementedError

    @torch.no_grad()
    def match(self, boxes: Tensor, pad_shape: tuple[int, int], priors: Priors) -> Tensor:
        """(N,) which of `boxes` (M, 4) is given to each prior by place alone; -1 none.

        The head's own assigner weighs what is predicted against objects of a class, and boxes have none. Here
        a box gets the points inside that are nearest to its centre, in strides, as many as the assigner
        looks at; a point that several want goes to the nearest.
        """
        if not len(boxes):
            return torch.full_like(priors.level, BACKGROUND)
        strides = priors.strides[:, None]
        points = (priors.boxes + self.seen_at * strides)[:, None]
        inside = ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all(2)
        away = (points - (boxes[:, :2] + boxes[:, 2:]) / 2).norm(dim=2) / strides
        away = away.masked_fill(~inside, torch.inf)
        last = away.topk(min(self.candidates, len(away)), dim=0, largest=False).values[-1]
        nearest, index = away.masked_fill(away > last, torch.inf).min(1)
        return torch.where(nearest.isfinite(), index, BACKGROUND)

    def _convs(self, branch: Branch, level: int) -> nn.ModuleList:
        return super()._convs(branch, level)[level]
