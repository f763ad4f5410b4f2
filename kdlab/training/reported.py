"""Validation images of a job that trains nothing, with reports of progress between their batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from kdlab.jobs.events import JobProgress
from kdlab.training.attempt import Attempt
from kdlab.training.loop import REPORTS, Stopped


class ReportedLoader:
    """The batches of a loader, with some hundred reports of progress between them.

    Args:
        loader: of all validation images.
        attempt: takes the reports, and says whether to stop.
        passes: how often all images will be asked for; an image counts as done by parts.
    """

    def __init__(self, loader: DataLoader, attempt: Attempt, passes: int = 1) -> None:
        self.dataset, self.num_workers = loader.dataset, loader.num_workers
        self._loader, self._attempt, self._passes = loader, attempt, passes
        self._began, self._batch, self._shown = time.monotonic(), 0, 0

    def __iter__(self) -> Iterator[Any]:
        """One pass.

        Raises:
            Stopped: on request.
        """
        images, batches = len(self.dataset), self._passes * len(self._loader)
        every = max(1, batches // REPORTS)
        for data, places in zip(self._loader, self._loader.batch_sampler, strict=True):
            yield data
            self._batch += 1
            self._shown += len(places)
            if self._batch % every and self._batch < batches:
                continue
            if self._attempt.should_stop():
                raise Stopped
            spent_s, left = time.monotonic() - self._began, self._passes * images - self._shown
            self._attempt.emit(
                JobProgress, epoch=1, epochs=1, iteration=self._shown // self._passes, iterations=images,
                losses={}, lr=0.0, step_s=spent_s / self._batch, data_s=0.0,
                eta_s=spent_s / self._shown * left,
            )  # fmt: skip
