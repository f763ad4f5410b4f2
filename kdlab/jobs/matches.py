"""What each detection of a validation set met, so that AP can be had for other images without the model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kdlab.jobs.files import replacing

if TYPE_CHECKING:
    import numpy as np

IOU_THRESHOLDS = 10
"""0.50 to 0.95 by 0.05; threshold t is bit t of `right` and `ignored`."""


@dataclass(frozen=True)
class Matches:
    """COCO's matching of D detections to the objects of I images and K classes, objects of all sizes.

    Detections are sorted by class, then by falling score, equal scores by image: the order in which COCO
    walks down the ranking.

    Args:
        images: (I,) int64, numbers of the images in rising order.
        image: (D,) int32, which image each detection is in, 0 to I - 1.
        label: (D,) int16, its class, 0 to K - 1.
        score: (D,) float32.
        right: (D,) uint16, the thresholds at which it met an object that counts.
        ignored: (D,) uint16, those at which it counts neither for nor against the model.
        objects: (I, K) uint16, how many objects of each class an image has that count.
    """

    images: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray

    def write(self, path: Path) -> None:
        """Replace the file by these arrays."""
        import numpy as np

        with replacing(path) as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What was written there; None where there is no whole file."""
        import numpy as np

        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                found = cls(**{field.name: file[field.name] for field in fields(cls)})
        except Exception:  # numpy, zipfile and zlib meet damage with a dozen kinds of error
            return None
        alike = {len(array) for array in (found.image, found.label, found.score, found.right, found.ignored)}
        return found if len(alike) == 1 and len(found.images) == len(found.objects) else None
