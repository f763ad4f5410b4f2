"""A trained student beside its teacher on the validation images: the job of kind "diagnose"."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor, nn

from kdlab import detectors
from kdlab.detectors.base import Adapter, Recording
from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs, Facts
from kdlab.jobs.diagnosis import RANKINGS, Diagnosis, Finds
from kdlab.jobs.events import JobEvaluated, JobStarted
from kdlab.methods.rm import box_scores
from kdlab.training import checkpoints
from kdlab.training.attempt import Attempt
from kdlab.training.data import batches_of
from kdlab.training.differences import Differences
from kdlab.training.distiller import make_batch
from kdlab.training.evaluation import CocoMetric
from kdlab.training.kept import kept, priors_behind
from kdlab.training.ranking import kendall_tau, same_top
from kdlab.training.reported import ReportedLoader
from kdlab.training.work import Work


def lacking(student: Facts, teacher: Facts) -> dict[str, str]:
    """What cannot be told of a pair, each with the reason: "ranking", "predictions", "levels"."""
    found = {}
    models = {"student": student, "teacher": teacher}
    blind = [role for role, one in models.items() if {"cls_maps", "boxes"} - set(one.provides)]
    if blind:
        told = ", ".join(f"{role} {models[role].detector}" for role in blind)
        reason = f"there is no class map over priors: {told}"
        found = dict.fromkeys(("ranking", "predictions"), reason)
    else:
        if student.priors != teacher.priors:
            found["ranking"] = "student and teacher have other priors"
        if student.anchors != teacher.anchors:
            counts = f"{student.anchors} and {teacher.anchors}"
            found["predictions"] = f"student and teacher have {counts} priors a cell"
    if not set(student.strides) & set(teacher.strides):
        strides = f"{[*student.strides]} and {[*teacher.strides]}"
        found["levels"] = f"student and teacher share no stride: {strides}"
    return found


@dataclass(frozen=True)
class View:
    """One model's view of a batch: what it gave, the samples as it saw them, its detections of each image."""

    caught: Recording
    outputs: DetectorOutputs
    inputs: Tensor
    samples: list[Any]
    found: list[InstanceData]


class Observer:
    """A trained detector in eval mode, measured while it is looked at.

    Args:
        model: it.
        device: where it is to be.
        metric: of the validation images.
    """

    def __init__(self, model: nn.Module, device: torch.device, metric: CocoMetric) -> None:
        self.model, self.metric = model.to(device).eval(), metric
        self.adapter: Adapter = detectors.adapt(model)

    def features(self, data: dict[str, Any]) -> tuple[DetectorOutputs, list[Any]]:
        """Its neck's maps of a batch as a loader gives it, and the samples."""
        ready = self._ready(data)
        return self.adapter.observe(ready["inputs"], with_head=False), ready["data_samples"]

    def view(self, data: dict[str, Any]) -> View:
        """All of a batch; its detections are kept for the metric."""
        ready = self._ready(data)
        with self.adapter.recording() as caught:
            samples = self.model.predict(ready["inputs"], ready["data_samples"])
        self.metric.process(sample.to_dict() for sample in samples)
        found = [sample.pred_instances for sample in samples]
        return View(caught, self.adapter.outputs(caught), ready["inputs"], samples, found)

    def assignment(self, view: View) -> Assignment:
        """Which prior serves which object, as the loss of this detector's head decides."""
        with self.adapter.capturing(view.caught):
            self.adapter.head.loss(view.caught.feats, view.samples)
        return self.adapter.assignment(view.caught, view.outputs, view.samples)

    def _ready(self, data: dict[str, Any]) -> dict[str, Any]:
        # a copy, because a preprocessor changes what it is given
        return self.model.data_preprocessor(dict(data), False)


class Diagnoser(Work):
    """The comparison of a student with its teacher, object by object and cell by cell.

    The images are padded as the student pads them, so that both see the same geometry. Where a pair shares no
    priors, no class maps or no stride, what needs them is left out and the result says why.
    """

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        student = detectors.build(self.spec.model, len(self.reading.classes))
        checkpoints.load_finished(student, self.parent(self.job.parents[1]))
        teacher = self.teacher(self.spec.teacher)
        teacher.data_preprocessor.pad_size_divisor = student.data_preprocessor.pad_size_divisor
        self.models = [Observer(model, self.device, self.reading.metric()) for model in (student, teacher)]
        facts = [observer.adapter.facts for observer in self.models]
        self.lacks = lacking(*facts)
        self.loader = self.reading.validation()
        self.images = len(self.loader.dataset)
        self.differences = Differences(
            *facts, predictions="predictions" not in self.lacks, images=self.images, device=self.device
        )
        self._ids: list[Any] = []
        self._files: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._rows: list[dict[str, np.ndarray]] = []

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Look at all images, before that at their features alone where both share levels; as `Work.run`."""
        emit, may_write = self.attempt.emit, self.attempt.may_write
        emit(JobStarted, device=str(self.device), epochs=1, iterations=self.images)
        began, shares_levels = time.monotonic(), bool(self.differences.levels)
        batches = ReportedLoader(self.loader, self.attempt, passes=1 + shares_levels)
        if shares_levels:
            for data in batches_of(batches):
                (student, samples), (teacher, _) = (observer.features(data) for observer in self.models)
                self.differences.fit(student, teacher, _shapes(samples, self.device))
            self.differences.solve()
        for data in batches_of(batches):
            self._see(*(observer.view(data) for observer in self.models))
        evaluations = [observer.metric.of_all([observer.metric.results]) for observer in self.models]
        diagnosis = self._diagnosis()
        may_write()
        diagnosis.write(self.paths.diagnosis)
        found = replace(evaluations[0], epoch=1, iteration=self.images)
        emit(JobEvaluated, epoch=1, iteration=self.images, metrics=found.metrics)
        wall_s = time.monotonic() - began
        return {
            "last": found,
            "best": replace(found, per_class={}),
            "timing": {"image_s": wall_s / self.images},
            "diagnosis": {
                **dict(zip(("teacher", "student"), self.job.parents, strict=True)),
                "teacher_AP": evaluations[1].metrics["AP"],
                **diagnosis.summary(),
                "levels": self.differences.figures(),
                "lacks": self.lacks,
            },
            "data": self.reading.report(),
            "wall_s": wall_s,
        }

    def _see(self, *views: View) -> None:
        """Take in both models' view of a batch, the student's first."""
        student, teacher = views
        if self.differences.levels:
            shapes = _shapes(student.samples, self.device)
            self.differences.see(student.outputs, teacher.outputs, shapes)
        batch = make_batch(student.samples, student.inputs, 0, 1)
        ranked = self._ranked(batch, student, teacher)
        for image, sample in enumerate(student.samples):
            objects = self.models[0].metric.objects(sample.img_id)
            corner_sizes = torch.tensor([one["bbox"] for one in objects.values()], device=self.device)
            boxes = _corners(corner_sizes.view(-1, 4).float())
            labels = sample.gt_instances.labels
            rows = {
                "image": np.full(len(objects), len(self._files), np.int32),
                "place": np.array([*objects], np.int32),
                "label": labels.cpu().numpy().astype(np.int16),
                "box": boxes.cpu().numpy(),
                "area": np.array([one["area"] for one in objects.values()], np.float32),
                "overlap": _overlap(boxes).cpu().numpy(),
            }
            own = (batch.gt_image == image).cpu().numpy()
            rows |= {name: values[own] for name, values in ranked.items()}
            for role, view in zip(("student", "teacher"), views, strict=True):
                found = self._finds(view, image, boxes, labels)
                rows |= {f"{role}.{name}": values.cpu().numpy() for name, values in found.items()}
            self._rows.append(rows)
            self._ids.append(sample.img_id)
            folder = f"{self.reading.files.val.images}/"
            self._sizes.append(sample.ori_shape[:2])
            self._files.append(sample.img_path.removeprefix(folder))

    def _ranked(self, batch: Batch, student: View, teacher: View) -> dict[str, np.ndarray]:
        """How far both models' rankings of each object's positives agree; nothing of a pair without them."""
        count = len(batch.gt_labels)
        shape = count, len(RANKINGS)
        found = {
            "positives": np.zeros(count, np.int32),
            "tau": np.full(shape, np.nan, np.float32),
            "top": np.full(shape, np.nan, np.float32),
        }
        if "ranking" in self.lacks or not count:
            return found
        image, prior, group = self.models[0].assignment(student).positives(batch)
        owner = group.cpu().numpy()
        found["positives"] += np.bincount(owner, minlength=count).astype(np.int32)
        mine, theirs = (scores(view.outputs, batch, image, prior, group) for view in (student, teacher))
        for place, name in enumerate(RANKINGS):
            pair = mine[name], theirs[name]
            found["tau"][:, place] = kendall_tau(*pair, owner, count)
            found["top"][:, place] = same_top(*pair, owner, count)
        return found

    def _finds(self, view: View, image: int, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The kept detection of each object of an image, and the prior behind it, in pixels of the image."""
        found = view.found[image]
        chosen = kept(found.bboxes, found.scores, found.labels, boxes, labels)
        has = (chosen >= 0).nonzero().squeeze(1)
        best = found[chosen[has]]
        made = {
            "score": boxes.new_full((len(boxes),), torch.nan),
            "box": torch.full_like(boxes, torch.nan),
            "prior": torch.full_like(labels, -1),
            "prior_box": torch.full_like(boxes, torch.nan),
        }
        made["score"][has], made["box"][has] = best.scores, best.bboxes
        if "ranking" in self.lacks:
            return made
        sample = view.samples[image]
        scale = boxes.new_tensor(sample.scale_factor).repeat(2)
        behind = priors_behind(
            best.bboxes * scale, best.scores, best.labels, view.outputs, image, sample.img_shape[:2]
        )
        made["prior"][has] = behind
        known = has[behind >= 0]
        places = view.outputs.priors.boxes[behind[behind >= 0]]
        # a point is a box without extent
        made["prior_box"][known] = (places if places.shape[1] == 4 else places.repeat(1, 2)) / scale
        return made

    def _diagnosis(self) -> Diagnosis:
        """All rows, with how often the evaluation matched each object."""
        columns = {name: np.concatenate([rows[name] for rows in self._rows]) for name in self._rows[0]}
        finds = {}
        for role, observer in zip(("student", "teacher"), self.models, strict=True):
            met = observer.metric.met()
            places = zip(columns["image"], columns["place"], strict=True)
            own = [met[self._ids[image]][place] for image, place in places]
            finds[role] = Finds(
                np.array([one.times for one in own], np.uint8),
                np.array([one.precision for one in own], np.float32),
                **{name: columns.pop(f"{role}.{name}") for name in ("score", "box", "prior", "prior_box")},
            )
        images = np.array(self._files, str), np.array(self._sizes, np.int32)
        return Diagnosis(*images, **columns, **finds, maps=self.differences.maps())


def scores(
    outputs: DetectorOutputs, batch: Batch, image: Tensor, prior: Tensor, group: Tensor
) -> dict[str, np.ndarray]:
    """(P,) what each positive is ranked by, one array a name of `RANKINGS`.

    Args:
        outputs: of one model.
        batch: its ground truth.
        image: (P,) of each positive.
        prior: (P,) its flat place.
        group: (P,) its object, counted over the batch.
    """
    labels = batch.gt_labels[group]
    score = outputs.gather_logits(image, prior).gather(1, labels[:, None]).squeeze(1).sigmoid()
    iou = box_scores(outputs, batch, image, prior, group)
    return {
        name: values.double().cpu().numpy()
        for name, values in zip(RANKINGS, (score, iou, score * iou), strict=True)
    }


def _shapes(samples: list[Any], device: torch.device) -> Tensor:
    """(B, 2) height and width of the images without padding."""
    return torch.tensor([sample.img_shape[:2] for sample in samples], device=device)


def _corners(boxes: Tensor) -> Tensor:
    """(G, 4) xyxy of corners and sizes."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def _overlap(boxes: Tensor) -> Tensor:
    """(G,) the largest IoU of each of an image's objects with another one; 0 of one alone."""
    if len(boxes) < 2:
        return boxes.new_zeros(len(boxes))
    return bbox_overlaps(boxes, boxes).fill_diagonal_(0).amax(1)
