"""Masked Distillation: imitate features under masks that the teacher's own detection loss has learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods.base import Connector, Method, Pair, Preparation

VERSION = 2


def dice_similarity(masks: Tensor) -> Tensor:
    """How much the masks of a level resemble each other, which learning them lowers.

    Args:
        masks: (B, T, H, W) in [0, 1].

    Returns:
        Scalar in [0, 1]: the mean Dice coefficient of two different masks of an image; 0 for a single one.

    Source: Huang et al., ICLR 2023, arXiv:2205.14589, its loss of mask diversity.  Differs: none known.
    """
    flat = masks.flatten(2)
    tokens = flat.shape[1]
    overlap = flat @ flat.transpose(1, 2)
    area = flat.square().sum(2)
    dice = 2 * overlap / (area[:, :, None] + area[:, None, :]).clamp(min=1e-12)
    others = ~torch.eye(tokens, dtype=torch.bool, device=masks.device)
    return (dice * others).sum() / max(1, len(masks) * tokens * (tokens - 1))


def masked_loss(feat_student: Tensor, feat_teacher: Tensor, masks: Tensor, shares: Tensor) -> Tensor:
    """Squared differences under each mask, over the mask's size, weighted by its share.

    Args:
        feat_student: (B, C, H, W) through its connector.
        feat_teacher: (B, C, H, W); no gradient flows here.
        masks: (B, T, H, W) in [0, 1]; no gradient flows here.
        shares: (B, T) how much each mask counts, with sum 1; no gradient flows here.

    Returns:
        Scalar >= 0, mean over images and channels. The mask multiplies the maps, so it enters squared.

    Source: Huang et al., ICLR 2023, arXiv:2205.14589, in the form of its code.  Differs: none known.
    """
    difference = (feat_student - feat_teacher.detach()).square().mean(1)
    under_masks = torch.einsum("bthw,bhw->bt", masks.detach().square(), difference)
    sizes = masks.detach().sum((2, 3)).clamp(min=1e-6)
    return (shares.detach() * under_masks / sizes).sum(1).mean()


class ReceptiveTokens(nn.Module):
    """The tokens of one level: each makes a mask of the teacher's map; with them, what each mask counts.

    Args:
        channels: C of the teacher's maps.
        tokens: T.
    """

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.01 * torch.randn(tokens, channels))
        self.share = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, tokens, 1),
        )
        for conv in (self.share[0], self.share[2]):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def masks(self, feat: Tensor) -> Tensor:
        """(B, T, H, W) in [0, 1] from a map (B, C, H, W)."""
        return torch.einsum("tc,bchw->bthw", self.tokens, feat).sigmoid()

    def shares(self, feat: Tensor) -> Tensor:
        """(B, T) with sum 1 from the teacher's map (B, C, H, W)."""
        return self.share(feat).flatten(1).softmax(1)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """The map under all masks, each by its share, and the loss of the masks' diversity."""
        masks = self.masks(feat)
        together = torch.einsum("bthw,bt->bhw", masks, self.shares(feat))
        return feat * together[:, None], dice_similarity(masks)


class TokenLearning(Preparation):
    """One set of tokens a level of the teacher; its head is to detect objects in the masked maps."""

    def __init__(self, channels: int, levels: int, tokens: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ReceptiveTokens(channels, tokens) for _ in range(levels))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The neck's maps as the head is to see them, and the loss of the masks' diversity."""
        masked, losses = zip(
            *(learn(level) for learn, level in zip(self.levels, maps, strict=True)), strict=True
        )
        return list(masked), {"loss_diversity": torch.stack(losses).sum()}


class MaskedDistillation(Method):
    """MasKD. Its tokens are learned once for each teacher, by a job of their own, and then stay as they are.

    Args:
        pair: the two models; the teacher's own loss must be computable, for its tokens learn from it.
        tokens: T, masks of each level.
        prepare_iters: steps over which the tokens are learned.
        narrow_after: when the student's own masks begin to narrow the teacher's: below 1 a fraction of the
            student's iterations, from 1 on a number of them. Published are 7,000 for RetinaNet, 5,000 for
            FCOS and 7,330 for Faster R-CNN, of the 176,000 of COCO's 2x: 0.04, 0.028 and 0.042.

    Source: Huang et al., ICLR 2023, arXiv:2205.14589; weights, tokens and steps are those of its configs.
    Differs: they distil box regression too, by (smooth) L1, and their RetinaNet inherits. The tokens are
    learned with decoupled weight decay (AdamW in place of Adam), at the recipe's batch size and with gradient
    clipping 35, and do not learn on beside the student.
    """

    default_weight = 7.0
    defaults_for = {
        "fcos": {"weight": 10.0, "narrow_after": 0.028},
        "faster_rcnn": {"weight": 1.0, "narrow_after": 0.042},
    }
    limits = {"tokens": (1, 100), "prepare_iters": (1, 1000000)}
    needs = ("feats",)
    prepares = ("tokens", "prepare_iters")
    connector = Connector(always=True)

    def __init__(
        self, pair: Pair, *, tokens: int = 6, prepare_iters: int = 2000, narrow_after: float = 0.04
    ) -> None:
        super().__init__(pair)
        self.prepare_iters, self.narrow_after = prepare_iters, narrow_after
        self.prepared = TokenLearning(pair.teacher.channels, len(pair.teacher.strides), tokens)

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """Sum over the levels of each level's loss."""
        losses = []
        of_all = batch.max_iterations if self.narrow_after < 1 else 1
        narrow_after = self.narrow_after * of_all
        for feat_student, feat_teacher, level in zip(
            student.feats, teacher.feats, teacher.levels, strict=True
        ):
            tokens = self.prepared.levels[level]
            masks = tokens.masks(feat_teacher)
            if batch.iteration >= narrow_after:
                masks = masks * tokens.masks(feat_student.detach())
            losses.append(masked_loss(feat_student, feat_teacher, masks, tokens.shares(feat_teacher)))
        return torch.stack(losses).sum()
