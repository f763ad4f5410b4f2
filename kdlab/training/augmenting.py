"""Steps of augmentation -> mmdet's transforms, some of which draw other images into one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mmdet.registry import TRANSFORMS
from mmengine.dataset import BaseDataset

from kdlab.datasets._images import UnreadableError
from kdlab.jobs import augment
from kdlab.jobs.augment import GREY, AnyStep

_TILES = 2  # of a mosaic, in each direction

Config = dict[str, Any]


def stages(
    steps: Sequence[AnyStep],
    scale: Sequence[int] | None,
    reading: Sequence[Callable[[Any], Any]],
    *,
    mixing: bool,
) -> list[Callable[[Any], Any]]:
    """The transforms between the reading of an image and its flip.

    Args:
        steps: what is done, in this order.
        scale: (width, height) of `dataset.scale`.
        reading: how those images are read that are mixed into one.
        mixing: with the steps that mix images.
    """
    made = []
    for config in configs(steps, scale, mixing=mixing):
        transform = TRANSFORMS.build(config)
        made.append(Mixed(transform, reading) if hasattr(transform, "get_indexes") else transform)
        if config["type"] == "PhotoMetricDistortion":
            made.append(_whole_numbers)
    if made and steps:
        made.append(_with_objects)
    return made


def _whole_numbers(results: dict[str, Any]) -> dict[str, Any]:
    """The image in 8 bits again, as steps behind it expect."""
    return results | {"img": np.ascontiguousarray(results["img"].clip(0, 255), np.uint8)}


def _with_objects(results: dict[str, Any]) -> dict[str, Any] | None:
    """The image if an object is left in it; else mmdet's dataset draws another one."""
    return results if len(results["gt_bboxes"]) else None


def configs(steps: Sequence[AnyStep], scale: Sequence[int] | None, *, mixing: bool) -> list[Config]:
    """The same as mmdet's configs."""
    chosen = [one for one in steps if mixing or not one.mixes]
    found = [] if any(one.sized for one in chosen) else [resizing(scale)]
    canvas = 1
    for step in chosen:
        found += _CONFIGS[step.step](step, scale, canvas)
        if step.step == "mosaic":
            canvas = _TILES
        elif step.step in ("random_affine", "random_crop", "random_resize_crop", "multi_scale"):
            canvas = 1
    if canvas > 1:
        found.append(resizing(scale))
    if chosen:
        found.append({"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False})
    return found


def resizing(scale: Sequence[int] | None) -> Config:
    """mmdet's `Resize` to fit (width, height), or to the size that images have."""
    size = {"scale": tuple(scale)} if scale else {"scale_factor": 1.0}
    return {"type": "Resize", "keep_ratio": True, **size}


def _multi_scale(step: augment.MultiScale, scale: Any, _canvas: int) -> Iterator[Config]:
    drawn = {"scale": list(step.scales)} if step.scales else {"scale": scale, "ratio_range": step.ratio}
    yield {"type": "RandomResize", "keep_ratio": True, **drawn}


def _random_crop(step: augment.RandomCrop, scale: Any, _canvas: int) -> Iterator[Config]:
    yield {"type": "RandomCrop", "crop_size": tuple(step.size or scale)}


def _random_resize_crop(step: augment.RandomResizeCrop, scale: Any, canvas: int) -> Iterator[Config]:
    whole = tuple(canvas * side for side in scale)
    yield {"type": "RandomResize", "keep_ratio": True, "scale": whole, "ratio_range": step.ratio}
    yield {"type": "RandomCrop", "crop_size": tuple(scale)}


def _mosaic(_step: augment.Mosaic, scale: Any, _canvas: int) -> Iterator[Config]:
    yield {"type": "Mosaic", "img_scale": tuple(scale), "pad_val": float(GREY)}


def _mixup(step: augment.MixUp, scale: Any, _canvas: int) -> Iterator[Config]:
    yield {"type": "MixUp", "img_scale": tuple(scale), "ratio_range": step.ratio, "pad_val": float(GREY)}


def _random_affine(step: augment.RandomAffine, scale: Any, canvas: int) -> Iterator[Config]:
    border = tuple(-side // 2 for side in scale) if canvas > 1 else (0, 0)
    yield {
        "type": "RandomAffine",
        "max_rotate_degree": step.rotate,
        "max_translate_ratio": step.shift,
        "scaling_ratio_range": step.scaling,
        "max_shear_degree": step.shear,
        "border": border,
        "border_val": (GREY,) * 3,
    }


def _hsv(step: augment.HSV, _scale: Any, _canvas: int) -> Iterator[Config]:
    deltas = {"hue_delta": step.hue, "saturation_delta": step.saturation, "value_delta": step.value}
    yield {"type": "YOLOXHSVRandomAug", **deltas}


def _photometric(_step: augment.Photometric, _scale: Any, _canvas: int) -> Iterator[Config]:
    yield {"type": "PhotoMetricDistortion"}


def _erase(step: augment.Erase, _scale: Any, _canvas: int) -> Iterator[Config]:
    yield {"type": "RandomErasing", "n_patches": step.patches, "ratio": step.ratio, "img_border_value": GREY}


_CONFIGS: dict[str, Callable[[Any, Any, int], Iterator[Config]]] = {
    "multi_scale": _multi_scale,
    "random_crop": _random_crop,
    "random_resize_crop": _random_resize_crop,
    "photometric": _photometric,
    "hsv": _hsv,
    "mosaic": _mosaic,
    "mixup": _mixup,
    "random_affine": _random_affine,
    "erase": _erase,
}


class Mixed:
    """A transform that draws other images into one, as a stage of the dataset's pipeline.

    To the transform it is the images that it can draw from, as they are read.

    Args:
        transform: mmdet's.
        reading: the transforms that read one of the others.

    The dataset is known once it has been made.
    """

    def __init__(self, transform: Any, reading: Sequence[Callable[[Any], Any]]) -> None:
        self.transform, self.reading = transform, reading
        self.dataset: BaseDataset | None = None
        self._read: dict[int, dict[str, Any]] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The image with what was drawn into it, by the generators of its own sample."""
        # a transform may look at an image before it draws it, and draw one twice
        self._read = {}
        drawn = self.transform.get_indexes(self)
        drawn = drawn if isinstance(drawn, list) else [drawn]
        results["mix_results"] = [copy.deepcopy(self[index]) for index in drawn]
        mixed = self.transform(results)
        if mixed is not None:
            mixed.pop("mix_results", None)
        return mixed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image of an index or, where broken ones are left out, the next that can be read.

        Raises:
            UnreadableError: it cannot be read; knows its path.
        """
        if index not in self._read:
            self._read[index] = self._readable(index)
        return self._read[index]

    def _readable(self, index: int) -> dict[str, Any]:
        tries = 1 if self.dataset.broken is None else len(self)
        for step in range(tries):
            results = copy.deepcopy(self.dataset.get_data_info((index + step) % len(self)))
            path = results["img_path"]
            try:
                for transform in self.reading:
                    results = transform(results)
                return results
            except UnreadableError as error:
                error.path, last = path, error
        raise last
