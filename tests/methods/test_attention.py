"""Attention of a map to places and channels, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdlab.methods._attention import channel_attention, spatial_attention

LN3 = math.log(3)


def test_places_share_by_mean_magnitude() -> None:
    # mean magnitudes ln 3 and 0: shares 3/4 and 1/4 of two places
    feat = torch.tensor([[[[2 * LN3, 0.0]], [[0.0, 0.0]]]])
    assert spatial_attention(feat, 1.0).flatten().tolist() == pytest.approx([1.5, 0.5])
    assert spatial_attention(-feat, 1.0).flatten().tolist() == pytest.approx([1.5, 0.5])


def test_channels_share_by_magnitude_at_each_place() -> None:
    magnitude = torch.tensor([[[LN3, 0.0], [0.0, 0.0]]])
    assert channel_attention(magnitude, 1.0)[0].flatten().tolist() == pytest.approx([1.5, 1, 0.5, 1])


def test_temperature_divides_magnitudes() -> None:
    feat = torch.tensor([[[[LN3 / 2, 0.0]]]])
    assert spatial_attention(feat, 0.5).flatten().tolist() == pytest.approx([1.5, 0.5])
    assert channel_attention(torch.tensor([[LN3 / 2, 0.0]]), 0.5).tolist() == [pytest.approx([1.5, 0.5])]
