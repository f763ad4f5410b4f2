"""Feature-based Knowledge Distillation: imitate attended features, their means and the relations of cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Method, Pair

# of the non-local blocks, finest level first; further levels as the last
REDUCTIONS = (4, 4, 2)
POOLS = (8, 4, 2)


def attention(feat_student: Tensor, feat_teacher: Tensor, temperature: float) -> Tensor:
    """Where the two models' features are strong.

    Args:
        feat_student: (B, C_S, H, W) of one level, as its neck made them; no gradient flows here.
        feat_teacher: (B, C_T, H, W) of the same level; no gradient flows here.
        temperature: divides each cell's mean magnitude; the paper's T.

    Returns:
        (B, 1, H, W) > 0, of mean 1 over each image's cells: the mean of the two softmaxes, times H W.

    Source: Zhang and Ma, ICLR 2021, section "Attention-guided Distillation".  Differs: none known.
    """
    strengths = [feat.detach().abs().mean(1).flatten(1) for feat in (feat_student, feat_teacher)]
    shares = [(strength / temperature).softmax(1) for strength in strengths]
    cells = feat_teacher.shape[-2:].numel()
    return (torch.stack(shares).mean(0) * cells).unflatten(1, feat_teacher.shape[-2:]).unsqueeze(1)


def norm_loss(difference: Tensor, whole_batch: bool) -> Tensor:
    """Euclidean norm of a difference.

    Args:
        difference: (B, ...).
        whole_batch: one norm over all images, which grows with the square root of their number; else the
            mean of each image's norm. Equal for one image.

    Returns:
        Scalar >= 0; at a difference of 0 it is 0, with a gradient of 0.

    Source: Zhang and Ma, ICLR 2021, the authors' code, where the norm is over the batch.
    Differs: the mean over images unless `whole_batch`.
    """
    rows = difference.flatten()[None] if whole_batch else difference.flatten(1)
    return torch.linalg.vector_norm(rows, dim=1).mean()


class NonLocal(nn.Module):
    """Every cell as a sum over all cells, weighted by dot products, added to itself.

    (B, C, H, W) to the same shape. The sum starts at 0, so that the block starts as the identity. Maps
    smaller than the pooling are pooled as a whole.
    """

    def __init__(self, channels: int, reduction: int, pool: int) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.pool = pool
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, feat: Tensor) -> Tensor:
        """The map, each cell with its related ones added."""
        size = [min(self.pool, side) for side in feat.shape[-2:]]
        keys, values = (F.max_pool2d(conv(feat), size).flatten(2) for conv in (self.key, self.value))
        # no softmax stands between the products, so the one of all cells by all cells is never made
        mixing = values @ keys.transpose(1, 2) / keys.shape[-1]
        related = mixing @ self.query(feat).flatten(2)
        return feat + self.out(related.unflatten(2, feat.shape[-2:]))


class LevelBlocks(nn.Module):
    """What is trained for one level: adaptations of the student, and a non-local block of each model."""

    def __init__(self, channels_student: int, channels_teacher: int, level: int) -> None:
        super().__init__()
        reduction, pool = (values[min(level, len(values) - 1)] for values in (REDUCTIONS, POOLS))
        self.feature = nn.Conv2d(channels_student, channels_teacher, 1)
        self.channel = nn.Linear(channels_student, channels_teacher)
        self.spatial = nn.Conv2d(1, 1, 3, padding=1)
        self.relation = nn.Conv2d(channels_student, channels_teacher, 1)
        self.relation_student = NonLocal(channels_student, reduction, pool)
        self.relation_teacher = NonLocal(channels_teacher, reduction, pool)

    def forward(self, feat_student: Tensor, feat_teacher: Tensor, temperature: float) -> dict[str, Tensor]:
        """By part, the difference whose norm is the loss: (B, ...).

        Args:
            feat_student: (B, C_S, H, W) as its neck made them.
            feat_teacher: (B, C_T, H, W) of the same level; of what is behind it the non-local block trains.
            temperature: of the attention.
        """
        feat_teacher = feat_teacher.detach()
        mask = attention(feat_student, feat_teacher, temperature)
        related = self.relation(self.relation_student(feat_student)), self.relation_teacher(feat_teacher)
        return {
            "feature": mask.sqrt() * (self.feature(feat_student) - feat_teacher),
            "channel": self.channel(feat_student.mean((2, 3))) - feat_teacher.mean((2, 3)),
            "spatial": self.spatial(feat_student.mean(1, keepdim=True)) - feat_teacher.mean(1, keepdim=True),
            "relation": related[0] - related[1],
        }


class FeatureBasedDistillation(Method):
    """FBKD: attention-guided and non-local distillation of neck maps; it needs no ground truth.

    Args:
        pair: the two models.
        feature: factor of the features under both models' attention. The authors' code has 7e-5 for two-stage
            detectors; 4e-4 for one-stage ones is (unverified), as are the next three.
        channel: factor of the means over cells; 4e-3 for two-stage detectors.
        spatial: factor of the means over channels; 4e-3 for two-stage detectors.
        relation: factor of the non-local blocks' maps; 7e-5 for two-stage detectors.
        temperature: the paper's T, of the attention.
        parity: norms over the GPU's whole batch, as the authors have them; they grow with its square root.

    Source: Zhang and Ma, ICLR 2021, "Improve Object Detection with Feature-based Knowledge Distillation".
    Differs: a norm for each image unless `parity`; no batch norm in the non-local blocks, whose theta,
    kappa and g are drawn as torch draws them, in mmcv's block from N(0, 0.01).
    """

    default_weight = 1.0
    defaults_for = {
        "faster_rcnn": {"feature": 7e-5, "channel": 4e-3, "spatial": 4e-3, "relation": 7e-5},
    }
    limits = {"temperature": (0.01, 100.0)}
    needs = ("feats",)

    def __init__(
        self,
        pair: Pair,
        *,
        feature: float = 4e-4,
        channel: float = 2e-2,
        spatial: float = 2e-2,
        relation: float = 4e-4,
        temperature: float = 0.5,
        parity: bool = False,
    ) -> None:
        super().__init__(pair)
        self.factors = {"feature": feature, "channel": channel, "spatial": spatial, "relation": relation}
        self.temperature, self.parity = temperature, parity
        self.blocks = nn.ModuleList(
            LevelBlocks(pair.student.channels, pair.teacher.channels, level) for level, _ in pair.levels
        )

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The four parts, each the sum over the levels."""
        differences = [
            blocks(feat_student, feat_teacher, self.temperature)
            for blocks, feat_student, feat_teacher in zip(
                self.blocks, student.feats, teacher.feats, strict=True
            )
        ]
        return {
            part: factor * torch.stack([norm_loss(level[part], self.parity) for level in differences]).sum()
            for part, factor in self.factors.items()
        }
