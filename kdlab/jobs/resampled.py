"""AP of one model on resampled validation images, as its job leaves it for tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdlab.jobs.files import read_bytes, replacing

RESAMPLES = 1000
_LAYOUT = np.dtype([("images", "<i8"), ("truth", "S16"), ("ap", "<f8", (RESAMPLES,))])


@dataclass(frozen=True)
class Resampled:
    """AP of one model on resampled validation images.

    Args:
        ap: (R,) in points; equal places of different models are the same resample; NaN where none of its
            images holds an object.
        images: how many images there are.
        truth: a hash of the images and their objects; models with different ones cannot be paired.
    """

    ap: NDArray[np.float64]
    images: int
    truth: str

    def write(self, path: Path) -> None:
        """Replace the file by these numbers: a `.npy` of one record."""
        with replacing(path) as file:
            np.save(file, np.array((self.images, self.truth.encode(), self.ap), _LAYOUT))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The numbers of a file; None where there is no whole one."""
        try:
            content = read_bytes(path)
            # not by `np.load`, which takes six times as long to understand the header
            start = 10 + int.from_bytes(content[8:10], "little")
            (one,) = np.frombuffer(content, _LAYOUT, offset=start)
            return cls(one["ap"], int(one["images"]), one["truth"].decode())
        except (OSError, ValueError):
            return None
