"""kdlab beside what it builds on, in turns in one process: `python -m tests.benchmarks.anchors [--rounds N]`.

- A step with LD: mmdet's own distilling detector (`KnowledgeDistillationSingleStageDetector` with `LDHead`)
  against kdlab's `ld` on the same region, the same pair, batch and optimiser.
- A step of a student alone: mmdet's `train_step` in a plain loop over a loader against kdlab's loop, which
  reads losses, reports them and writes checkpoints.
- COCO's metrics of 5,000 images with 80 classes and 100 detections each: pycocotools against hotcoco, through
  kdlab's own metric.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval as Comparison

import kdlab.mmcv_ops  # noqa: F401 - from here on mmdet finds its compiled operators
from kdlab import detectors
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import MethodSettings
from kdlab.training.attempt import Attempt
from kdlab.training.distiller import Distiller
from kdlab.training.evaluation import CocoMetric
from kdlab.training.loop import TrainingLoop
from kdlab.training.optimising import build_optimiser
from tests.stubs.jobs import make, model, schedule

PX, IMAGES, OBJECTS, DIGITS = 64, 8, 3, 10
VALIDATION, CLASSES, FOUND = 5000, 80, 100
STUDENT = model(strides=[8, 16, 32], neck_channels=32)
TEACHER = model(strides=[8, 16, 32], neck_channels=32, width=16)
LD_OF_MMDET = {"type": "KnowledgeDistillationKLDivLoss", "loss_weight": 0.25, "T": 10}


class Batches(list[dict[str, Any]]):
    """A loader whose batches lie in memory."""

    batch_sampler = property(lambda self: self)
    dataset = None

    def start_at(self, _epoch: int, _batch: int) -> None:
        """Always from the first."""


def batch() -> dict[str, Any]:
    """Noise with a few objects an image, as a loader gives it."""
    from mmdet.structures import DetDataSample  # finds its operators once kdlab is imported

    samples = []
    for _ in range(IMAGES):
        facts = {"img_shape": (PX, PX), "ori_shape": (PX, PX), "scale_factor": (1.0, 1.0)}
        sample, corner = DetDataSample(metainfo=facts), torch.rand(OBJECTS, 2) * 40
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + 22], 1), labels=torch.randint(DIGITS, (OBJECTS,))
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    images = [torch.randint(0, 256, (3, PX, PX), dtype=torch.uint8) for _ in range(IMAGES)]
    return {"inputs": images, "data_samples": samples, "broken": []}


def mmdets_ld() -> torch.nn.Module:
    """mmdet's detector that distils LD, of the same pair."""
    from mmdet.registry import MODELS

    config = ConfigDict(detectors.config(STUDENT, DIGITS).model)
    config.update(type="KnowledgeDistillationSingleStageDetector")
    config.teacher_config = {"model": detectors.config(TEACHER, DIGITS).model}
    config.bbox_head.update(type="LDHead", loss_ld=LD_OF_MMDET)
    return MODELS.build(config)


def kdlabs_ld() -> Distiller:
    """kdlab's, where mmdet has the loss: at the positives, as a sum."""
    ld = MethodSettings(method="ld", weight=1.0, options={"region": "main", "parity": True})
    student, teacher = (detectors.build(spec, DIGITS) for spec in (STUDENT, TEACHER))
    made = Distiller(student, {"ld": ld}, teacher)
    # one step in fifty looks at shares of the gradient besides, the first among them
    made.iteration, made.max_iterations = 1, 1000
    return made


def in_turns(rounds: int, **works: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each piece of work, which take turns; the first tenth warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + rounds // 10):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - began)
    return {name: seconds[rounds // 10 :] for name, seconds in found.items()}


def say(what: str, found: dict[str, list[float]], unit_s: float, unit: str) -> None:
    """One line: medians, and the ratio of the first to the second with its quartiles over the turns."""
    (name, own), (anchor, others) = found.items()
    low, middle, high = np.quantile(np.divide(own, others), (0.25, 0.5, 0.75))
    times = f"{name} {median(own) / unit_s:.1f} {unit}, {anchor} {median(others) / unit_s:.1f} {unit}"
    print(f"{what}: {times}, ratio {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


def distilling(rounds: int) -> None:
    """A step with LD."""
    works = {}
    for name, made in {"kdlab": kdlabs_ld(), "mmdet": mmdets_ld()}.items():
        made.train()
        works[name] = partial(made.train_step, batch(), build_optimiser(made, schedule()))
    say("step with LD, GFL", in_turns(rounds, **works), 1e-3, "ms")


def training(rounds: int) -> None:
    """A student's epoch of 20 steps, checkpoint at its end included."""
    batches = Batches(batch() for _ in range(20))
    with tempfile.TemporaryDirectory() as folder:
        job = make("student-1", schedule=dict(schedule(epochs=100_000, eval_every=0)))
        attempt = Attempt(job, JobPaths(Path(folder)))
        loop = TrainingLoop(Distiller(detectors.build(STUDENT, DIGITS)), batches, attempt, None)
        plain = detectors.build(STUDENT, DIGITS).train()
        optim = build_optimiser(plain, schedule())

        def steps() -> None:
            for data in batches:
                plain.train_step({"inputs": data["inputs"], "data_samples": data["data_samples"]}, optim)
            for data in batches:
                data["broken"] = []

        say("epoch of 20 steps", in_turns(rounds // 10, kdlab=loop._run_epoch, mmdet=steps), 1e-3, "ms")


def detections(random: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels of as many images as COCO has for validation, and a model's detections: half near an object."""
    names = [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
    images = [
        {"id": number + 1, "file_name": f"{number}.jpg", "width": 640, "height": 480}
        for number in range(VALIDATION)
    ]
    ids, boxes, samples = itertools.count(1), [], []
    for image in images:
        objects = np.hstack([random.uniform(0, 400, (7, 2)), random.uniform(8, 200, (7, 2))])
        labels = random.integers(CLASSES, size=7)
        for box, label in zip(objects, labels, strict=True):
            facts = {"category_id": int(label) + 1, "bbox": box.tolist(), "area": float(box[2] * box[3])}
            boxes.append({"id": next(ids), "image_id": image["id"], "iscrowd": 0, **facts})
        near = random.integers(7, size=FOUND)
        found = objects[near] + random.normal(0, 20, (FOUND, 4)) * (random.random((FOUND, 1)) < 0.9)
        found[:, 2:] = np.clip(found[:, 2:], 4, None)
        found = np.hstack([found[:, :2], found[:, :2] + found[:, 2:]])
        told = np.where(random.random(FOUND) < 0.5, labels[near], random.integers(CLASSES, size=FOUND))
        result = {"bboxes": torch.from_numpy(found), "labels": torch.from_numpy(told)}
        samples.append(
            {
                "img_id": image["id"],
                "pred_instances": {**result, "scores": torch.from_numpy(random.random(FOUND))},
            }
        )
    return {"images": images, "annotations": boxes, "categories": names}, samples


def measuring(rounds: int) -> None:
    """The metrics of a validation."""
    labels, samples = detections(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.json"
        path.write_text(json.dumps(labels))
        metric = CocoMetric(path, [one["name"] for one in labels["categories"]])
        metric.process(samples)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
        rows = np.concatenate(
            [
                np.column_stack([np.full(len(found), number), found[:, :5], found[:, 5] + 1])
                for number, found in metric.results
            ]
        )
        found: dict[str, float] = {}

        def anchor() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = Comparison(truth, truth.loadRes(rows), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            found["pycocotools"] = 100 * evaluation.stats[0]

        def own() -> None:
            found["kdlab"] = metric.of_all([metric.results]).metrics["AP"]

        seconds = in_turns(rounds, kdlab=own, pycocotools=anchor)
        say(f"metrics of {VALIDATION} images", seconds, 1, "s")
        print(f"  AP: kdlab {found['kdlab']:.6f}, pycocotools {found['pycocotools']:.6f}", flush=True)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distilling(rounds)
    training(rounds)
    measuring(max(1, rounds // 30))


if __name__ == "__main__":
    main()
