"""One step of the optimiser: mmengine's own, or one with gradient accumulation over micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from mmengine.optim import OptimWrapper
from torch import Tensor

from kdlab.training import ranks
from kdlab.training.distiller import Distiller


class Step:
    """Trains a Distiller on one batch.

    Args:
        distiller: the model, on its device.
        optim: its optimiser.
        micro_batch: images of one forward and backward; None takes the whole batch of this process at once.
            Gradient and losses are the mean over the forwards, each by its share of the images.
    """

    def __init__(self, distiller: Distiller, optim: OptimWrapper, micro_batch: int | None) -> None:
        self._distiller, self._optim, self._micro_batch = distiller, optim, micro_batch
        self._model = ranks.parallel(distiller)
        self.images = 0
        """Of the last forward, also of one that failed."""

    def __call__(self, data: Any) -> dict[str, Tensor]:
        """Update the weights; the losses by name, those of the methods also raw, without gradient."""
        self.images = len(data["data_samples"])
        if self._micro_batch is None or self.images <= self._micro_batch:
            return self._told(self._model.train_step(data, self._optim))
        self.images = self._micro_batch
        return self._accumulated(data)

    def _accumulated(self, data: Any) -> dict[str, Tensor]:
        means: dict[str, Tensor] = {}
        *others, last = parts_of(data, self.images)
        # the processes exchange gradients once, with the last part
        alone = self._model.no_sync if ranks.count() > 1 else nullcontext
        for part in (*others, last):
            share = len(part["data_samples"]) / len(data["data_samples"])
            with nullcontext() if part is last else alone():
                with self._optim.optim_context(self._model):
                    inputs = self._distiller.data_preprocessor(part, True)
                    losses = self._model(**inputs, mode="loss")
                total, told = self._distiller.parse_losses(losses)
                self._optim.backward(share * total)
            for name, value in self._told(told).items():
                means[name] = share * value + means.get(name, 0)
        self._optim.step()
        self._optim.zero_grad()
        return means

    def _told(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        raw = {f"raw_{name}": value for name, value in self._distiller.raw_terms.items()}
        shares = {f"share_{name}": value for name, value in self._distiller.shares.items()}
        return {name: value.detach() for name, value in {**losses, **raw, **shares}.items()}


def parts_of(data: Any, size: int) -> Iterator[Any]:
    """A batch cut into batches of at most `size` images."""
    for first in range(0, len(data["data_samples"]), size):
        yield {name: values[first : first + size] for name, values in data.items()}
