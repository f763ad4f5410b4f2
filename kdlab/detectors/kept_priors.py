"""Anchors and points of the sizes seen last, in place of new ones in each step.

mmdet's heads make them anew for every batch, and which of them lie on padding once for every image and level:
dozens of small operations whose outcome follows from sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

_SIZES = 16


def keep(model: nn.Module) -> None:
    """Let the prior generators of a model's heads remember what they made; the values stay, to the bit."""
    for part in model.modules():
        generator = getattr(part, "prior_generator", None)
        for name in ("grid_priors", "valid_flags"):
            if hasattr(generator, name) and name not in vars(generator):
                setattr(generator, name, _remembering(getattr(generator, name)))


def _remembering(made: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    @lru_cache(_SIZES)
    def kept(_inference: bool, sizes: tuple[Any, ...], *args: Any, **kwargs: Any) -> list[Tensor]:
        return made(list(sizes), *args, **kwargs)

    @wraps(made)
    def asked(sizes: Sequence[tuple[int, int]], *args: Any, **kwargs: Any) -> list[Tensor]:
        # what inference mode has made no gradient may pass; a new list, for its owner may change it
        return list(kept(torch.is_inference_mode_enabled(), tuple(sizes), *args, **kwargs))

    return asked
