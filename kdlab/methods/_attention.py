"""Attention of a map to its own places and channels, as several methods weigh what is imitated."""

from __future__ import annotations

from torch import Tensor


def spatial_attention(feat: Tensor, temperature: float) -> Tensor:
    """(B, H, W) softmax over places of the mean magnitude of (B, C, H, W); 1 on average."""
    height, width = feat.shape[-2:]
    magnitude = feat.abs().mean(1).flatten(1)
    return (height * width * (magnitude / temperature).softmax(1)).unflatten(1, (height, width))


def channel_attention(magnitude: Tensor, temperature: float) -> Tensor:
    """Softmax over the channels of (B, C, ...) magnitudes, in the same shape; 1 on average."""
    return magnitude.shape[1] * (magnitude / temperature).softmax(1)
