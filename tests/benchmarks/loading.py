"""What mixing images and averaging weights cost: `python -m tests.benchmarks.loading [--images N]`.

- The share of a step that waits for data, without mixing, with Mosaic and with Mosaic and MixUp, each with
  files read again and with decoded images kept: JPEGs of 640x480, one loader process, one thread that trains.
- The time of an update of the moving average beside that of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch

import kdlab.mmcv_ops  # noqa: F401 - from here on mmdet finds its compiled operators
from kdlab import detectors
from kdlab.datasets.base import DatasetFiles, Split
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import ImageSettings
from kdlab.training.attempt import Attempt
from kdlab.training.averaging import Average
from kdlab.training.data import batches_of, mmdet_dataset, training_loader
from kdlab.training.distiller import Distiller
from kdlab.training.loop import TrainingLoop
from kdlab.training.optimising import build_optimiser
from tests.benchmarks.anchors import in_turns
from tests.benchmarks.coco_size import make_images
from tests.stubs.jobs import make, model, schedule

SIZE, BATCH, CACHES = (640, 480), 4, {"none": False, "ram": True}
STUDENT = model(strides=[8, 16, 32], neck_channels=32)
MIXING = {"no mixing": [], "mosaic": ["mosaic"], "mosaic and mixup": ["mosaic", "mixup"]}


def files_in(folder: Path, images: int) -> DatasetFiles:
    """Made-up images and their labels, as a dataset gives them."""
    make_images(folder, images, *SIZE)
    split = Split(folder / "images", folder / "labels.json")
    classes = [one["name"] for one in json.loads(split.labels.read_text())["categories"]]
    return DatasetFiles("coco", tuple(classes), split, split, "f" * 16)


def loop_over(files: DatasetFiles, mixing: str, *, cached: bool, epochs: int, folder: str) -> TrainingLoop:
    """A student's training without teacher and evaluation."""
    settings = ImageSettings.model_validate({"scale": SIZE, "augment": MIXING[mixing]})
    reading = {"cached": cached, "augment": settings.augment}
    # pycocotools talks
    with contextlib.redirect_stdout(io.StringIO()):
        images = mmdet_dataset(files, files.train, settings.scale, settings.flip, **reading)
    student = Distiller(detectors.build(STUDENT, len(files.classes)))
    attempt = Attempt(make("student-1", schedule={"epochs": epochs}), JobPaths(Path(folder)))
    return TrainingLoop(student, training_loader(images, BATCH, 0, workers=1), attempt, None)


def waiting(files: DatasetFiles) -> None:
    """A line for each way to load: steps of the second epoch, when what is kept has been decoded."""
    for mixing in MIXING:
        for name, cached in CACHES.items():
            with tempfile.TemporaryDirectory() as folder:
                loop = loop_over(files, mixing, cached=cached, epochs=2, folder=folder)
                loop.run()
            second = loop.seconds[len(loop.seconds) // 2 :]
            step_s, data_s = (sum(times) for times in zip(*second, strict=True))
            print(
                f"{mixing}, cache {name}: {median(step for step, _ in second) * 1e3:.0f} ms a step, "
                f"{data_s / step_s:.1%} of it the wait for data",
                flush=True,
            )


def averaging(files: DatasetFiles, rounds: int) -> None:
    """An update of the average and a step, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_over(files, "no mixing", cached=False, epochs=1, folder=folder)
    batch, trained = next(batches_of(loop.loader)), loop.distiller.train()
    optim, average = build_optimiser(trained, schedule()), Average(trained.student, 2e-4, iterations=1000)
    update, step = partial(average.follow, trained.student, 100), partial(trained.train_step, batch, optim)
    update_s, step_s = map(median, in_turns(rounds, update=update, step=step).values())
    times = f"{1e3 * update_s:.1f} ms beside {1e3 * step_s:.0f} ms a step"
    print(f"update of the average: {times}, {update_s / step_s:.2%}", flush=True)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="of an epoch; steps of 4")
    images = parser.parse_args().images
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        files = files_in(Path(name), images)
        waiting(files)
        averaging(files, rounds=max(10, images // 10))


if __name__ == "__main__":
    main()
