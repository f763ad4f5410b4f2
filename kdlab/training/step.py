"""One step of the optimiser: mmengine's own, or one whose gradient is gathered over micro-batches."""

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
            The gradient and the losses told are the mean over the forwards, each by its share of the images.
    """

    def __init__(self, distiller: Distiller, optim: OptimWrapper, micro_batch: int | None = None) -> None:
        self._distiller, self._optim, self._micro_batch = distiller, optim, micro_batch
        self._model = ranks.parallel(distiller)
        self.images = 0
        """Of the last forward, also of one that failed."""

    def __call__(self, data: Any) -> dict[str, Tensor]:
        """Update the weights; the losses by name, those of the methods also raw, without gradient."""
        images = len(data["data_samples"])
        self.images = min(images, self._micro_batch or images)
        if self.images == images:
            return self._told(self._model.train_step(data, self._optim))
        return self._gathered(data)

    def first_part(self, data: Any) -> Any:
        """As much of a batch as one forward takes."""
        return next(parts_of(data, self._micro_batch or len(data["data_samples"])))

    def _gathered(self, data: Any) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        images, left = len(data["data_samples"]), len(data["data_samples"])
        for part in parts_of(data, self.images):
            share, left = len(part["data_samples"]) / images, left - len(part["data_samples"])
            # the processes exchange gradients once, with the last part
            alone = self._model.no_sync() if left and ranks.count() > 1 else nullcontext()
            with alone:
                with self._optim.optim_context(self._model):
                    inputs = self._distiller.data_preprocessor(part, True)
                    losses = self._model(**inputs, mode="loss")
                total, told = self._distiller.parse_losses(losses)
                self._optim.backward(share * total)
            for name, value in self._told(told).items():
                sums[name] = share * value + sums.get(name, 0)
        self._optim.step()
        self._optim.zero_grad()
        return sums

    def _told(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        raw = {f"raw_{name}": value for name, value in self._distiller.raw_terms.items()}
        return {name: value.detach() for name, value in {**losses, **raw}.items()}


def parts_of(data: Any, size: int) -> Iterator[Any]:
    """A batch cut into batches of at most `size` images."""
    for first in range(0, len(data["data_samples"]), size):
        yield {name: values[first : first + size] for name, values in data.items()}
