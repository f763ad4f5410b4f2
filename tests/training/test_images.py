"""Images are whole or known as broken, and lie as their labels mean them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from kdlab.training import images
from kdlab.training.images import BrokenImage, BrokenImages, decoded

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def encoded(kind: str = "JPEG", **options: Any) -> bytes:
    """60 px wide and 40 high."""
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


@pytest.fixture
def forgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV as it is in versions that fill up what is missing."""
    monkeypatch.setattr(cv2, "imdecode", lambda buffer, flags: np.full((40, 60, 3), 128, np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_whole_image_has_the_pixels_that_opencv_gives(kind: str) -> None:
    content = encoded(kind)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded(content, 40, 60), expected)


@pytest.mark.usefixtures("forgiving")
@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_is_broken_though_opencv_is_silent(part: float, progressive: bool) -> None:
    content = encoded(progressive=progressive)
    with pytest.raises(OSError, match="truncated"):
        decoded(content[: int(part * len(content))], 40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_other_kinds_cut_short_are_broken(kind: str) -> None:
    content = encoded(kind)
    with pytest.raises((OSError, cv2.error)):
        decoded(content[: len(content) // 2], 40, 60)


def test_only_a_jpeg_without_its_end_is_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.Image, "open", None)
    assert decoded(encoded() + b"written behind", 40, 60).shape == (40, 60, 3)


def test_a_jpeg_with_much_behind_its_end_is_whole() -> None:
    assert decoded(encoded() + bytes(1000), 40, 60).shape == (40, 60, 3)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_what_is_no_image_is_broken(content: bytes) -> None:
    with pytest.raises((OSError, cv2.error)):
        decoded(content, 40, 60)


def test_labels_of_the_unturned_image_get_the_unturned_image() -> None:
    plain = decoded(encoded(), 40, 60)
    assert np.array_equal(decoded(turned(6), 40, 60), plain)


@pytest.mark.parametrize(("orientation", "size"), [(6, (60, 40)), (3, (40, 60)), (6, (99, 99))])
def test_else_an_image_is_turned_as_mmdet_turns_it(orientation: int, size: tuple[int, int]) -> None:
    content = turned(orientation)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded(content, *size), expected)
    assert not np.array_equal(expected, decoded(encoded(), 40, 60))


def test_each_broken_image_is_told_once_also_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.json"
    for _ in range(2):
        broken = BrokenImages(path)
        broken.note(BrokenImage("b.jpg", "cut short"))
        broken.note(BrokenImage("b.jpg", "cut short"))
    assert capsys.readouterr().out == "broken image left out: b.jpg: cut short\n"
    assert broken.report() == {"broken_images": 1, "broken_names": ["b.jpg"]}


def test_no_more_than_a_dozen_are_named() -> None:
    broken = BrokenImages()
    for number in range(20):
        broken.note(BrokenImage(f"{number:02d}.jpg", "gone"))
    assert broken.report()["broken_images"] == 20
    assert broken.report()["broken_names"] == [f"{number:02d}.jpg" for number in range(12)]
