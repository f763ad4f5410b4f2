"""The moving average of a detector's weights, which is measured and kept in place of the last ones."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

RAMP = 2000  # steps over which the first weights are forgotten, as mmdet's detectors have it


class Average(nn.Module):
    """A copy of a detector that follows it: after every step a share of the difference.

    The share at step t is m + (1 - m) exp(-(1 + t) / 2000), as in mmdet's `ExpMomentumEMA`, but in a training
    that is shorter than 20,000 steps 2000 is a tenth of them. Buffers are averaged like parameters, counts
    are copied.

    Args:
        model: the detector.
        share: m, of the newest weights in the average, 0 to 1.
        iterations: of the training.
    """

    def __init__(self, model: nn.Module, share: float, iterations: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.share, self.ramp = share, min(RAMP, max(1, iterations // 10))
        self._tensors: tuple[list[Tensor], ...] = ()
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Nothing: it only predicts, and its statistics are averages."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Take over a share of the weights of the one model after a step, the first of which is 0."""
        share = self.share + (1 - self.share) * math.exp(-(1 + step) / self.ramp)
        if not self._tensors:
            self._tensors = (*_parts(self.model), *_parts(model))
        numbers, counts, of_numbers, of_counts = self._tensors
        torch._foreach_lerp_(numbers, of_numbers, share)
        # BatchNorm has counts, other layers may have none
        if counts:
            torch._foreach_copy_(counts, of_counts)


def _parts(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Numbers and counts among parameters and buffers, which training changes in place."""
    every = [*model.parameters(), *model.buffers()]
    numbers = [tensor for tensor in every if tensor.is_floating_point()]
    return numbers, [tensor for tensor in every if not tensor.is_floating_point()]
