"""Image files: the one decoder of plan, doctor and job, and its verdict."""

from __future__ import annotations

import io
import math
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from kdlab.datasets._coco_labels import name_key
from kdlab.datasets.base import Split, content_of, gone_link
from kdlab.datasets.coco import first_image
from kdlab.errors import Fault

# OpenCV decodes, up to 2**30 pixels; Pillow reads headers, and would refuse what OpenCV reads.
Image.MAX_IMAGE_PIXELS = None
# What it says of a broken file on standard error is in the verdict.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""
_PNG_EXIF = re.compile(rb"eXIf|[tzi](?:EX|TX)t(?:Raw profile|XML:)")
"""Chunks of a PNG that can hold an orientation: their kinds, and of texts how their names begin."""
_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_TIFF = (b"II*\0", b"MM\0*")
_TAIL = 64
"""Where the end of a JPEG is looked for: some cameras and tools write a little behind it."""
_SIGNED = "I"
"""Pillow's mode of a TIFF of signed numbers, of which OpenCV takes those below 0 for the brightest."""
_SCALE = "scale them to 0..255 and save them with 8 bits"
_MOST_PIXELS = 2**30
_DARK = 64
"""Of 256 levels: an image of 16 bits of which no pixel arrives at this one holds 14 bits or fewer."""
_QUICK_PIXELS = 2**25
"""Most of an image that is decoded while somebody waits for a plan."""
_USUAL = ("PNG", "JPEG")
_ELSEWHERE = "no such file; there is"

_FORMS: dict[str, Callable[[str], str]] = {
    "names are relative to the folder of the images": lambda name: name.lstrip("/"),
    "a backslash is no separator here": lambda name: name.replace("\\", "/"),
    "a blank before or behind the name": str.strip,
    "% stands for itself": unquote,
    "the folder is no part of file_name": lambda name: name.rpartition("/")[2],
}
"""Forms of a name in which a file may be there: what is wrong with it, and the right one of it."""

Pixels = NDArray[np.uint8]


class UnreadableError(Exception):
    """Why an image file cannot be read; raised by nothing else, so that no bug passes for a broken image."""

    path = ""
    """Of the file, where it is not the one that was asked for."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Args:
        format: by content, "JPEG".
        mode: Pillow's, "RGB".
        size: width and height in pixels, as stored.
        orientation: of EXIF; 1 is upright.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as EXIF has it shown."""
        # of a TIFF Pillow gives the turned size itself
        turned = self.orientation in TURNED and self.format != "TIFF"
        return self.size[::-1] if turned else self.size


def header(file: Path | io.BytesIO) -> Header:
    """The header of an image file.

    Raises:
        UnreadableError: it is no image.
        OSError: it cannot be opened.
    """
    try:
        with Image.open(file) as image:
            return Header(str(image.format), image.mode, image.size, _orientation(image))
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image") from error
    except Exception as error:  # Pillow's formats raise what they like on broken files
        # of the file system's own errors each has a number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableError(str(error) or type(error).__name__) from error


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        if image.format == "PNG" and not _holds_exif(image.fp):
            return 1
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read turns nothing
        return 1


def _holds_exif(png: Any) -> bool:
    """True where a chunk of an open PNG holds EXIF; Pillow decodes all pixels to look behind them."""
    before = png.tell()
    place, chunk = 8, b""
    while not (found := bool(_PNG_EXIF.match(chunk, 4))):
        png.seek(place)
        if len(chunk := png.read(20)) < 8:
            break
        place += 12 + int.from_bytes(chunk[:4])
    png.seek(before)
    return found


def decoded(content: bytes, height: int, width: int) -> Pixels:
    """(H, W, 3) BGR of an image file, 8 bits a channel; of 16 bits the upper 8.

    Args:
        content: of the file.
        height: as the labels record it.
        width: the same. OpenCV turns an image as its EXIF says; where only the size of the unturned one is
            what the labels record, their boxes lie on that one.

    Raises:
        UnreadableError: it is empty, cut short, no image, or one of another kind than OpenCV reads; or stored
            turned where OpenCV cannot turn it as the labels have it.
    """
    if not content:
        raise UnreadableError("the file is empty")
    # Some versions of OpenCV fill the missing rest of a JPEG with grey and say nothing. To decode it with
    # Pillow as well would double the cost, so only what has no end is asked about.
    if content.startswith(_JPEG) and _JPEG_END not in content[-_TAIL:] and (why := _refusal(content)):
        raise UnreadableError(why)
    image: Pixels | None = _opencv(content, cv2.IMREAD_COLOR)
    if image is None:
        raise UnreadableError(_of_floats(content) or _why(content))
    if content.startswith(_TIFF) and header(io.BytesIO(content)).mode == _SIGNED:
        raise UnreadableError(f"its pixels are signed whole numbers: {_SCALE}")
    if image.shape[:2] == (height, width):
        return image
    unturned = _opencv(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if unturned is not None and unturned.shape[:2] == (height, width):
        image = unturned
    elif image.shape[:2] == (width, height) and header(io.BytesIO(content)).orientation in TURNED:
        raise UnreadableError(f"it is stored turned, and the labels have {width}x{height}: save it upright")
    return image


def _opencv(content: bytes, flags: int) -> Any:
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None


def _pillow_says(content: bytes) -> str:
    """Why Pillow cannot decode it; "" where it can."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # as above
        return str(error) or type(error).__name__
    return ""


def _refusal(content: bytes) -> str:
    """Why an image cannot be decoded whole; "" where Pillow can. It would fill the memory for any size."""
    try:
        size = header(io.BytesIO(content)).size
    except (UnreadableError, OSError) as error:
        return str(error)
    if math.prod(size) > _MOST_PIXELS:
        return f"{size[0]}x{size[1]} is above the limit of 2**30 pixels: cut it into tiles"
    return _pillow_says(content)


def _why(content: bytes) -> str:
    """Why OpenCV cannot decode an image."""
    if why := _refusal(content):
        return why
    found = header(io.BytesIO(content))
    if found.mode in ("F", "I"):
        kind = "floats" if found.mode == "F" else "whole numbers"
        return f"its pixels are 32-bit {kind}: {_SCALE}"
    if found.format in _USUAL:
        size = f"{found.size[0]}x{found.size[1]}"
        return f"OpenCV cannot decode its {size} pixels: save it again, or cut it into tiles"
    return f"OpenCV reads no {found.format} of mode {found.mode}: save it as PNG or JPEG"


def _of_floats(content: bytes) -> str:
    """The same of floats, which Pillow does not know in several channels; "" of all else."""
    image = _opencv(content, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype.kind != "f":
        return ""
    bits = 8 * image.dtype.itemsize
    return f"its pixels are {bits}-bit floats: {_SCALE}"


def arrival(content: bytes, image: Pixels) -> str:
    """ "pixels arrive as 0..15 of 0..255" of an image of 16 bits that holds far fewer; "" of any other."""
    if not image.size or image.max() >= _DARK:
        return ""
    deep = _opencv(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if deep is None or deep.dtype != np.uint16:
        return ""
    whole = f"the file has {deep.min()}..{deep.max()} of 16 bits"
    return f"pixels arrive as {image.min()}..{image.max()} of 0..255, {whole}"


def elsewhere(folder: Path, name: str) -> str:
    """What is there in the place of a listed file, where its path differs in form alone; else ""."""
    with suppress(OSError):  # a name that is too long for a file, a folder that may not be read
        path = folder / name
        return "" if path.exists() else gone_link(path) or _differently(folder, name)
    return ""


def _differently(folder: Path, name: str) -> str:
    candidate, differs, forms = name, list[str](), [(name, list[str]())]
    for why, change in _FORMS.items():
        if (changed := change(candidate)) != candidate:
            candidate, differs = changed, [*differs, why]
            forms.append((candidate, differs))
    for find in (_spelt, _ended):
        for candidate, differs in forms:
            if (found := find(folder, candidate)) is None:
                continue
            if find is _ended:
                differs = [*differs, "another ending"]
            elif found != candidate:
                same_form = unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", candidate)
                differs = [
                    *differs,
                    "another Unicode form (NFC, NFD)" if same_form else "upper or lower case",
                ]
            return f"{_ELSEWHERE} {found!a} ({', '.join(differs)})"
    return ""


def _ended(folder: Path, name: str) -> str | None:
    """The same of an image that has another ending."""
    path = Path(name.lstrip("/"))
    parent = _spelt(folder, str(path.parent)) if path.parent.name else ""
    if parent is None or not path.name:
        return None
    here = folder / parent
    if not here.is_dir():
        return None
    known = _stems(here, here.stat().st_mtime_ns)
    found = known.get(name_key(path.name)) or known.get(name_key(path.stem))
    return str(Path(parent, found)) if found else None


def _spelt(folder: Path, name: str) -> str | None:
    """Path below a folder that a name means in any case and Unicode form; None where there is none."""
    found: list[str] = []
    for part in Path(name).parts:
        here = folder.joinpath(*found)
        if not here.is_dir():
            return None
        known = _listing(here, here.stat().st_mtime_ns)
        if (there := part if part in known.values() else known.get(name_key(part))) is None:
            return None
        found.append(there)
    return "/".join(found) or None


@lru_cache(maxsize=64)
def _listing(folder: Path, mtime_ns: int) -> dict[str, str]:
    return {name_key(path.name): path.name for path in sorted(folder.iterdir(), reverse=True)}


@lru_cache(maxsize=64)
def _stems(folder: Path, mtime_ns: int) -> dict[str, str]:
    endings = Image.registered_extensions()
    paths = map(Path, _listing(folder, mtime_ns).values())
    return {name_key(path.stem): path.name for path in paths if path.suffix.lower() in endings}


def broken(path: str, why: str) -> Fault:
    """The fault of an image at which a job stops."""
    fix = "mend the file, take it out of the labels, or --set dataset.broken_images=skip"
    if why.startswith(_ELSEWHERE):
        fix = "write file_name in the labels as the file is called, or rename the file"
    return Fault("an image cannot be read", where=path, got=why, fix=fix)


def first_look(split: Split) -> tuple[Fault | None, str]:
    """The fault of the first image that a split lists, and what to know of its pixels; quick for any file."""
    entry = first_image(split.labels)
    name = entry.get("file_name")
    if not isinstance(name, str):
        return None, ""
    path = split.images / name
    try:
        content = content_of(path)
        with suppress(UnreadableError):
            if math.prod(header(path).size) > _QUICK_PIXELS:
                return None, ""
        image = decoded(content, entry.get("height", 0), entry.get("width", 0))
    except (OSError, ValueError, UnreadableError) as error:
        why = elsewhere(split.images, name) or getattr(error, "strerror", None) or str(error)
        return broken(str(path), why), ""
    told = arrival(content, image)
    return None, f"{name}: {told}" if told else ""
