"""Image files: decoded as their labels mean them, and known as broken where a part is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from kdlab.datasets._images import Pixels, UnreadableError, decoded
from kdlab.datasets.base import content_of
from kdlab.errors import JobError
from kdlab.jobs.files import read_if_whole, write_json
from kdlab.training import ranks

_NAMED = 12
_CGROUP = Path("/sys/fs/cgroup")
_USABLE = 0.8
"""Part of the free memory that decoded images may take."""


@dataclass(frozen=True)
class BrokenImage:
    """An image file that cannot be read, in place of the sample that it would have been."""

    path: str
    why: str


class ImageCache:
    """Decoded images in memory that loader processes share: each is read once, by whoever needs it first.

    Args:
        sizes: (N, 2) height and width of the images, as the labels record them.

    Raises:
        JobError: the memory does not hold them.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self._sizes = sizes
        self._first = [0, *accumulate(3 * height * width for height, width in sizes)]
        # each process of a job keeps its own
        need, free = self._first[-1] * ranks.count(), _free_bytes()
        if need > _USABLE * free:
            raise JobError(
                "the decoded images do not fit into memory",
                got=f"{need / 1e9:.1f} GB, {free / 1e9:.1f} GB free",
                fix="leave resources.cache out, or run fewer jobs at once: -j 1",
            )
        # of no file, so that no limit of /dev/shm counts; forks have it in common
        self._pixels = np.frombuffer(mmap(-1, max(1, self._first[-1])), np.uint8)
        self._known = np.frombuffer(mmap(-1, max(1, len(sizes))), np.uint8)

    def image(self, index: int, read: Callable[[], Pixels]) -> Pixels:
        """(H, W, 3) a copy of an image, which `read` decodes the first time."""
        height, width = self._sizes[index]
        place = self._pixels[self._first[index] : self._first[index + 1]].reshape(height, width, 3)
        if not self._known[index]:
            image = read()
            if image.shape != place.shape:
                return image
            place[:] = image
            self._known[index] = 1
        return place.copy()


def _free_bytes() -> int:
    """Memory that is free here, in the limits of a container."""
    free: int = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        most, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        told = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # files that were read count as used, and give way
        free = min(free, most - used + int(told.get("inactive_file", 0)))
    return free


class LoadImage:
    """mmdet's `LoadImageFromFile` for whole files only, in the orientation that the labels mean.

    With a `cache` each file is read once.
    """

    cache: ImageCache | None = None

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """The sample with its image, (H, W, 3) BGR.

        Raises:
            UnreadableError: the file is missing, cut short or no image.
        """

        def read() -> Pixels:
            try:
                content = content_of(Path(results["img_path"]))
            except OSError as error:
                raise UnreadableError(error.strerror or str(error)) from error
            return decoded(content, results["height"], results["width"])

        image = self.cache.image(results["sample_idx"], read) if self.cache else read()
        return results | {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


class BrokenImages:
    """Broken images that a job leaves out; each is told once, also over a resume.

    Args:
        path: file to keep them in; None keeps them in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        known = read_if_whole(path, tuple[BrokenImage, ...]) if path else None
        self.images = {entry.path: entry for entry in known or ()}

    def note(self, image: BrokenImage) -> None:
        """Remember an image and, the first time, say so in the log."""
        if image.path in self.images:
            return
        self.images[image.path] = image
        print(f"broken image left out: {image.path}: {image.why}", flush=True)
        if self.path:
            write_json(self.path, [asdict(entry) for entry in self.images.values()])

    def report(self) -> dict[str, Any]:
        """How many, and the first dozen by name."""
        return {"broken_images": len(self.images), "broken_names": sorted(self.images)[:_NAMED]}
