"""COCO's metrics, by hotcoco, behind mmengine's metric interface."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import COCO
from hotcoco import COCOeval as Comparison
from mmengine.evaluator import BaseMetric
from torch import nn
from torch.utils.data import DataLoader

from kdlab.errors import JobError
from kdlab.training.data import batches_of

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoMetric(BaseMetric):
    """AP AP50 AP75 APs APm APl in points 0 to 100, and `class/<name>`; what has no objects is absent.

    Args:
        labels: COCO JSON of the evaluated images.
        classes: names in the order of the model's labels.

    Raises:
        JobError: the labels hold no objects, so there is nothing to measure.
    """

    default_prefix = ""

    def __init__(self, labels: Path, classes: Sequence[str]) -> None:
        super().__init__()
        dataset = json.loads(labels.read_text())
        if not any(not annotation.get("iscrowd") for annotation in dataset["annotations"]):
            raise JobError(
                "the evaluation labels hold no objects", where=str(labels), fix="choose another split"
            )
        self._ground_truth = COCO(dataset)
        self._classes = tuple(classes)
        ids = {category["name"]: category["id"] for category in dataset["categories"]}
        self._category_ids = np.array([ids[name] for name in classes])

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep each image's detections as rows of image, x, y, w, h, score, category."""
        for sample in data_samples:
            found = sample["pred_instances"]
            boxes = found["bboxes"].double().cpu().numpy()
            rows = np.empty((len(boxes), 7))
            rows[:, 0] = sample["img_id"]
            rows[:, 1:3], rows[:, 3:5] = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
            rows[:, 5] = found["scores"].cpu().numpy()
            rows[:, 6] = self._category_ids[found["labels"].cpu().numpy()]
            self.results.append(rows)

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """The metrics over all rows; a model that finds nothing has AP 0."""
        detections = self._ground_truth.load_res(np.concatenate(results))
        evaluation = Comparison(self._ground_truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        # (IoU thresholds from 0.50 by 0.05, recalls, classes, areas, detection limits up to 100)
        precision = np.asarray(evaluation.eval["precision"])[..., -1]
        every, small, medium, large = np.moveaxis(precision, 3, 0)
        found = dict(zip(NAMES, map(_mean, (every, every[0], every[5], small, medium, large)), strict=True))
        column = {category: place for place, category in enumerate(evaluation.params.cat_ids)}
        for name, category in zip(self._classes, self._category_ids, strict=True):
            found[f"class/{name}"] = _mean(every[:, :, column[category]])
        return {name: round(100 * value, 6) for name, value in found.items() if value is not None}


def _mean(precision: np.ndarray) -> float | None:
    """Mean over what has objects, which COCO marks by -1; None where nothing has."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, metric: CocoMetric) -> dict[str, float]:
    """The metrics of a model in eval mode over a loader; the mode is put back."""
    was_training = model.training
    model.eval()
    for data in batches_of(loader):
        metric.process(data, [sample.to_dict() for sample in model.val_step(data)])
    model.train(was_training)
    return metric.evaluate(size=len(loader.dataset))
