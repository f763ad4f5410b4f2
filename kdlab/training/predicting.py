"""Detections of trained models on images, for pictures: `python -m kdlab.training.predicting < request.json`.

A short process of its own, because the command line never imports torch. Standard input holds the "models",
each with its "name" and either the folder of its "job" or an exported "file", and "compared" where it is the
baseline or an arm, the baseline first; the "images" that are named, or none and the "count" of validation
images in which compared models differ most. Standard output holds what `predicted` returns.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from kdlab import children
from kdlab.datasets._images import Pixels, UnreadableError, decoded
from kdlab.datasets.base import DatasetFiles, content_of
from kdlab.datasets.coco import load_labels
from kdlab.errors import Fault, UsageError
from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths
from kdlab.training import detecting
from kdlab.training.detecting import Detections, Detector
from kdlab.training.evaluation import CocoMetric

Model = Mapping[str, Any]
BEST, WORST = "best", "worst"
_TOLD = 12
"""Images that cannot be read: more are not listed."""


@dataclass(frozen=True)
class Picture:
    """An image to look for objects in.

    Args:
        id: in the labels; of images that are not there numbers beyond all of theirs.
        name: `file_name` of the labels, or the path as it was given.
        path: of the file.
        size: height and width as the labels record them, which say how EXIF is meant; (0, 0) elsewhere.
        labelled: whether it is one of the validation set.
    """

    id: int
    name: str
    path: Path
    size: tuple[int, int] = (0, 0)
    labelled: bool = False

    def pixels(self) -> Pixels:
        """(H, W, 3) BGR.

        Raises:
            UnreadableError: it is missing, cut short, or no image.
        """
        try:
            return decoded(content_of(self.path), *self.size)
        except (OSError, ValueError) as error:
            raise UnreadableError(getattr(error, "strerror", None) or str(error)) from error


class Validation:
    """The labelled images on which jobs are measured; none where the labels are not there.

    Args:
        files: of the jobs' dataset; None for models without one.
    """

    def __init__(self, files: DatasetFiles | None) -> None:
        self._files, self.pictures = files, list[Picture]()
        self.categories: list[int] = []
        if files is None or not files.val.labels.is_file():
            return
        labels = load_labels(files.val.labels)
        self.categories = sorted(category["id"] for category in labels["categories"])
        for image in labels["images"]:
            size, name = (image["height"], image["width"]), image["file_name"]
            path = files.val.images / name
            self.pictures.append(Picture(image["id"], name, path, size, labelled=True))
        self._metric = CocoMetric(files.val.labels, files.classes)

    def objects(self, picture: Picture) -> list[list[float]] | None:
        """(G, 5) x, y, w, h and label of the objects of an image; None where nobody labelled it."""
        if not picture.labelled:
            return None
        objects = self._metric.objects(picture.id).values()
        return [[*box["bbox"], self.categories.index(box["category_id"])] for box in objects]

    def precision(self, found: Mapping[int, Detections]) -> dict[int, float]:
        """AP of each labelled image with objects, of that image alone; see `resampling.of_each_image`.

        Args:
            found: a model's detections, by the image's id.
        """
        known = {picture.id: picture for picture in self.pictures if picture.id in found}
        if not any(self.objects(picture) for picture in known.values()):
            return {}
        self._metric.results = []
        self._metric.process({"img_id": name, "pred_instances": found[name]} for name in known)
        self._metric.of_all([self._metric.results])
        return {name: ap for name, ap in self._metric.of_each().items() if not math.isnan(ap)}

    def named(self, paths: Iterable[str]) -> list[Picture]:
        """Images by their paths, those of the validation set with their labels."""
        known = {picture.path.resolve(): picture for picture in self.pictures}
        beyond = max((picture.id for picture in self.pictures), default=0)
        return [
            known.get(Path(path).resolve()) or Picture(beyond + number, path, Path(path))
            for number, path in enumerate(paths, start=1)
        ]


class Seen:
    """Detections of models, by their names and the ids of images.

    Args:
        validation: says how good they are on images with labels.
    """

    def __init__(self, validation: Validation) -> None:
        self._validation = validation
        self.classes: tuple[str, ...] = ()
        self.found: dict[str, dict[int, Detections]] = {}
        self.precision: dict[str, dict[int, float]] = {}

    def look(self, model: Model, pictures: Iterable[Picture]) -> None:
        """Detect with a model, unless that was done before; on all images that it is asked about later."""
        name = model["name"]
        if name in self.found:
            return
        path = Path(model.get("job") or model["file"])
        detector: Detector = detecting.of_job(path) if "job" in model else detecting.of_file(path)
        self.classes = detector.classes
        self.found[name] = {picture.id: detector(picture.pixels()) for picture in pictures}
        self.precision[name] = self._validation.precision(self.found[name])

    def of(self, picture: Picture) -> dict[str, Any]:
        """What models found in an image, as plain data."""
        return {
            "ap": {name: own.get(picture.id) for name, own in self.precision.items()},
            "found": {name: rows(own[picture.id]) for name, own in self.found.items()},
        }


def predicted(models: Sequence[Model], images: Sequence[str], count: int) -> dict[str, Any]:
    """Detections of all models on the images that are named, or on those that show how models differ.

    Args:
        models: as in the request.
        images: paths; without any the validation images are meant.
        count: of these how many: half those in which the arms gain most AP over the baseline, mean over the
            arms, half those in which they lose most; the first ones where there is nothing to compare.

    Returns:
        "classes" and the ids of their "categories"; "left_out", validation images that cannot be read;
        "images", each with its "id", "name", "path", "width" and "height", "group" ("best", "worst" or ""),
        its "objects" as `Validation.objects`, and by model "ap", its AP or None, and "found" as `rows`.

    Raises:
        UsageError: an image that was named cannot be read, or no validation image can; none is named and the
            validation labels are gone; a file is none that kdlab exports.
        JobError: weights are missing, or not those of their job.
    """
    jobs = [read_job(JobPaths(Path(model["job"]))) for model in models if "job" in model]
    files = jobs[0].inputs.dataset if jobs else None
    validation = Validation(files)
    if files and not (images or validation.pictures):
        what, fix = "the validation labels are not there any more", "name images behind the recipe"
        raise UsageError(what, where=str(files.val.labels), fix=fix)
    pictures = validation.named(images) or [one for one in validation.pictures if validation.objects(one)]
    sizes, faults = _sizes(pictures)
    if faults and (images or not sizes):
        raise UsageError(faults=faults[:_TOLD])
    pictures, seen, groups = [one for one in pictures if one.id in sizes], Seen(validation), dict[int, str]()
    if not images:
        pictures, groups = _changed(models, pictures, count, seen)
    for model in models:
        seen.look(model, pictures)
    return {
        "classes": seen.classes,
        "categories": validation.categories or list(range(1, len(seen.classes) + 1)),
        "left_out": [fault.where for fault in faults],
        "images": [
            {
                "id": one.id,
                "name": one.name,
                "path": str(one.path),
                **dict(zip(("height", "width"), sizes[one.id], strict=True)),
                "group": groups.get(one.id, ""),
                "objects": validation.objects(one),
                **seen.of(one),
            }
            for one in pictures
        ],
    }


def _changed(
    models: Sequence[Model], pictures: list[Picture], count: int, seen: Seen
) -> tuple[list[Picture], dict[int, str]]:
    """The images to draw, in that order, and the groups of those that changed."""
    compared = [model for model in models if model["compared"]]
    groups = dict[int, str]()
    if len(compared) > 1:
        for model in compared:
            seen.look(model, pictures)
        groups = most_changed([seen.precision[model["name"]] for model in compared], count)
    by_id = {picture.id: picture for picture in pictures}
    return [by_id[name] for name in groups] or pictures[:count], groups


def most_changed(precision: Sequence[Mapping[int, float]], count: int) -> dict[int, str]:
    """The images in which the arms gain and lose most over the baseline, mean over the arms.

    Args:
        precision: AP by image, of the baseline and then of at least one arm, the same images in all.
        count: of both together, the odd one a gain.

    Returns:
        By image "best" or "worst": the largest gain first, then the largest loss. Images that gain nothing
        and lose nothing are neither, so there may be fewer.
    """
    baseline, *arms = precision
    change = {image: fmean(arm[image] for arm in arms) - ap for image, ap in baseline.items()}
    order = sorted(change, key=lambda image: -change[image])
    best = [image for image in order if change[image] > 0][: -(-count // 2)]
    worst = [image for image in reversed(order) if change[image] < 0][: count // 2]
    return dict.fromkeys(best, BEST) | dict.fromkeys(worst, WORST)


def _sizes(pictures: Collection[Picture]) -> tuple[dict[int, tuple[int, int]], list[Fault]]:
    """Height and width by the image's id, and a fault for each that cannot be read."""
    sizes, faults = {}, []
    for picture in pictures:
        try:
            height, width = picture.pixels().shape[:2]
            sizes[picture.id] = height, width
        except UnreadableError as error:
            fix = "mend the file, or leave it out"
            where = str(picture.path)
            faults.append(Fault("an image cannot be read", where=where, got=str(error), fix=fix))
    return sizes, faults


def rows(found: Detections) -> list[list[float]]:
    """(D, 6) x, y, w, h, score and label, the best first."""
    order = found["scores"].argsort(descending=True, stable=True)
    rows = []
    for box, score, label in zip(*(found[name][order].tolist() for name in found), strict=True):
        left, top, right, bottom = box
        corner_size = (left, top, right - left, bottom - top)
        rows.append([*(round(side, 3) for side in corner_size), round(score, 5), label])
    return rows


def main() -> int:
    """Do what the request on standard input says."""
    return children.answer(lambda asked: predicted(asked["models"], asked["images"], asked["count"]))


if __name__ == "__main__":
    sys.exit(main())
