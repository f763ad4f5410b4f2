"""Evaluation of detections: COCO's metrics, by hotcoco, and VOC's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import COCO
from hotcoco import COCOeval as Comparison
from torch import nn
from torch.utils.data import DataLoader

from kdlab.datasets._coco_objects import fate
from kdlab.datasets.coco import load_labels
from kdlab.errors import JobError
from kdlab.jobs.detections import Detections
from kdlab.jobs.result import Evaluation
from kdlab.training import ranks
from kdlab.training.data import batches_of
from kdlab.training.device import is_out_of_memory
from kdlab.training.matching import Matches, Met, matches_of, met_of
from kdlab.training.resampling import of_each_image
from kdlab.training.step import parts_of
from kdlab.training.voc import ImageBoxes, voc_metrics

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoMetric:
    """AP AP50 AP75 APs APm APl in points 0 to 100, and AP of each class; what has no objects is absent.

    Only images that were shown count: the objects of an image that was left out are left out too.

    Args:
        labels: COCO JSON of the evaluated images.
        classes: names in the order of the model's labels.
        metrics: with "voc", `VOC07` and `VOC12` besides.

    Raises:
        UsageError: something is wrong with the labels, or they hold no object.
    """

    def __init__(self, labels: Path, classes: Sequence[str], metrics: Sequence[str] = ("coco",)) -> None:
        self.results: list[tuple[int, np.ndarray]] = []
        dataset = load_labels(labels)
        self._where, self._classes, self._metrics = str(labels), tuple(classes), tuple(metrics)
        # numbers of our own, from 1, for images and categories: a float holds no id beyond 2**53, and COCO's
        # evaluation takes none that is negative
        categories = {category["name"]: category["id"] for category in dataset["categories"]}
        self._category = {categories[name]: number for number, name in enumerate(classes, start=1)}
        ids = sorted(image["id"] for image in dataset["images"])
        self._numbers = {id_: number for number, id_ in enumerate(ids, start=1)}
        self._images: dict[int, dict[str, Any]] = {}
        self._objects: dict[int, list[dict[str, Any]]] = {}
        for image in dataset["images"]:
            number = self._numbers[image["id"]]
            size = {"width": image["width"], "height": image["height"]}
            self._images[number], self._objects[number] = {"id": number, "file_name": "", **size}, []
        for box in dataset["annotations"]:
            self._objects[self._numbers[box["image_id"]]].append(box)
        self._compared: tuple[COCO, COCO, list[int]] | None = None
        self._shown: list[tuple[int, np.ndarray]] = []

    def process(self, samples: Iterable[dict[str, Any]]) -> None:
        """Keep each image's number and its detections as rows of x, y, w, h, score, label in `results`."""
        for sample in samples:
            found = sample["pred_instances"]
            boxes = found["bboxes"].double().cpu().numpy()
            rows = np.empty((len(boxes), 6))
            rows[:, :2], rows[:, 2:4] = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
            rows[:, 4] = found["scores"].cpu().numpy()
            rows[:, 5] = found["labels"].cpu().numpy()
            self.results.append((self._numbers[sample["img_id"]], rows))

    def of_all(self, shares: Sequence[list[tuple[int, np.ndarray]]]) -> Evaluation:
        """The metrics over the `results` of several processes; a model that finds nothing has AP 0.

        Raises:
            JobError: no image that holds an object was shown.
        """
        place = {number: place for place, number in enumerate(self._images)}
        # in the order of one process that sees all images
        results = sorted(chain(*shares), key=lambda found: place[found[0]])
        self._require_objects(number for number, _ in results)
        self._shown = results
        metrics, per_class = self._coco(results)
        if "voc" in self._metrics:
            metrics |= voc_metrics([self._boxes(*result) for result in results], len(self._classes))
        return Evaluation(_rounded(metrics), _rounded(per_class))

    def matches(self) -> Matches:
        """What each detection of the last `of_all` met.

        Raises:
            RuntimeError: there was none yet.
        """
        if self._compared is None:
            raise RuntimeError("matches() before of_all()")
        return matches_of(*self._compared, [*self._category.values()])

    def detections(self) -> Detections:
        """All detections of the last `of_all`, with the annotations of the same images.

        Raises:
            RuntimeError: there was none yet.
        """
        if not self._shown:
            raise RuntimeError("detections() before of_all()")
        shown = sorted(self._shown, key=lambda found: found[0])
        numbers = [number for number, _ in shown]
        rows = np.concatenate([found for _, found in shown])
        own = [(place, box) for place, number in enumerate(numbers) for box in self._objects[number]]
        objects = np.array([box["bbox"] for _, box in own], float).reshape(-1, 4)
        labels = [self._category[box["category_id"]] - 1 for _, box in own]
        return Detections(
            images=np.array(numbers, np.int32),
            image=np.repeat(np.arange(len(shown), dtype=np.int32), [len(found) for _, found in shown]),
            # the model's own numbers again: of single precision, before sides were taken from corners
            box=_corners(rows).astype(np.float32),
            score=rows[:, 4].astype(np.float32),
            label=rows[:, 5].astype(np.int16),
            object_image=np.array([place for place, _ in own], np.int32),
            object_box=_corners(objects),
            object_label=np.array(labels, np.int16),
            ignored=np.array([box["iscrowd"] for _, box in own], bool),
        )

    def of_each(self) -> dict[Any, float]:
        """AP of each image of the last `of_all`, by its id in the labels; see `resampling.of_each_image`.

        Raises:
            RuntimeError: there was none yet.
        """
        matches, ids = self.matches(), {number: id_ for id_, number in self._numbers.items()}
        found = zip(matches.images.tolist(), of_each_image(matches).tolist(), strict=True)
        return {ids[number]: precision for number, precision in found}

    def objects(self, image: Any) -> dict[int, dict[str, Any]]:
        """The annotations of an image that are objects to mmdet, as its samples hold them, by their place.

        Args:
            image: its id in the labels.
        """
        number = self._numbers[image]
        size = self._images[number]["width"], self._images[number]["height"]
        kept = enumerate(self._objects[number])
        return {place: box for place, box in kept if fate(box, *size) == "object"}

    def met(self) -> dict[Any, list[Met]]:
        """How the last `of_all` met the annotations of each image, in their order, by the image's id.

        Raises:
            RuntimeError: there was none yet.
        """
        if self._compared is None:
            raise RuntimeError("met() before of_all()")
        _, _, numbers = self._compared
        met, ids = met_of(*self._compared), {number: id_ for id_, number in self._numbers.items()}
        # in the order in which `_coco` numbered them
        places = iter(range(1, 1 + sum(len(self._objects[number]) for number in numbers)))
        return {
            ids[number]: [met.get(next(places), Met()) for _ in self._objects[number]] for number in numbers
        }

    def _require_objects(self, numbers: Iterable[int]) -> None:
        if not any(not box["iscrowd"] for number in numbers for box in self._objects[number]):
            raise JobError(
                "the evaluation labels hold no objects, or none in an image that can be read",
                where=self._where,
                fix="choose another split",
            )

    def _coco(self, results: list[tuple[int, np.ndarray]]) -> tuple[dict[str, float], dict[str, float]]:
        """COCO's metrics, and AP of each class."""
        numbers, rows, boxes = sorted(number for number, _ in results), [], []
        for number in numbers:
            for box in self._objects[number]:
                kept = {key: box[key] for key in ("bbox", "area", "iscrowd")}
                category = self._category[box["category_id"]]
                # from 1: COCO's evaluation marks a detection by the id of what it matched, and 0 is nothing
                ids = {"id": len(boxes) + 1, "image_id": number, "category_id": category}
                boxes.append(ids | kept)
        images = [self._images[number] for number in numbers]
        categories = [{"id": number, "name": name} for number, name in enumerate(self._classes, start=1)]
        truth = COCO({"images": images, "categories": categories, "annotations": boxes})
        for number, found in results:
            rows.append(np.column_stack([np.full(len(found), number), found[:, :5], found[:, 5] + 1]))
        self._compared = truth, truth.load_res(np.concatenate(rows)), numbers
        evaluation = Comparison(*self._compared[:2], "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        # (IoU thresholds from 0.50 by 0.05, recalls, classes, areas, detection limits up to 100)
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        every, small, medium, large = np.moveaxis(precision, 3, 0)
        areas = (every, every[0], every[5], small, medium, large)
        column = {category: place for place, category in enumerate(evaluation.params.cat_ids)}
        metrics = _points(dict(zip(NAMES, areas, strict=True)))
        classes = enumerate(self._classes, start=1)
        return metrics, _points({name: every[:, :, column[number]] for number, name in classes})

    def _boxes(self, number: int, found: np.ndarray) -> ImageBoxes:
        """One image for VOC's metrics: its corners, in the order of the labels."""
        objects = self._objects[number]
        boxes = np.array([box["bbox"] for box in objects], float).reshape(-1, 4)
        labels = [self._category[box["category_id"]] - 1 for box in objects]
        return ImageBoxes(
            found=np.hstack([_corners(found), found[:, 4:5]]),
            found_labels=found[:, 5].astype(int),
            boxes=_corners(boxes).astype(np.float32),
            labels=np.array(labels, int),
            ignored=np.array([box["iscrowd"] for box in objects], bool),
        )


def _corners(rows: np.ndarray) -> np.ndarray:
    """(n, 4) xyxy of rows that begin with x, y, w, h."""
    return np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]])


def _points(precision: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean over what has objects, which COCO marks by -1, in points; what has none at all is left out."""
    known = {name: values[values > -1] for name, values in precision.items()}
    return {name: 100 * float(values.mean()) for name, values in known.items() if values.size}


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}


def _detected(model: nn.Module, data: Any, images: int | None) -> tuple[list[Any], int | None]:
    """The samples with a model's detections, and how many images a forward the memory holds; None for all."""
    try:
        if images is None:
            return model.val_step(data), None
        ready = model.data_preprocessor(data, False)
        return [one for part in parts_of(ready, images) for one in model(**part, mode="predict")], images
    except RuntimeError as error:
        tried = min(images or sys.maxsize, len(data["data_samples"]))
        if tried == 1 or not is_out_of_memory(error):
            raise
    # not before the error has let go of what its forward held
    torch.cuda.empty_cache()
    return _detected(model, data, tried // 2)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, metric: CocoMetric, micro_batch: int | None = None
) -> Evaluation:
    """The metrics of a model in eval mode over the loaders of all processes; its mode is put back.

    Args:
        model: any detector.
        loader: this process's share of the images.
        metric: of these images; rank 0 may ask it for `matches` afterwards.
        micro_batch: images of one forward; None for all of a batch. Where a GPU does not hold them it is half
            of them, down to one. They are padded as the whole batch is, for convolutions see that.

    Raises:
        JobError: an image cannot be read, or none that holds an object can.
    """
    was_training = model.training
    ranks.share_buffers(model)
    model.eval()
    for data in batches_of(loader):
        samples, micro_batch = _detected(model, data, micro_batch)
        metric.process(sample.to_dict() for sample in samples)
    model.train(was_training)
    shares = ranks.gathered(metric.results)
    metric.results = []
    found: Evaluation = ranks.broadcast(metric.of_all(shares) if shares else None)
    return found
