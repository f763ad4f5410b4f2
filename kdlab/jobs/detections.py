"""Detections of one model on the validation images, as its job leaves them for tables and plots."""

from __future__ import annotations

from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from kdlab.jobs.files import read_bytes, replacing

Array = NDArray[Any]


@dataclass(frozen=True)
class Detections:
    """D detections of one model in I images, and the G annotations that were there to find.

    The annotations lie here too, so that errors are those of the evaluation also where labels changed since.

    Args:
        images: (I,) int32, numbers of the images by their ids in the labels, from 1, rising; images that were
            left out are missing.
        image: (D,) int32, which image each detection is in, 0 to I - 1.
        box: (D, 4) float32 xyxy in pixels of the image.
        score: (D,) float32, 0 to 1.
        label: (D,) int16, its class.
        object_image: (G,) int32, likewise of each annotation.
        object_box: (G, 4) float64 xyxy.
        object_label: (G,) int16.
        ignored: (G,) bool, annotations that count neither for nor against a model: `iscrowd`, and what VOC
            calls difficult.
    """

    images: Array
    image: Array
    box: Array
    score: Array
    label: Array
    object_image: Array
    object_box: Array
    object_label: Array
    ignored: Array

    def write(self, path: Path) -> None:
        """Replace the file by these detections: a compressed `.npz`, about 20 bytes a detection."""
        with replacing(path) as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The detections in a file; None where there is no whole one."""
        try:
            with np.load(BytesIO(read_bytes(path)), allow_pickle=False) as file:
                found = cls(**{one.name: file[one.name] for one in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        detections = {len(values) for values in (found.image, found.box, found.score, found.label)}
        objects = (found.object_image, found.object_box, found.object_label, found.ignored)
        return found if len(detections) == len({len(values) for values in objects}) == 1 else None
