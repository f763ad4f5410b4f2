"""Scenes of real handwritten digits on textured ground, made in seconds, for trials without a download."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdlab.datasets.base import (
    PARTS,
    DatasetFiles,
    Split,
    cache_dir,
    fingerprint,
    intact,
    make_once,
    user_path,
)
from kdlab.errors import Fault, UsageError, suggestion

# Raise it in the commit that changes a pixel or a box: scenes made before are then left alone.
VERSION = 1

CLASSES = tuple("0123456789")

# scikit-learn's images before this index serve train, the rest val. Not every fifth: its labels run 0 to 9
# over and over, so that a stride would pick few of the digits.
_FIRST_VAL_SOURCE = 1437
_SOURCE_PX = 8

# Ground: (cells along a side, amplitude in grey levels) of each layer of smooth noise, and the deviation of
# each pixel's own.
_LAYERS = {
    "calm": ((3, 16.0), (9, 7.0)),
    "busy": ((3, 25.0), (8, 25.0), (20, 25.0)),
}
_GRAIN = {"calm": 2.0, "busy": 7.0}
_CONTRAST = (70.0, 115.0)

# Below this share of the full colour a digit's soft edge is cut off, so that its box holds all of it.
_FAINTEST_INK = 0.25

_RANGES: dict[str, tuple[type, float, float]] = {
    "image_px": (int, 32, 2048),
    "train_images": (int, 1, 100_000),
    "val_images": (int, 1, 100_000),
    "seed": (int, 0, 2**32 - 1),
    "min_digits": (int, 0, 20),
    "max_digits": (int, 1, 20),
    "min_size": (float, 0.01, 0.9),
    "max_size": (float, 0.01, 0.9),
    "overlap": (float, 0.0, 0.5),
}

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Options:
    """Options of a set; `prepare` says what each means."""

    image_px: int
    train_images: int
    val_images: int
    seed: int
    min_digits: int
    max_digits: int
    min_size: float
    max_size: float
    background: str
    overlap: float


@dataclass(frozen=True)
class _Glyph:
    """A digit where it is drawn: `ink` (h, w) in 0 to 1, its left upper pixel, and its value."""

    ink: _Floats
    x: int
    y: int
    digit: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """COCO's x, y, width, height in pixels."""
        return self.x, self.y, self.ink.shape[1], self.ink.shape[0]


def prepare(
    *,
    image_px: int = 80,
    train_images: int = 1000,
    val_images: int = 200,
    seed: int = 0,
    min_digits: int = 1,
    max_digits: int = 3,
    min_size: float = 0.25,
    max_size: float = 0.5,
    background: Literal["calm", "busy"] = "calm",
    overlap: float = 0.2,
    cache: str = "",
) -> DatasetFiles:
    """Make the scenes, or find those made before from the same options.

    A scene depends on `seed`, its split and its number, not on how many there are. Train and val draw from
    different handwriting, the same for every seed. Equal options give equal bytes; on another kind of machine
    a pixel may round differently, labels and fingerprint stay.

    Args:
        image_px: width and height of a scene.
        train_images: number of training scenes.
        val_images: number of validation scenes.
        seed: another seed gives other scenes.
        min_digits: fewest digits in a scene; 0 allows empty scenes.
        max_digits: most digits in a scene; the number is uniform between the two.
        min_size: about the smallest height of a digit, as a fraction of the scene's width; at least 8 pixels.
        max_size: about the largest height; uniform between the two, less so where large digits leave no room.
        background: "calm" is smooth and of low contrast, "busy" has structure as strong as the digits.
        overlap: highest IoU of two boxes; the smaller digit is drawn on top.
        cache: folder to keep the scenes in; the user's cache folder (`KDLAB_CACHE`) where empty.

    Raises:
        UsageError: an option is out of range, or so many digits of this size do not fit.
        MachineError: the cache cannot be written, or its files were damaged.
    """
    options = _Options(
        image_px,
        train_images,
        val_images,
        seed,
        min_digits,
        max_digits,
        min_size,
        max_size,
        background,
        overlap,
    )
    if faults := list(_faults(options)):
        raise UsageError(faults=faults)
    key = hashlib.sha256(json.dumps([VERSION, asdict(options)], sort_keys=True).encode()).hexdigest()[:12]
    folder = (user_path(cache) if cache else cache_dir()) / "digits" / key
    make_once(folder, partial(_build, options))
    train, val = (_split(folder, part) for part in PARTS)
    made = intact(folder, "files of this dataset", "fingerprint", lambda _: fingerprint([train, val]))
    return DatasetFiles("digits", CLASSES, train, val, made["fingerprint"])


def _faults(options: _Options) -> Iterator[Fault]:
    """Options out of their range; where there are none, those that do not go together."""
    sound = True
    for name, (kind, low, high) in _RANGES.items():
        value = getattr(options, name)
        right_kind = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not (right_kind and low <= value <= high):
            sound = False
            known = f"{'whole numbers' if kind is int else 'numbers'} from {low} to {high}"
            yield Fault(f"dataset.{name} is out of range", got=repr(value), known=known)
    if options.background not in _LAYERS:
        sound = False
        near, known = suggestion(str(options.background), list(_LAYERS)), ", ".join(_LAYERS)
        yield Fault("dataset.background is unknown", got=repr(options.background), known=known, fix=near)
    if not sound:
        return
    for what in ("digits", "size"):
        low, high = getattr(options, f"min_{what}"), getattr(options, f"max_{what}")
        if low > high:
            fix = f"raise max_{what} or lower min_{what}"
            yield Fault(f"dataset.min_{what} exceeds dataset.max_{what}", got=f"{low} > {high}", fix=fix)
    smallest_px = options.min_size * options.image_px
    if smallest_px < _SOURCE_PX:
        yield Fault(
            "the smallest digits would be too small to read",
            got=f"min_size {options.min_size} of image_px {options.image_px} is {smallest_px:.1f} px",
            known=f"at least {_SOURCE_PX} px, the size of the handwriting",
            fix=f"set dataset.min_size to {np.ceil(1000 * _SOURCE_PX / options.image_px) / 1000} or more",
        )


def _split(folder: Path, name: str) -> Split:
    return Split(folder / name, folder / f"{name}.json")


def _build(options: _Options, folder: Path) -> None:
    """Fill an empty folder with both splits and, last, what they were made from."""
    from sklearn.datasets import load_digits  # it takes two seconds, and most calls find the scenes made

    bunch = load_digits()
    sources, digits = bunch.images / 16.0, bunch.target
    cut = _FIRST_VAL_SOURCE
    _write_split(options, folder, "train", options.train_images, sources[:cut], digits[:cut])
    _write_split(options, folder, "val", options.val_images, sources[cut:], digits[cut:])
    seal = fingerprint(_split(folder, part) for part in PARTS)
    made = {"version": VERSION, "options": asdict(options), "fingerprint": seal}
    (folder / "made.json").write_text(json.dumps(made, indent=1, sort_keys=True))


def _write_split(
    options: _Options, folder: Path, name: str, scenes: int, sources: _Floats, digits: NDArray[np.int64]
) -> None:
    split = _split(folder, name)
    split.images.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(scenes):
        rng = np.random.default_rng([options.seed, PARTS.index(name), index])
        glyphs = _layout(rng, options, sources, digits)
        file_name = f"{index:06d}.png"
        (split.images / file_name).write_bytes(_png(_draw(rng, options, glyphs)))
        size = {"width": options.image_px, "height": options.image_px}
        images.append({"id": index + 1, "file_name": file_name, **size})
        for glyph in glyphs:
            _, _, width, height = glyph.box
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": glyph.digit + 1,
                 "bbox": glyph.box, "area": width * height, "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": k + 1, "name": digit} for k, digit in enumerate(CLASSES)]
    # These change pixels alone: no box and no file size, so the fingerprint would not see them elsewhere.
    # COCO's `version` is text, and hotcoco insists.
    info = {"version": str(VERSION), "seed": options.seed, "background": options.background}
    labels = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    split.labels.write_text(json.dumps(labels, sort_keys=True))


def _layout(
    rng: np.random.Generator, options: _Options, sources: _Floats, digits: NDArray[np.int64]
) -> list[_Glyph]:
    """Digits of a scene and their places, the largest first."""
    count = rng.integers(options.min_digits, options.max_digits, endpoint=True)
    for _ in range(100):
        picks = rng.integers(len(sources), size=count)
        heights = rng.uniform(options.min_size, options.max_size, count) * options.image_px
        heights = np.sort(heights.round().astype(int))[::-1]
        glyphs: list[_Glyph] = []
        for pick, height in zip(picks, heights, strict=True):
            glyph = _place(rng, options, _ink(sources[pick], int(height)), int(digits[pick]), glyphs)
            if glyph is None:
                break
            glyphs.append(glyph)
        if len(glyphs) == count:
            return glyphs
    raise UsageError(
        "so many digits of this size find no room",
        got=f"max_digits {options.max_digits}, min_size {options.min_size}, overlap {options.overlap}",
        fix="lower dataset.max_digits or dataset.min_size",
    )


def _place(
    rng: np.random.Generator, options: _Options, ink: _Floats, digit: int, placed: list[_Glyph]
) -> _Glyph | None:
    """The digit at a random place where it keeps `overlap` with all others, or None after 50 tries."""
    room = options.image_px - np.array(ink.shape)
    for y, x in rng.integers(0, room, size=(50, 2), endpoint=True):
        glyph = _Glyph(ink, int(x), int(y), digit)
        if all(_iou(glyph.box, other.box) <= options.overlap for other in placed):
            return glyph
    return None


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _ink(source: _Floats, height: int) -> _Floats:
    """The 8x8 handwriting at about `height` pixels, crisp, and cropped to what can be seen; 0 to 1."""
    # A rim of one empty cell lets strokes that touch the border end round.
    cells = _SOURCE_PX + 2
    weights = _upscaling(cells, round(height * cells / _SOURCE_PX))
    ink = np.clip((weights @ np.pad(source, 1) @ weights.T - 0.3) / 0.5, 0.0, 1.0)
    ink[ink < _FAINTEST_INK] = 0.0
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=512)
def _upscaling(cells: int, pixels: int) -> _Floats:
    """(pixels, cells) weights of cubic interpolation (Catmull-Rom), each row summing to 1."""
    centres = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
    d = np.abs(centres[:, None] - np.arange(cells))
    near, far = 1 - 2.5 * d**2 + 1.5 * d**3, 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3
    weights = np.where(d < 1, near, np.where(d < 2, far, 0.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _draw(rng: np.random.Generator, options: _Options, glyphs: list[_Glyph]) -> NDArray[np.uint8]:
    """(px, px, 3) RGB of the ground and, in their order, the digits."""
    px = options.image_px
    scene = np.empty((3, px, px))
    scene[:] = rng.uniform(50, 205, (3, 1, 1))
    for cells, amplitude in _LAYERS[options.background]:
        weights = _upscaling(cells, px)
        scene += weights @ rng.uniform(-amplitude, amplitude, (3, cells, cells)) @ weights.T
    scene += rng.normal(0, _GRAIN[options.background], scene.shape)
    for glyph in glyphs:
        x, y, width, height = glyph.box
        under = scene[:, y : y + height, x : x + width]
        grey = under.mean()
        contrast = rng.uniform(*_CONTRAST) * (1 if grey < 128 else -1)
        colour = np.clip(grey + contrast + rng.uniform(-25, 25, (3, 1, 1)), 0, 255)
        under += glyph.ink * (colour - under)
    return np.moveaxis(np.clip(scene, 0, 255).round().astype(np.uint8), 0, -1)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """An uncompressed PNG of (H, W, 3) RGB.

    Compressed sizes differ between versions of zlib, and would give the same scenes another fingerprint.
    """
    height, width, _ = pixels.shape
    unfiltered = np.zeros((height, 1), np.uint8)
    rows = np.hstack([unfiltered, pixels.reshape(height, -1)]).tobytes()
    stream = bytearray(b"\x78\x01")
    for start in range(0, len(rows), 0xFFFF):
        block = rows[start : start + 0xFFFF]
        is_last = start + len(block) == len(rows)
        stream += struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block
    stream += struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", bytes(stream)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
