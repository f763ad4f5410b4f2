"""What detections are worth: COCO's metrics, by hotcoco, and VOC's, behind mmengine's metric interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import COCO
from hotcoco import COCOeval as Comparison
from mmengine.evaluator import BaseMetric
from torch import nn
from torch.utils.data import DataLoader

from kdlab.datasets.coco import load_labels
from kdlab.errors import JobError
from kdlab.jobs.matches import Matches
from kdlab.training import ranks
from kdlab.training.data import batches_of
from kdlab.training.matching import matches_of
from kdlab.training.voc import ImageBoxes, voc_metrics

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoMetric(BaseMetric):
    """AP AP50 AP75 APs APm APl in points 0 to 100, and `class/<name>`; what has no objects is absent.

    Only images that were shown count: the objects of an image that was left out are left out too.

    Args:
        labels: COCO JSON of the evaluated images.
        classes: names in the order of the model's labels.
        metrics: with "voc", `VOC07` and `VOC12` besides.

    Raises:
        UsageError: something is wrong with the labels.
        JobError: they hold no objects, so there is nothing to measure.
    """

    default_prefix = ""

    def __init__(self, labels: Path, classes: Sequence[str], metrics: Sequence[str] = ("coco",)) -> None:
        super().__init__()
        dataset = load_labels(labels)
        self._where, self._classes, self._metrics = str(labels), tuple(classes), tuple(metrics)
        ids = {category["name"]: category["id"] for category in dataset["categories"]}
        self._category_ids = np.array([ids[name] for name in classes])
        self._categories = [{"id": number, "name": name} for name, number in ids.items()]
        # numbers of our own: a float holds no id beyond 2**53
        numbers = {
            number: place for place, number in enumerate(sorted(i["id"] for i in dataset["images"]), 1)
        }
        self._numbers = numbers
        self._sizes = {numbers[i["id"]]: (i["width"], i["height"]) for i in dataset["images"]}
        self._objects: dict[int, list[dict[str, Any]]] = {number: [] for number in self._sizes}
        for box in dataset["annotations"]:
            self._objects[numbers[box["image_id"]]].append(box)
        self._require_objects(self._sizes)
        self._compared: tuple[COCO, COCO, list[int]] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep each image's number and its detections as rows of x, y, w, h, score, label."""
        for sample in data_samples:
            found = sample["pred_instances"]
            boxes = found["bboxes"].double().cpu().numpy()
            rows = np.empty((len(boxes), 6))
            rows[:, :2], rows[:, 2:4] = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
            rows[:, 4] = found["scores"].cpu().numpy()
            rows[:, 5] = found["labels"].cpu().numpy()
            self.results.append((self._numbers[sample["img_id"]], rows))

    def of_all(self, shares: Sequence[list[tuple[int, np.ndarray]]]) -> dict[str, float]:
        """The metrics over what several processes have found, in the order of one that sees all images."""
        place = {number: place for place, number in enumerate(self._sizes)}
        return self.compute_metrics(sorted(chain(*shares), key=lambda found: place[found[0]]))

    def compute_metrics(self, results: list[tuple[int, np.ndarray]]) -> dict[str, float]:
        """The metrics over all images shown; a model that finds nothing has AP 0.

        Raises:
            JobError: no image that holds an object was shown.
        """
        self._require_objects(number for number, _ in results)
        found = self._coco(results)
        if "voc" in self._metrics:
            found |= voc_metrics([self._boxes(*result) for result in results], len(self._classes))
        return {name: round(value, 6) for name, value in found.items()}

    def matches(self) -> Matches:
        """What each detection of the last `compute_metrics` met.

        Raises:
            RuntimeError: nothing was computed yet.
        """
        if self._compared is None:
            raise RuntimeError("matches() before compute_metrics()")
        return matches_of(*self._compared, self._category_ids)

    def _require_objects(self, numbers: Iterable[int]) -> None:
        if not any(not box["iscrowd"] for number in numbers for box in self._objects[number]):
            raise JobError(
                "the evaluation labels hold no objects, or none in an image that can be read",
                where=self._where,
                fix="choose another split",
            )

    def _coco(self, results: list[tuple[int, np.ndarray]]) -> dict[str, float]:
        """COCO's metrics in points."""
        truth = COCO(self._truth([number for number, _ in results]))
        rows = [
            np.column_stack(
                [np.full(len(found), number), found[:, :5], self._category_ids[found[:, 5].astype(int)]]
            )
            for number, found in results
        ]
        self._compared = truth, truth.load_res(np.concatenate(rows)), sorted(number for number, _ in results)
        evaluation = Comparison(*self._compared[:2], "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        # (IoU thresholds from 0.50 by 0.05, recalls, classes, areas, detection limits up to 100)
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        every, small, medium, large = np.moveaxis(precision, 3, 0)
        found = dict(zip(NAMES, map(_mean, (every, every[0], every[5], small, medium, large)), strict=True))
        column = {category: place for place, category in enumerate(evaluation.params.cat_ids)}
        for name, category in zip(self._classes, self._category_ids, strict=True):
            found[f"class/{name}"] = _mean(every[:, :, column[category]])
        return {name: 100 * value for name, value in found.items() if value is not None}

    def _truth(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Labels of some images with what counts for boxes alone.

        Annotations count from 1 because COCO's evaluation marks a detection by the id of what it matched,
        and 0 there means nothing.
        """
        kept = ("category_id", "bbox", "area", "iscrowd")
        boxes = [(number, box) for number in sorted(numbers) for box in self._objects[number]]
        return {
            "images": [
                {
                    "id": number,
                    "width": self._sizes[number][0],
                    "height": self._sizes[number][1],
                    "file_name": "",
                }
                for number in sorted(numbers)
            ],
            "categories": self._categories,
            "annotations": [
                {"id": place, "image_id": number, **{key: box[key] for key in kept}}
                for place, (number, box) in enumerate(boxes, start=1)
            ],
        }

    def _boxes(self, number: int, found: np.ndarray) -> ImageBoxes:
        """One image for VOC's metrics: its corners, in the order of the labels."""
        objects = self._objects[number]
        boxes = np.array([box["bbox"] for box in objects], float).reshape(-1, 4)
        labels = [np.flatnonzero(self._category_ids == box["category_id"])[0] for box in objects]
        corners = np.hstack([found[:, :2], found[:, :2] + found[:, 2:4], found[:, 4:5]])
        return ImageBoxes(
            found=corners,
            found_labels=found[:, 5].astype(int),
            boxes=np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(np.float32),
            labels=np.array(labels, int),
            ignored=np.array([box["iscrowd"] for box in objects], bool),
        )


def summary(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a result says of a course of evaluations.

    Args:
        history: one entry an evaluation: "epoch", "iteration", the metrics, and the AP of each class.

    Returns:
        "metrics" and "per_class" of the last, "best", the entry of highest AP, and "history" without classes.
    """
    last = history[-1]
    course = [{name: value for name, value in entry.items() if "/" not in name} for entry in history]
    return {
        "metrics": {name: value for name, value in course[-1].items() if name not in ("epoch", "iteration")},
        "per_class": {name.removeprefix("class/"): last[name] for name in last if "/" in name},
        "best": max(course, key=lambda entry: entry["AP"]),
        "history": course,
    }


def _mean(precision: np.ndarray) -> float | None:
    """Mean over what has objects, which COCO marks by -1; None where nothing has."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    metric: CocoMetric,
    keep: Callable[[Matches], None] | None = None,
) -> dict[str, float]:
    """The metrics of a model in eval mode over the loaders of all processes; its mode is put back.

    Args:
        model: any detector.
        loader: this process's share of the images.
        metric: of these images.
        keep: called on rank 0 with what each detection met, which takes longer than the metrics.

    Raises:
        JobError: an image cannot be read, or none that holds an object can.
    """
    was_training = model.training
    ranks.share_buffers(model)
    model.eval()
    for data in batches_of(loader):
        metric.process(data, [sample.to_dict() for sample in model.val_step(data)])
    model.train(was_training)
    shares = ranks.gathered(metric.results)
    metric.results = []
    found = metric.of_all(shares) if shares else None
    if shares and keep:
        keep(metric.matches())
    return ranks.told(found)
