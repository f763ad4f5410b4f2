"""What a DETR shows: the queries that its decoder begins with, and what it says of them after each layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Starts:
    """Queries before the first layer of a decoder, of C channels.

    Args:
        content: (B, Q, C).
        position: (B, Q, C) what their places are told by; None where boxes say it.
        boxes: (B, Q, 4) centre and size, in fractions of the image, from which the decoder starts; None where
            it reads points from the positions.
    """

    content: Tensor
    position: Tensor | None = None
    boxes: Tensor | None = None


@dataclass(frozen=True)
class Queries:
    """What a decoder of L layers says of Q queries; those of denoising are left out.

    Args:
        logits: (L, B, Q, K).
        boxes: (L, B, Q, 4) centre and size, in fractions of the image without its padding.
        states: (L, B, Q, C) what the layers give.
        gt_index: (L, B, Q) int64 into the image's objects, as the model's own loss matched them in this step;
            -1 none. None where no loss was computed.
    """

    logits: Tensor
    boxes: Tensor
    states: Tensor
    gt_index: Tensor | None = None

    @property
    def layers(self) -> int:
        """L."""
        return len(self.logits)

    def last(self, layers: int) -> Queries:
        """The same of the last `layers` layers alone."""
        index = None if self.gt_index is None else self.gt_index[-layers:]
        return Queries(self.logits[-layers:], self.boxes[-layers:], self.states[-layers:], index)
