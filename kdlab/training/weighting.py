"""The weight of a method over a training, and its share of the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from kdlab.jobs.spec import MethodSettings

LOOK_EVERY = 50  # steps between two looks at the shares: each costs a backward pass of the head per method
_SCALE = 1024.0
_FALLS = {
    "none": lambda _part: 1.0,
    "linear": lambda part: 1 - part,
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
}


class Weight(nn.Module):
    """A method's weight: it grows over the warm-up, falls, stops, and follows its share of the gradient.

    Args:
        settings: of the method.

    Source of `gradient_share`: RT-DETRv4 (public code); of `stop`: MMYOLO's RTMDet recipes.
    """

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__()
        self.settings, self.share = settings, settings.gradient_share
        if self.share is not None:
            # in the checkpoint, for a weight that followed its share goes on from there
            self.register_buffer("factor", torch.ones((), dtype=torch.float64))
            self.register_buffer("seen", torch.zeros(2, dtype=torch.float64))

    def at(self, iteration: int, iterations: int) -> float | Tensor | None:
        """The weight in the step that follows `iteration` others; None once it has stopped."""
        settings = self.settings
        end = iterations if settings.stop is None else settings.stop * iterations
        if settings.stop is not None and iteration >= end:
            return None
        risen = min(1.0, (iteration + 1) / (settings.warmup_iters + 1))
        weight = settings.weight * risen * _FALLS[settings.decay](iteration / end)
        return weight if self.share is None else weight * self.factor.float()

    def saw(self, percent: Tensor) -> None:
        """Note the method's share of the gradient in a step, equal on all ranks."""
        if self.share is not None:
            # 0 says nothing: half precision overflowed, or the method does not teach the student yet
            self.seen += torch.stack([percent, percent > 0]).double()

    def end_epoch(self) -> None:
        """Change the weight where the mean share of the epoch was outside of its band."""
        if self.share is None:
            return
        total, looks = self.seen.tolist()
        self.seen.zero_()
        if looks:
            self.factor *= correction(total / looks / 100, self.share.target / 100, self.share.band / 100)


def correction(found: float, target: float, band: float) -> float:
    """By what a weight is multiplied so that its share comes to the near edge of target ± band.

    Args:
        found: the share, 0 to 1; 1 inside of the band and where it is 0, of which nothing follows.
        target: what it should be, 0 to 1.
        band: how far it may be away.

    Returns:
        0.1 to 10: the ratio of the odds of edge and share.
    """
    if abs(found - target) <= band or found <= 0:
        return 1.0
    edge = target - band if found < target else target + band
    return min(10.0, max(0.1, edge * (1 - found) / max(found * (1 - edge), 1e-12)))


def gradient_shares(parts: Mapping[str, Tensor], maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Share of each method in the gradient on maps, in percent, by L1 norm.

    Args:
        parts: the weighted loss of each, and under "" the detector's own.
        maps: the student's neck maps, in the graph; where they are not, nothing is found.

    Returns:
        Scalars 0 to 100 by method; 0 for all where half precision overflows.

    Source: RT-DETRv4 (public code).  Differs: of single steps, `LOOK_EVERY` apart, where it takes all.
    """
    maps = [level for level in maps if level.requires_grad]
    if not maps:
        return {}
    norms = []
    for part in parts.values():
        # gradients of half precision vanish where nothing scales them
        scaled = _SCALE * part
        learns = scaled.requires_grad
        found = torch.autograd.grad(scaled, maps, retain_graph=True, allow_unused=True) if learns else ()
        sizes = [level.float().abs().sum() for level in found if level is not None]
        norms.append(torch.stack(sizes).sum() if sizes else part.new_zeros(()).detach())
    # of the images of all processes
    all_norms = reduce_mean(torch.stack(norms))
    shares = 100 * all_norms / all_norms.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return {name: share for name, share in zip(parts, shares.nan_to_num(0.0), strict=True) if name}
