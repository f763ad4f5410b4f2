"""Data of one job: the images of its dataset, as its settings say, and which of them are broken."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader

from kdlab.datasets._images import first_look
from kdlab.datasets.base import Split
from kdlab.errors import JobError
from kdlab.jobs.augment import AnyStep
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.training import data, ranks
from kdlab.training.evaluation import CocoMetric
from kdlab.training.images import BrokenImages


class Reading:
    """The data of one job.

    Args:
        job: any kind; one that trains says in its settings whether images are flipped.
        paths: its folder, where broken images are noted.
    """

    def __init__(self, job: Job, paths: JobPaths) -> None:
        self.files, self.classes = job.inputs.dataset, job.inputs.dataset.classes
        for split in (self.files.train, self.files.val):
            if split.sha256 and split.sealed() != split:
                raise JobError(
                    "the labels have changed since this was planned",
                    where=str(split.labels),
                    got="another SHA-256",
                    fix="the same command plans anew, with the labels as they are now",
                )
        # one process writes the file, whatever the others find
        self.broken = BrokenImages(None if ranks.rank() else paths.folder / "broken_images.json")
        self._job, self._settings = job, job.spec.dataset
        self._skips = self.broken if self._settings.broken_images == "skip" else None
        self._trained: dict[str, int] = {}

    def training(self) -> DataLoader:
        """The training images in the order of the job's seed; says in the log what is left out."""
        images = self._images(self.files.train, self._settings.flip, self._settings.augment)
        self._trained = data.reading_report(images)
        print(data.reading_words(self._trained), flush=True)
        if note := first_look(self.files.train)[1]:
            print(note, flush=True)
        batch_size, workers = self._job.spec.batch_size, self._job.resources.workers
        pinned = self._job.resources.gpus > 0
        mixed = self._job.spec.mixed_epochs
        return data.training_loader(
            images, batch_size, self._job.seed, workers, pinned=pinned, mixed_epochs=mixed
        )

    def validation(self) -> DataLoader:
        """All validation images in order, or those of them that fall to this process."""
        images = self._images(self.files.val, None)
        batch_size, workers = self._job.spec.batch_size, self._job.resources.workers
        place = ranks.rank(), ranks.count()
        return data.evaluation_loader(
            images, batch_size, workers, *place, pinned=self._job.resources.gpus > 0
        )

    def _images(self, split: Split, flip: float | None, augment: Sequence[AnyStep] = ()) -> data.CocoImages:
        cached, scale = self._job.resources.cache == "ram", self._settings.scale
        return data.mmdet_dataset(self.files, split, scale, flip, self._skips, cached=cached, augment=augment)

    def metric(self) -> CocoMetric:
        """The metric of the validation images."""
        return CocoMetric(self.files.val.labels, self.files.classes, self.files.metrics)

    def report(self) -> dict[str, Any]:
        """Counts for the result: images read, dropped and, by any process, found broken."""
        for image in chain(*ranks.gathered(list(self.broken.images.values()))):
            self.broken.note(image)
        return {**self._trained, **self.broken.report()}
