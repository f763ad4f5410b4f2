"""Training images as a model sees them, with their boxes: `python -m kdlab.training.showing < request.json`.

A short process of its own, because the command line never imports torch. Standard input holds a student's
"job", how many "images" of which "epoch", and the path of the picture that is written; standard output what
is on it.
"""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kdlab import children, detectors  # noqa: F401 - which registers mmdet's parts
from kdlab.jobs.job import Job
from kdlab.training import data
from kdlab.training.images import BrokenImages

CELL = 320
"""Smallest length of the longer side of an image on the picture, in pixels."""
GAP = 4
# of twelve classes in turn, BGR
_COLOURS = [
    tuple(int(part) for part in cv2.cvtColor(np.uint8([[[15 * turn, 220, 255]]]), cv2.COLOR_HSV2BGR)[0, 0])
    for turn in (0, 8, 4, 10, 2, 6, 1, 9, 5, 11, 3, 7)
]


def drawn(job: Job, count: int, epoch: int, to: Path) -> list[dict[str, Any]]:
    """Draw the first images of an epoch, in the order of the job's seed.

    Args:
        job: a student's.
        count: how many; no more than an epoch has.
        epoch: from 0.
        to: PNG.

    Returns:
        Of each image its "file", "width" and "height" as the model gets it, and the number of "boxes".
    """
    settings, files = job.spec.dataset, job.inputs.dataset
    broken = BrokenImages() if settings.broken_images == "skip" else None
    images = data.mmdet_dataset(
        files, files.train, settings.scale, settings.flip, broken, augment=settings.augment
    )
    loader = data.training_loader(
        images, job.spec.batch_size, job.seed, 0, mixed_epochs=job.spec.mixed_epochs
    )
    loader.batch_sampler.start_at(epoch, 0)
    pairs = (
        pair
        for batch in data.batches_of(loader)
        for pair in zip(batch["inputs"], batch["data_samples"], strict=True)
    )
    cells, told = [], []
    for pixels, sample in islice(pairs, count):
        image = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)
        boxes, labels = sample.gt_instances.bboxes.tensor.tolist(), sample.gt_instances.labels.tolist()
        cells.append(_with_boxes(image, boxes, [files.classes[label] for label in labels], labels))
        height, width = image.shape[:2]
        told.append(
            {"file": Path(sample.img_path).name, "width": width, "height": height, "boxes": len(boxes)}
        )
    done, content = cv2.imencode(".png", _grid(cells))
    assert done
    to.write_bytes(content.tobytes())
    return told


def _with_boxes(image: Any, boxes: list[list[float]], names: list[str], labels: list[int]) -> Any:
    """The image, enlarged where it is small, with a frame and the class at each box."""
    zoom = max(1, math.ceil(CELL / max(image.shape[:2])))
    image = image.repeat(zoom, 0).repeat(zoom, 1)
    for box, name, label in zip(boxes, names, labels, strict=True):
        left, top, right, bottom = (round(zoom * side) for side in box)
        colour = _COLOURS[label % len(_COLOURS)]
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), colour, 1)
        place = (left + 2, max(top + 10, 10))
        for thickness, ink in ((3, (0, 0, 0)), (1, colour)):
            cv2.putText(image, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, thickness, cv2.LINE_AA)
    return image


def _grid(cells: list[Any]) -> Any:
    """The images in rows, each at the top left of its cell."""
    height, width = (GAP + max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(cells) * height / width))
    rows = math.ceil(len(cells) / columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for place, cell in enumerate(cells):
        top, left = (place // columns) * height, (place % columns) * width
        canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return canvas


def main() -> int:
    """Do what the request on standard input says."""

    def asked(request: dict[str, Any]) -> dict[str, Any]:
        job, to = Job.from_dict(request["job"]), Path(request["to"])
        return {"images": drawn(job, request["images"], request["epoch"], to)}

    return children.answer(asked)


if __name__ == "__main__":
    sys.exit(main())
