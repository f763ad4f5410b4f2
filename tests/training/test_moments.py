"""Sums in parts give what the whole gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdlab.training.moments import LinearFit, PairSums


def cells(count: int, channels: int, seed: int) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def fitted(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    fit = LinearFit(given.shape[1], wanted.shape[1])
    for part in range(0, len(given), 7):
        fit.add(given[part : part + 7], wanted[part : part + 7])
    weight, bias = fit.solve()
    return given @ weight + bias


def test_features_that_a_convolution_maps_are_mapped_by_it() -> None:
    given = cells(200, 6, 0)
    wanted = given @ cells(6, 4, 1) + cells(1, 4, 2)
    torch.testing.assert_close(fitted(given, wanted), wanted, rtol=1e-2, atol=1e-2)


def test_no_map_is_nearer_than_least_squares() -> None:
    given, wanted = cells(300, 5, 3), cells(300, 3, 4)
    left = float((fitted(given, wanted) - wanted).square().sum())
    with_bias = np.hstack([given.numpy(), np.ones((300, 1))])
    _, best, *_ = np.linalg.lstsq(with_bias, wanted.numpy(), rcond=None)
    assert left == pytest.approx(best.sum(), rel=1e-5)


def test_a_channel_that_never_moves_leaves_it_solvable() -> None:
    given = cells(50, 3, 5)
    given[:, 1] = 2.0
    assert fitted(given, cells(50, 2, 6)).isfinite().all()
    assert fitted(torch.ones(4, 2), torch.full((4, 2), 3.0)).allclose(torch.tensor(3.0))


def test_correlation_in_parts_is_that_of_the_whole() -> None:
    x = cells(100, 1, 7).squeeze(1) * 1e-4
    y = 2 * x + 1e-4 * cells(100, 1, 8).squeeze(1)
    sums = PairSums()
    for part in range(0, 100, 9):
        sums.add(x[part : part + 9], y[part : part + 9])
    assert sums.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert sums.means == pytest.approx((float(x.mean()), float(y.mean())), rel=1e-5)


def test_what_never_moves_has_no_correlation() -> None:
    sums = PairSums()
    assert (sums.correlation, sums.means) == (None, (0.0, 0.0))
    sums.add(torch.ones(3), torch.arange(3.0))
    assert sums.correlation is None
