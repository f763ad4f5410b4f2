"""P and F of Prediction-guided Feature Imitation over all validation images, level by level."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import DetectorOutputs, Facts
from kdlab.jobs.diagnosis import Maps
from kdlab.methods.pfi import feature_difference, prediction_difference
from kdlab.training.distiller import matched_levels
from kdlab.training.moments import LinearFit, PairSums

_MAP_BYTES = 32 * 2**20
"""How much the maps of a job may take; of more images some are kept, evenly spaced."""


class Differences:
    """How far two models' predictions (P) and features (F) are apart in each cell.

    F needs the student's features in the teacher's channels. The connector that a method trained is not kept,
    and a baseline has none, so every student gets the best 1x1 convolution that there is for it: first all
    cells are shown to `fit`, then to `see`. Cells whose centre is in the padding do not count.

    Args:
        student: its facts.
        teacher: its facts.
        predictions: whether P can be told.
        images: how many there will be.
        device: where the maps are.
    """

    def __init__(
        self, student: Facts, teacher: Facts, *, predictions: bool, images: int, device: torch.device
    ) -> None:
        self.levels = matched_levels(student.strides, teacher.strides, "stride", None)
        self.strides = [student.strides[level] for level, _ in self.levels]
        self._fits = [LinearFit(student.channels, teacher.channels, device) for _ in self.levels]
        self._maps: list[tuple[Tensor, Tensor]] = []
        self._sums = [PairSums() for _ in self.levels]
        self._predictions, self._images, self._seen = predictions, images, 0
        self._kept: list[int] = []
        self._sizes: list[list[tuple[int, int]]] = []
        self._cells: list[tuple[np.ndarray, np.ndarray]] = []

    def fit(self, student: DetectorOutputs, teacher: DetectorOutputs, shapes: Tensor) -> None:
        """Take in the features of a batch.

        Args:
            student: its neck's maps.
            teacher: its neck's maps.
            shapes: (B, 2) height and width of the images without padding.
        """
        for fit, given, wanted, inside in self._pairs(self._fits, student, teacher, shapes):
            # one image after the other, for in float64 a batch of large ones would fill the memory
            for image, cells in enumerate(inside):
                fit.add(given[image][:, cells].T, wanted[image][:, cells].T)

    def solve(self) -> None:
        """Make the maps from what `fit` saw."""
        for fit in self._fits:
            weight, bias = fit.solve()
            self._maps.append((weight.T[:, :, None, None], bias))

    def see(self, student: DetectorOutputs, teacher: DetectorOutputs, shapes: Tensor) -> None:
        """Take in both models' view of a batch; arguments as for `fit`."""
        batch = []
        for place, (mapped, given, wanted, inside) in enumerate(
            self._pairs(self._maps, student, teacher, shapes)
        ):
            # not in TF32: the difference is small beside the features
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                feature = feature_difference(F.conv2d(given, *mapped), wanted)
            prediction = torch.zeros_like(feature)
            if self._predictions:
                own, its = self.levels[place]
                scores = student.cls_maps[own].sigmoid(), teacher.cls_maps[its].sigmoid()
                prediction = prediction_difference(*scores)
            self._sums[place].add(prediction[inside], feature[inside])
            batch.append((prediction.cpu().numpy(), feature.cpu().numpy(), inside.cpu().numpy()))
        for image in range(len(shapes)):
            self._keep([(maps[0][image], maps[1][image], maps[2][image]) for maps in batch])

    def figures(self) -> dict[str, dict[str, Any]]:
        """By stride: mean P and mean F over cells, and their correlation; without P where there is none."""
        told = {}
        for stride, sums in zip(self.strides, self._sums, strict=True):
            prediction, feature = sums.means
            found: dict[str, float | None] = {"feature": feature}
            if self._predictions:
                found |= {"prediction": prediction, "correlation": sums.correlation}
            told[str(stride)] = {
                name: float(f"{value:.6g}")
                for name, value in found.items()
                if value is not None and math.isfinite(value)
            }
        return told

    def maps(self) -> Maps:
        """Those that were kept."""
        if not self._kept:
            return Maps()
        none = np.zeros(0, np.float32)
        return Maps(
            strides=np.array(self.strides, np.int32),
            image=np.array(self._kept, np.int32),
            sizes=np.array(self._sizes, np.int32),
            prediction=np.concatenate([p for p, _ in self._cells]) if self._predictions else none,
            feature=np.concatenate([f for _, f in self._cells]),
        )

    def _keep(self, levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Keep the maps of the next image if its turn has come, cropped to its cells."""
        image, self._seen = self._seen, self._seen + 1
        cells = sum(inside.size for *_, inside in levels)
        every = math.ceil(8 * cells * self._images / _MAP_BYTES)
        if image % max(1, every):
            return
        sizes = [(int(inside.any(1).sum()), int(inside.any(0).sum())) for *_, inside in levels]
        self._kept.append(image)
        self._sizes.append(sizes)
        for (prediction, feature, _), (height, width) in zip(levels, sizes, strict=True):
            own = slice(height), slice(width)
            self._cells.append((prediction[own].ravel(), feature[own].ravel()))

    def _pairs(
        self, each: list[Any], student: DetectorOutputs, teacher: DetectorOutputs, shapes: Tensor
    ) -> list[tuple[Any, Tensor, Tensor, Tensor]]:
        """Of each level its own of `each`, both models' maps (B, C, H, W) and the cells that count."""
        found = []
        for one, (own, its), stride in zip(each, self.levels, self.strides, strict=True):
            given, wanted = student.neck_maps[own], teacher.neck_maps[its]
            if given.shape[-2:] != wanted.shape[-2:]:
                given = F.interpolate(given, wanted.shape[-2:], mode="bilinear")
            centres = [(torch.arange(side, device=given.device) + 0.5) * stride for side in wanted.shape[-2:]]
            down, across = (
                centre < shapes[:, place, None].to(centre) for place, centre in enumerate(centres)
            )
            # the first cell of a map counts also where the image is smaller than it
            down[:, 0] = across[:, 0] = True
            found.append((one, given, wanted, down[:, :, None] & across[:, None, :]))
        return found
