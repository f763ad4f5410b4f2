"""A trained detector as a function of one image: of a finished job, its exported weights, or an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from torch import nn
from torchvision.ops import batched_nms

from kdlab import detectors
from kdlab.datasets._images import Pixels
from kdlab.detectors.mmdet_config import see
from kdlab.errors import JobError, UsageError
from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import EvaluateSpec
from kdlab.training import checkpoints, weights
from kdlab.training.augmenting import resizing
from kdlab.training.data import META_KEYS

NMS_IOU = 0.6
"""Of ONNX files that end before NMS: they do not say which one their detector was measured with."""
MOST = 100
"""Detections of an image that such a file gives, as COCO counts them."""
_FED_BY = (
    "classes",
    "mean",
    "std",
    "channels",
    "pad_value",
    "size_divisor",
    "image_scale",
    "score_threshold",
)
"""Metadata of an ONNX file that kdlab wrote, without which nobody knows how to feed it."""

Detections = dict[str, torch.Tensor]
"""Of one image, on the CPU: "bboxes" (D, 4) xyxy in its pixels, "scores" (D,), "labels" (D,) int64."""


class Detector(Protocol):
    """Finds objects in one image, (H, W, 3) BGR uint8; `classes` are what its labels stand for."""

    classes: tuple[str, ...]

    def __call__(self, pixels: Pixels) -> Detections:
        """The detections of one image, above the detector's own threshold and after its NMS."""


def of_job(folder: Path) -> Detector:
    """The detector that a finished job left, fed as in its evaluation.

    Raises:
        JobError: the weights are missing or not the job's.
    """
    paths = JobPaths(folder)
    job = read_job(paths)
    see(job.inputs.modules)
    classes = job.inputs.dataset.classes
    model = detectors.build(job.spec.model, len(classes))
    checkpoints.load_finished(model, paths)
    if isinstance(job.spec, EvaluateSpec):
        model.data_preprocessor.pad_size_divisor = job.spec.pad_divisor
    pack = {"type": "PackDetInputs", "meta_keys": META_KEYS}
    return Trained(model, [resizing(job.spec.dataset.scale), pack], classes)


def of_file(path: Path) -> Detector:
    """The detector of an exported file: ONNX, or weights next to the config that `kdlab export` writes.

    Raises:
        UsageError: there is no config, or the file does not say how to feed it.
        JobError: the file is broken, or the weights are not the config's.
    """
    if path.suffix == ".onnx":
        return Onnx(path)
    config = path.with_suffix(".py")
    if not config.is_file():
        what, fix = "there is no mmdet config next to the weights", "kdlab export JOB writes both"
        raise UsageError(what, where=str(config), fix=fix)
    try:
        cfg = Config.fromfile(config)
        model, pipeline, classes = MODELS.build(cfg.model), cfg.test_pipeline[1:], tuple(cfg.classes)
    except Exception as error:  # it is Python, and can raise anything
        got = f"{type(error).__name__}: {error}"[:300]
        fix = "kdlab export JOB --force writes it anew"
        raise UsageError(
            "this is no config as kdlab export writes it", where=str(config), got=got, fix=fix
        ) from error
    try:
        model.load_state_dict(weights.read(path).tensors)
    except RuntimeError as error:
        what, got = "the weights do not fit the config next to them", str(error)[:300]
        raise JobError(what, where=str(path), got=got, fix="kdlab export JOB --force writes both") from error
    return Trained(model, pipeline, classes)


class Trained:
    """An mmdet detector in eval mode, on the GPU where torch sees one.

    Args:
        model: it.
        pipeline: mmdet's transforms from an image to an input.
        classes: of its labels.
    """

    def __init__(self, model: nn.Module, pipeline: list[Any], classes: tuple[str, ...]) -> None:
        self.classes, self._pipeline = classes, Compose(pipeline)
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").train(False)

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Detections:
        """As `Detector`."""
        sample = self._pipeline(_sample(pixels))
        batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
        found = self._model.val_step(batch)[0].pred_instances
        return {name: found[name].cpu() for name in ("bboxes", "scores", "labels")}


class Onnx:
    """A detector in ONNX Runtime, on the CPU, fed as the metadata of its file say.

    Args:
        path: a file of `kdlab export --onnx`, with or without `--nms`.

    Raises:
        UsageError: it is no ONNX file, or one that does not say how to feed it.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            what, got = "ONNX Runtime cannot load this file", str(error)[:300]
            raise UsageError(what, where=str(path), got=got, fix="export it again: kdlab export") from error
        words = self._session.get_modelmeta().custom_metadata_map
        if missing := [key for key in _FED_BY if key not in words]:
            what, fix = "this ONNX file does not say how to feed it", "kdlab export JOB --onnx writes one"
            raise UsageError(what, where=str(path), got=f"no metadata {', '.join(missing)}", fix=fix)
        self._said = {key: json.loads(words[key]) for key in _FED_BY}
        self.classes = tuple(self._said["classes"])
        # numbers where the size is fixed, names where it is free
        self._size = [side for side in self._session.get_inputs()[0].shape[2:] if isinstance(side, int)]
        self._resize = TRANSFORMS.build(resizing(self._said["image_scale"]))

    def __call__(self, pixels: Pixels) -> Detections:
        """As `Detector`; where the file ends before NMS, that is done here, at `NMS_IOU` in each class."""
        resized = self._resized(pixels)["img"]
        given = self._session.run(None, {"images": self._input(resized)})
        boxes, scores, *after_nms = map(torch.from_numpy, given)
        boxes, scores, labels = after_nms or (boxes[0], scores[0], None)
        # to what the file was given without its padding, which it does not know
        limits = boxes.new_tensor(2 * resized.shape[1::-1])
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        if labels is None:
            boxes, scores, labels = self._kept(boxes, scores)
        boxes = boxes * boxes.new_tensor(2 * pixels.shape[1::-1]) / limits
        return {"bboxes": boxes, "scores": scores, "labels": labels.long()}

    def _resized(self, pixels: Pixels) -> dict[str, Any]:
        """The image in the size of the evaluation; smaller where the file's fixed size does not hold that."""
        found: dict[str, Any] = self._resize(_sample(pixels))
        if not self._size:
            return found
        fits = min(side / had for side, had in zip(self._size, found["img"].shape[:2], strict=True))
        if fits >= 1:
            return found
        width, height = (int(fits * side) for side in found["img"].shape[1::-1])
        smaller = {"type": "Resize", "keep_ratio": False, "scale": (max(1, width), max(1, height))}
        made: dict[str, Any] = TRANSFORMS.build(smaller)(_sample(pixels))
        return made

    def _input(self, resized: Pixels) -> np.ndarray:
        """(1, 3, H, W) float32: normalised, then padded on the right and below."""
        said = self._said
        image = resized[..., ::-1] if said["channels"] == "RGB" else resized
        image = (image - np.float32(said["mean"])) / np.float32(said["std"])
        divisor = said["size_divisor"]
        height, width = self._size or [-(-side // divisor) * divisor for side in image.shape[:2]]
        padded = np.full((1, 3, height, width), said["pad_value"], np.float32)
        padded[0, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        return padded

    def _kept(self, boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of boxes (N, 4) and scores (N, K) those above the threshold that NMS keeps, the best first.

        Boxes without extent, which lay outside the image, are dropped.
        """
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1, keepdim=True)
        row, label = ((scores > self._said["score_threshold"]) & inside).nonzero(as_tuple=True)
        boxes, scores = boxes[row], scores[row, label]
        kept = batched_nms(boxes, scores, label, NMS_IOU)[:MOST]
        return boxes[kept], scores[kept], label[kept]


def _sample(pixels: Pixels) -> dict[str, Any]:
    """An image as mmdet's transforms take it."""
    size = pixels.shape[:2]
    return {"img": pixels, "img_shape": size, "ori_shape": size, "img_id": 0, "img_path": ""}
