"""Focal and Global Distillation: imitate objects, background, attention and the relation of all cells."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._attention import channel_attention, spatial_attention
from kdlab.methods._regions import cells_around, covered, largest_of_image
from kdlab.methods.base import Connector, Method, Pair


def focal_weights(batch: Batch, stride: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much each cell counts, so that objects count alike whatever their size.

    Args:
        batch: its objects.
        stride: of the level.
        size: height and width of its map.

    Returns:
        (B, H, W) within objects, one over the cells of the smallest one that covers the cell, else 0; and
        outside, one over the cells of the image that no object covers. Cells of an object beyond the map
        count for its size.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837, and the authors' code.
    Differs: that code stretches boxes by map over image size, so in a batch of unequal images they miss
        their objects; here by the stride. An early version of it also swapped rows and columns.
    """
    ranges = cells_around(batch.gt_boxes, stride)
    cells = (ranges[:, 2:] - ranges[:, :2]).prod(1)
    foreground = largest_of_image(covered(ranges, size) / cells[:, None, None], batch)
    outside = (foreground == 0).to(foreground)
    return foreground, outside / outside.sum((1, 2), keepdim=True).clamp(min=1)


def attended_difference(feat_student: Tensor, feat_teacher: Tensor, temperature: float) -> Tensor:
    """How far the student is from the teacher, weighed by where and at which channels the teacher looks.

    Args:
        feat_student: (B, C, H, W) of one level, in the teacher's channels.
        feat_teacher: the same; no gradient flows here.
        temperature: of both attentions, which are 1 on average over places and over channels.

    Returns:
        (B, H, W) >= 0: squared differences times both attentions, summed over channels.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837, and the authors' code.  Differs: none known.
    """
    feat_teacher = feat_teacher.detach()
    channels = channel_attention(feat_teacher.abs().mean((2, 3)), temperature)
    error = (feat_student - feat_teacher).square()
    return spatial_attention(feat_teacher, temperature) * torch.einsum("bchw,bc->bhw", error, channels)


def attention_loss(feat_student: Tensor, feat_teacher: Tensor, temperature: float) -> Tensor:
    """How far the student looks elsewhere than the teacher.

    Args:
        feat_student: (B, C, H, W) of one level, in the teacher's channels.
        feat_teacher: the same; no gradient flows here.
        temperature: of both attentions.

    Returns:
        Scalar >= 0: absolute differences of both, each summed; mean over images.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837, and the authors' code.  Differs: none known.
    """
    feats = feat_student, feat_teacher.detach()
    places = [spatial_attention(feat, temperature) for feat in feats]
    channels = [channel_attention(feat.abs().mean((2, 3)), temperature) for feat in feats]
    total = (places[0] - places[1]).abs().sum() + (channels[0] - channels[1]).abs().sum()
    return total / len(feat_student)


class ContextBlock(nn.Module):
    """Adds to every cell of (B, C, H, W) what a trained attention gathers over all cells (GcBlock)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.attention = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LayerNorm((hidden, 1, 1)),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )
        nn.init.kaiming_normal_(self.attention.weight, nonlinearity="relu")
        for zero in (self.attention.bias, self.transform[-1].weight, self.transform[-1].bias):
            nn.init.zeros_(zero)

    def forward(self, feat: Tensor) -> Tensor:
        """The map with its context, in the same shape."""
        share = self.attention(feat).flatten(2).softmax(2)
        gathered = torch.einsum("bcn,bon->bc", feat.flatten(2), share)
        return feat + self.transform(gathered[..., None, None])


class FocalAndGlobalDistillation(Method):
    """FGD on neck maps. Each part is a sum over channels and cells, the mean over images, summed over levels.

    The factors are those of the authors' configs: RetinaNet and GFL (the defaults), FCOS and Faster R-CNN.
    Their paper names twice the factor of attention for RetinaNet (1e-3) and ten times that for FCOS (8e-3).
    Train with gradients clipped at 35, as they do.

    Args:
        pair: the two models; the teacher is anything with a neck.
        foreground: alpha, of features within objects.
        background: beta, of features outside.
        attention: gamma, of the attentions themselves.
        relation: lambda, of the maps with their context. Each model has a trained block of its own on every
            matched level. Gradients reach the teacher's block, never the teacher.
        temperature: T of both attentions.

    Source: Yang et al., CVPR 2022, arXiv:2111.11837, and the authors' code.
    Differs: boxes find their cells by the stride, see `focal_weights`; they tap the last convolutions of the
        FPN, which are the neck's maps unless it adds a norm or an activation.
    """

    default_weight = 1.0
    defaults_for = {
        "fcos": {
            "foreground": 1.6e-3,
            "background": 8e-4,
            "attention": 8e-4,
            "relation": 8e-6,
            "temperature": 0.8,
        },
        "faster_rcnn": {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "relation": 5e-7},
    }
    limits = {"temperature": (0.01, 100.0)}
    needs = ("feats",)
    connector = Connector(kernel=1)

    def __init__(
        self,
        pair: Pair,
        *,
        foreground: float = 1e-3,
        background: float = 5e-4,
        attention: float = 5e-4,
        relation: float = 5e-6,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(pair)
        self.temperature = temperature
        self.factors = {
            "foreground": foreground,
            "background": background,
            "attention": attention,
            "relation": relation,
        }
        self.blocks_student, self.blocks_teacher = (
            nn.ModuleList(ContextBlock(pair.teacher.channels) for _ in pair.levels) for _ in range(2)
        )

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The four parts with their factors."""
        levels = [dict(self.parts(batch, student, teacher, place)) for place in range(len(student.feats))]
        return {
            name: factor * torch.stack([level[name] for level in levels]).sum()
            for name, factor in self.factors.items()
        }

    def parts(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, place: int
    ) -> Iterator[tuple[str, Tensor]]:
        """The parts of one of the matched levels by name, without factors."""
        mine, theirs = student.feats[place], teacher.feats[place]
        images = len(mine)
        weights = focal_weights(batch, teacher.level_strides[place], theirs.shape[-2:])
        difference = attended_difference(mine, theirs, self.temperature)
        for name, weight in zip(("foreground", "background"), weights, strict=True):
            yield name, (weight * difference).sum() / images
        yield "attention", attention_loss(mine, theirs, self.temperature)
        context = self.blocks_student[place](mine) - self.blocks_teacher[place](theirs)
        yield "relation", context.square().sum() / images
