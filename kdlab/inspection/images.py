"""Every image file of a split, decoded to its end."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from kdlab.inspection.findings import Found, Place

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""
_MODES = {
    "L": "grey",
    "1": "grey",
    "LA": "alpha",
    "RGBA": "alpha",
    "P": "palette",
    "CMYK": "cmyk",
}
_USUAL_MODES = ("RGB", *_MODES)
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
    """An image to look at: its split, its name in the labels, its file, its recorded width and height."""

    split: str
    name: str
    path: Path
    width: float
    height: float


@dataclass(frozen=True)
class ImageFacts:
    """What a file holds.

    Args:
        task: which image.
        fault: the kind of defect that keeps it from being read; "" where it is whole.
        why: what Pillow says of it.
        format: by content, "JPEG".
        mode: Pillow's, "RGB".
        size: width and height in pixels, as stored.
        orientation: of EXIF; 1 is upright.
        digest: SHA-256 of the file.
    """

    task: ImageTask
    fault: str = ""
    why: str = ""
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    digest: str = ""


def look(tasks: Sequence[ImageTask], progress: Callable[[int], None] = lambda done: None) -> list[ImageFacts]:
    """The facts of all images in their order, from one thread a core; Pillow decodes without the lock."""
    facts = []
    with warnings.catch_warnings(), ThreadPoolExecutor(_cores()) as pool:
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts_of(task: ImageTask) -> ImageFacts:
    """The facts of one image."""
    try:
        content = task.path.read_bytes()
    except FileNotFoundError:
        return ImageFacts(task, "image-missing")
    except (OSError, ValueError) as error:  # the second for a name that no file can have
        return ImageFacts(task, "image-unreadable", getattr(error, "strerror", None) or str(error))
    if not content:
        return ImageFacts(task, "image-empty")
    digest = hashlib.sha256(content).hexdigest()
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        return ImageFacts(task, "image-unreadable", "not an image", digest=digest)
    except Exception as error:  # Pillow's formats raise what they like on broken files
        return ImageFacts(task, "image-unreadable", str(error), digest=digest)
    return _decoded(task, image, digest)


def _decoded(task: ImageTask, image: Image.Image, digest: str) -> ImageFacts:
    fault = why = ""
    orientation = 1
    with suppress(Exception):  # EXIF that cannot be read turns nothing
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    try:
        image.load()
    except Exception as error:  # as above
        why = str(error)
        fault = "image-truncated" if "truncated" in why.lower() else "image-unreadable"
    return ImageFacts(task, fault, why, str(image.format), image.mode, image.size, orientation, digest)


def check(facts: Sequence[ImageFacts]) -> Found:
    """What is wrong with, or special about, each image."""
    for found in facts:
        split, name = found.task.split, found.task.name
        if found.fault:
            yield found.fault, Place(split, name, detail=found.why)
            if not found.format:
                continue
        elif found.mode not in _USUAL_MODES:
            yield "other-mode", Place(split, name, detail=found.mode)
        elif found.mode in _MODES:
            yield _MODES[found.mode], Place(split, name, detail="" if found.mode == "CMYK" else found.mode)
        if _ending(found) not in _SUFFIXES.get(found.format, (_ending(found),)):
            yield "misnamed", Place(split, name, detail=f"is {found.format}")
        yield from _geometry(found)


def _ending(found: ImageFacts) -> str:
    return Path(found.task.name).suffix.lower()


def _geometry(found: ImageFacts) -> Found:
    task = found.task
    if found.orientation not in (0, 1):
        yield "exif-turned", Place(task.split, task.name, detail=f"orientation {found.orientation}")
    recorded = (task.width, task.height)
    fitting = [found.size, found.size[::-1]] if found.orientation in _TURNED else [found.size]
    if recorded not in fitting:
        detail = f"{found.size[0]}x{found.size[1]}, recorded {task.width:g}x{task.height:g}"
        yield "size-differs", Place(task.split, task.name, detail=detail)


def repeated(facts: Sequence[ImageFacts]) -> Found:
    """The same content in two splits, or twice in one; the same name in two splits with other content."""
    by_digest: dict[str, list[ImageTask]] = {}
    for found in facts:
        if found.digest:
            by_digest.setdefault(found.digest, []).append(found.task)
    leaked = set()
    for tasks in by_digest.values():
        first = tasks[0]
        for other in tasks[1:]:
            kind = "content-twice" if other.split == first.split else "leak"
            if kind == "leak":
                leaked.add(other.path.name)
            detail = f"= {'' if other.split == first.split else first.split + ' '}{Path(first.name).name}"
            yield kind, Place(other.split, other.name, detail=detail)
    yield from _same_names([found.task for found in facts], leaked)


def _same_names(tasks: Sequence[ImageTask], leaked: set[str]) -> Found:
    homes: dict[str, list[ImageTask]] = {}
    for task in tasks:
        homes.setdefault(task.path.name, []).append(task)
    for name, same in homes.items():
        splits = list(dict.fromkeys(task.split for task in same))
        if len(splits) > 1 and name not in leaked:
            yield "same-name", Place(splits[1], same[-1].name, detail=f"also {splits[0]}")


def files_below(folder: Path) -> Iterator[Path]:
    """Image files directly in a folder, by their ending; hidden ones left out."""
    endings = {ending for some in _SUFFIXES.values() for ending in some}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in endings and not path.name.startswith("."):
                yield path
