"""Image files: decoded as their labels mean them, and known as broken where a part is missing."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from kdlab.jobs.files import read_if_whole, write_json

_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_TAIL = 64
"""Where the end of a JPEG is looked for: some cameras and tools write a little behind it."""

_NAMED = 12


@dataclass(frozen=True)
class BrokenImage:
    """An image file that cannot be read, in place of the sample that it would have been."""

    path: str
    why: str


class UnreadableError(Exception):
    """Raised by `LoadImage`, and by nothing else, so that no other error passes for a broken image."""


class LoadImage:
    """mmdet's `LoadImageFromFile` for whole files only, in the orientation that the labels mean."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """The sample with its image, (H, W, 3) BGR.

        Raises:
            UnreadableError: the file is missing, cut short or no image.
        """
        try:
            content = Path(results["img_path"]).read_bytes()
            image = decoded(content, results["height"], results["width"])
        except (OSError, cv2.error) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UnreadableError(text.splitlines()[0]) from error
        return results | {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


def decoded(content: bytes, height: int, width: int) -> np.ndarray:
    """(H, W, 3) BGR of an image file.

    Args:
        content: of the file.
        height: as the labels record it.
        width: the same. OpenCV turns an image as its EXIF says; where only the size of the unturned one is
            what the labels record, their boxes lie on that one.

    Raises:
        OSError: it is cut short or no image.
        cv2.error: it is empty.
    """
    # Some versions of OpenCV fill the missing rest of a JPEG with grey and say nothing. To decode it with
    # Pillow as well would double the cost, so only what has no end is asked about.
    if content.startswith(_JPEG) and _JPEG_END not in content[-_TAIL:]:
        Image.open(io.BytesIO(content)).load()
    buffer = np.frombuffer(content, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    if image is None:
        raise OSError("it is cut short, or not an image")
    if image.shape[:2] == (height, width):
        return image
    unturned = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return unturned if unturned.shape[:2] == (height, width) else image


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
