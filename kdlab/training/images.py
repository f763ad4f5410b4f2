"""Image files: decoded as their labels mean them, and known as broken where a part is missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdlab.datasets._images import UnreadableError, decoded
from kdlab.datasets.base import content_of
from kdlab.jobs.files import read_if_whole, write_json

_NAMED = 12


@dataclass(frozen=True)
class BrokenImage:
    """An image file that cannot be read, in place of the sample that it would have been."""

    path: str
    why: str


class LoadImage:
    """mmdet's `LoadImageFromFile` for whole files only, in the orientation that the labels mean."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """The sample with its image, (H, W, 3) BGR.

        Raises:
            UnreadableError: the file is missing, cut short or no image.
        """
        try:
            content = content_of(Path(results["img_path"]))
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error
        image = decoded(content, results["height"], results["width"])
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
