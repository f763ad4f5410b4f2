"""What a job reads: the images of its data set, as its settings say, and which of them are broken."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch.utils.data import DataLoader

from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.training import ranks
from kdlab.training.data import (
    CocoImages,
    evaluation_loader,
    mmdet_dataset,
    reading_report,
    reading_words,
    training_loader,
)
from kdlab.training.evaluation import CocoMetric
from kdlab.training.images import BrokenImages


class Reading:
    """The data of one job.

    Args:
        job: any kind; one that trains says in its settings whether images are flipped.
        paths: its folder, where broken images are noted.
    """

    def __init__(self, job: Job, paths: JobPaths) -> None:
        self.files = job.inputs.dataset
        self.broken = BrokenImages(None if ranks.rank() else paths.folder / "broken_images.json")
        self.classes = self.files.classes
        self._job, self._settings = job, job.spec.dataset
        self._batch_size = job.spec.batch_size
        self._workers = job.resources.workers
        self._trained: CocoImages | None = None

    def training(self) -> DataLoader:
        """The training images in the order of the job's seed; says in the log what is left out."""
        self._trained = self._images("train", self._settings.flip)
        print(reading_words(reading_report(self._trained)), flush=True)
        return training_loader(
            self._trained, self._batch_size, self._job.seed, self._workers, ranks.rank(), ranks.count()
        )

    def validation(self) -> DataLoader:
        """All validation images in order, or those of them that fall to this process."""
        return evaluation_loader(
            self._images("val", None), self._batch_size, self._workers, ranks.rank(), ranks.count()
        )

    def metric(self) -> CocoMetric:
        """What is measured on the validation images."""
        return CocoMetric(self.files.val.labels, self.files.classes, self.files.metrics)

    def report(self) -> dict[str, Any]:
        """What was read, dropped and, by any process, found broken, for the result."""
        for image in chain(*ranks.gathered(list(self.broken.images.values()))):
            self.broken.note(image)
        trained = reading_report(self._trained) if self._trained is not None else {}
        return {**trained, **self.broken.report()}

    def _images(self, split: str, flip: float | None) -> CocoImages:
        skipped = self.broken if self._settings.broken_images == "skip" else None
        return mmdet_dataset(self.files, getattr(self.files, split), self._settings.scale, flip, skipped)
