"""Sums over all cells of many maps, in float64: a linear map between features, a correlation of two maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RIDGE = 1e-4
"""Penalty of the linear map's weights, in mean variances of its inputs."""


class LinearFit:
    """The 1x1 convolution that brings one model's features nearest to another's, by least squares.

    Ridge regression in closed form, with a bias that is not penalised: whoever is compared gets the best map
    that there is, however it was trained.

    Args:
        inputs: channels of the features that are mapped.
        outputs: channels of those that they are compared with.
        device: where the features are.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        zeros = {"dtype": torch.float64, "device": device}
        self._count = 0
        self._sums = torch.zeros(inputs, **zeros), torch.zeros(outputs, **zeros)
        self._squares, self._products = (
            torch.zeros(inputs, inputs, **zeros),
            torch.zeros(inputs, outputs, **zeros),
        )

    def add(self, given: Tensor, wanted: Tensor) -> None:
        """Take in cells: features (n, inputs) and what they should become (n, outputs)."""
        given, wanted = given.double(), wanted.double()
        self._count += len(given)
        for total, part in zip(self._sums, (given, wanted), strict=True):
            total += part.sum(0)
        self._squares += given.T @ given
        self._products += given.T @ wanted

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weight (inputs, outputs) and bias (outputs,) in fp32: a cell x becomes x @ weight + bias."""
        means = [total / max(1, self._count) for total in self._sums]
        squares = self._squares - self._count * torch.outer(means[0], means[0])
        products = self._products - self._count * torch.outer(*means)
        # a channel that never moves would leave the system singular
        penalty = max(RIDGE * float(squares.diagonal().mean()), 1e-12)
        weight = torch.linalg.solve(squares + penalty * torch.eye(len(squares)).to(squares), products)
        return weight.float(), (means[1] - means[0] @ weight).float()


class PairSums:
    """Means and Pearson's correlation of pairs of numbers that come in parts."""

    def __init__(self) -> None:
        self.count = 0
        self._sums = torch.zeros(5, dtype=torch.float64)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Take in pairs (n,), (n,)."""
        x, y = first.double(), second.double()
        self.count += len(x)
        self._sums += torch.stack([x.sum(), y.sum(), x @ x, y @ y, x @ y]).cpu()

    @property
    def means(self) -> tuple[float, float]:
        """Of the first and of the second numbers; 0 of none."""
        first, second, *_ = (self._sums / max(1, self.count)).tolist()
        return first, second

    @property
    def correlation(self) -> float | None:
        """From -1 to 1; None where one side never moves."""
        x, y, xx, yy, xy = (self._sums / max(1, self.count)).tolist()
        spread = math.sqrt(max(0.0, xx - x * x) * max(0.0, yy - y * y))
        return min(1.0, max(-1.0, (xy - x * y) / spread)) if spread else None
