"""Every image file of a split, decoded to its end."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kdlab.datasets import _images
from kdlab.datasets.base import PARTS, content_of
from kdlab.inspection.findings import Found, Place

_MODES = {"L": "grey", "1": "grey", "LA": "alpha", "RGBA": "alpha", "P": "palette", "CMYK": "cmyk"}
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}


@dataclass(frozen=True)
class ImageTask:
    """An image to look at: its split, its folder, its name in the labels, its recorded width and height."""

    split: str
    folder: Path
    name: str
    width: float
    height: float

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / self.name


@dataclass(frozen=True)
class ImageFacts:
    """Content of an image file.

    Args:
        task: which image.
        fault: the kind of defect that keeps it from being read; "" where it is whole.
        why: what keeps it from being read, or what is there instead.
        format: by content, "JPEG".
        mode: Pillow's, "RGB".
        size: width and height in pixels, as stored.
        orientation: of EXIF; 1 is upright.
        digest: SHA-256 of the file.
        levels: darkest and brightest value that arrives, of 0 to 255; None where it cannot be read.
        arrival: the range in which its pixels arrive, where that is far less than the file has.
    """

    task: ImageTask
    fault: str = ""
    why: str = ""
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    digest: str = ""
    levels: tuple[int, int] | None = None
    arrival: str = ""


def look(tasks: Sequence[ImageTask], progress: Callable[[int], None] = lambda done: None) -> list[ImageFacts]:
    """The facts of all images in their order, from one thread a core; OpenCV decodes without the lock."""
    facts = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with warnings.catch_warnings(), ThreadPoolExecutor(cores or 1) as pool:
        # Pillow warns of odd EXIF and of large images; what matters of it is a finding here.
        warnings.simplefilter("ignore")
        try:
            for found in pool.map(facts_of, tasks):
                facts.append(found)
                progress(len(facts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return facts


def facts_of(task: ImageTask) -> ImageFacts:
    """The facts of one image; whether it can be read is what a job's own decoder says."""
    try:
        content = content_of(task.path)
    except FileNotFoundError:
        return ImageFacts(task, "image-missing", _images.elsewhere(task.folder, task.name))
    except (OSError, ValueError) as error:  # the second for a name that no file can have
        return ImageFacts(task, "image-unreadable", getattr(error, "strerror", None) or str(error))
    if not content:
        return ImageFacts(task, "image-empty")
    fault = why = arrival = ""
    levels, size = None, (0, 0)
    try:
        pixels = _images.decoded(content, int(task.height), int(task.width))
        size = pixels.shape[1], pixels.shape[0]
        levels, arrival = (int(pixels.min()), int(pixels.max())), _images.arrival(content, pixels)
    except _images.UnreadableError as error:
        why = str(error)
        fault = "image-truncated" if "truncated" in why.lower() else "image-unreadable"
    found = ImageFacts(
        task,
        fault,
        why,
        size=size,
        digest=hashlib.sha256(content).hexdigest(),
        levels=levels,
        arrival=arrival,
    )
    try:
        head = _images.header(io.BytesIO(content))
    except (_images.UnreadableError, OSError):
        return found
    return replace(found, **vars(head))


def check(facts: Sequence[ImageFacts]) -> Found:
    """Faults and peculiarities of each image."""
    for found in facts:
        split, name = found.task.split, found.task.name
        if found.fault:
            yield found.fault, Place(split, name, detail=found.why)
            if not found.format:
                continue
        elif found.mode != "RGB":
            detail = "" if found.mode == "CMYK" else found.mode
            yield _MODES.get(found.mode, "other-mode"), Place(split, name, detail=detail)
        if found.arrival:
            yield "few-levels", Place(split, name, detail=found.arrival)
        ending = Path(name).suffix.lower()
        if ending not in _SUFFIXES.get(found.format, (ending,)):
            yield "misnamed", Place(split, name, detail=f"is {found.format}")
        if found.orientation not in (0, 1):
            yield "exif-turned", Place(split, name, detail=f"orientation {found.orientation}")
        recorded = (found.task.width, found.task.height)
        turned = found.orientation in _images.TURNED and recorded == found.size[::-1]
        if recorded != found.size and not turned:
            detail = "{}x{}, recorded {:g}x{:g}".format(*found.size, *recorded)
            yield "size-differs", Place(split, name, detail=detail)


def repeated(facts: Sequence[ImageFacts]) -> Found:
    """The same content in two splits, or twice in one; the same name in two splits with other content."""
    by_digest: dict[str, list[ImageTask]] = {}
    for found in facts:
        if found.digest:
            by_digest.setdefault(found.digest, []).append(found.task)
    leaked = set()
    for tasks in by_digest.values():
        first, *copies = tasks
        name = Path(first.name).name
        for other in copies:
            if other.split == first.split:
                yield "content-twice", Place(other.split, other.name, detail=f"= {name}")
            else:
                leaked.add(other.path.name)
                yield "leak", Place(other.split, other.name, detail=f"= {first.split} {name}")
    by_name: dict[str, list[ImageTask]] = {}
    for found in facts:
        by_name.setdefault(found.task.path.name, []).append(found.task)
    for name, same in by_name.items():
        splits = list(dict.fromkeys(task.split for task in same))
        if len(splits) > 1 and name not in leaked:
            yield "same-name", Place(splits[1], same[-1].name, detail=f"also {splits[0]}")


def skipped(facts: Sequence[ImageFacts]) -> int:
    """Broken images that a job skips; 0 where that would leave it none to learn from or to measure on."""
    read = [found for found in facts if found.task.split in PARTS]
    whole = {found.task.split for found in read if not found.fault}
    return sum(bool(found.fault) for found in read) if len(whole) == len(PARTS) else 0


def files_below(folder: Path) -> Iterator[Path]:
    """Image files directly in a folder, by their ending; hidden ones left out."""
    endings = {ending for some in _SUFFIXES.values() for ending in some}
    with suppress(OSError, ValueError):  # it is not there, may not be read, or no folder can have this name
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in endings and not path.name.startswith("."):
                yield path
