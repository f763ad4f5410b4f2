"""The one decoder, and the words for what it cannot read."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from kdlab.datasets import _images
from kdlab.datasets._images import UnreadableError, decoded
from kdlab.datasets.base import Split

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
GREY = np.linspace(0, 255, 96 * 80).reshape(80, 96)


def content(pixels: Any, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def floats(kind: Any) -> bytes:
    """A TIFF of three channels of them."""
    return bytes(cv2.imencode(".tif", (NOISE / 255).astype(kind))[1])


def signed() -> bytes:
    """A TIFF of 16 bits whose tag says that they have a sign, as those of CT and of thermal cameras."""
    file = io.BytesIO()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2
    Image.fromarray((GREY * 100).astype(np.uint16)).save(file, "TIFF", tiffinfo=tags)
    return file.getvalue()


def encoded(kind: str = "JPEG", **options: Any) -> bytes:
    """60 px wide and 40 high."""
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says so of itself and holds no pixel."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT": b"", b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG that says so of itself and is cut short."""
    whole = encoded()
    place = whole.index(b"\xff\xc0") + 5
    return whole[:place] + struct.pack(">HH", height, width) + whole[place + 4 : -200]


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "the file is empty"),
        (b"text", "not an image"),
        (content(GREY.astype(np.uint8))[:-200], "truncated"),
        (content((GREY / 255).astype(np.float32), "TIFF"), "its pixels are 32-bit floats: scale them"),
        (content((GREY * 1e5).astype(np.int32), "TIFF"), "its pixels are 32-bit whole numbers: scale them"),
        (signed(), "its pixels are signed whole numbers: scale them"),
        (floats(np.float32), "its pixels are 32-bit floats: scale them"),
        (floats(np.float64), "its pixels are 64-bit floats: scale them"),
        (png_of_size(40_000, 40_000), "40000x40000 is above the limit of 2**30 pixels"),
        (jpeg_of_size(60_000, 60_000), "60000x60000 is above the limit of 2**30 pixels"),
    ],
)
def test_what_cannot_be_read_says_why(file: bytes, why: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        decoded(file, 80, 96)
    assert why in str(caught.value)


def test_a_png_that_opencv_cannot_decode_is_not_told_to_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    file = content(GREY.astype(np.uint8))
    monkeypatch.setattr(cv2, "imdecode", lambda buffer, flags: None)
    with pytest.raises(UnreadableError, match="OpenCV cannot decode its 96x80 pixels: save it again"):
        decoded(file, 80, 96)


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
    with pytest.raises(UnreadableError, match="truncated"):
        decoded(content[: int(part * len(content))], 40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_other_kinds_cut_short_are_broken(kind: str) -> None:
    content = encoded(kind)
    with pytest.raises(UnreadableError):
        decoded(content[: len(content) // 2], 40, 60)


def test_only_a_jpeg_without_its_end_is_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images.Image, "open", None)
    assert decoded(encoded() + b"written behind", 40, 60).shape == (40, 60, 3)


def test_a_jpeg_with_much_behind_its_end_is_whole() -> None:
    assert decoded(encoded() + bytes(1000), 40, 60).shape == (40, 60, 3)


def test_labels_of_the_unturned_image_get_the_unturned_image() -> None:
    plain = decoded(encoded(), 40, 60)
    assert np.array_equal(decoded(turned(6), 40, 60), plain)


@pytest.mark.parametrize(("orientation", "size"), [(6, (60, 40)), (3, (40, 60)), (6, (99, 99))])
def test_else_an_image_is_turned_as_mmdet_turns_it(orientation: int, size: tuple[int, int]) -> None:
    content = turned(orientation)
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded(content, *size), expected)
    assert not np.array_equal(expected, decoded(encoded(), 40, 60))


@pytest.mark.parametrize(("kind", "size"), [("TIFF", (40, 60)), ("AVIF", (60, 40))])
def test_what_opencv_does_not_turn_as_the_labels_have_it_is_refused(kind: str, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(kind, exif=exif)
    with pytest.raises(UnreadableError, match=f"stored turned, and the labels have {size[1]}x{size[0]}"):
        decoded(content, *size)
    assert decoded(content, *size[::-1]).shape[:2] == size[::-1]


def png_with(kind: bytes, data: bytes, at_the_end: bool) -> io.BytesIO:
    """A PNG of 60 x 40 px with another chunk before or behind its pixels."""
    whole = encoded("PNG")
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    place = whole.index(b"IEND" if at_the_end else b"IDAT") - 4
    return io.BytesIO(whole[:place] + chunk + whole[place:])


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_png_is_turned_wherever_its_exif_stands(at_the_end: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    png = png_with(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"), at_the_end)
    assert _images.header(png).shown == (40, 60)


def test_a_png_is_turned_by_xmp_as_pillow_reads_it() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    png = png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp, False)
    with Image.open(png) as image:
        assert image.getexif()[0x0112] == 6
    assert _images.header(png).shown == (40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_header_shows_the_size_that_is_read(kind: str) -> None:
    exif, turned = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(turned, kind, exif=exif)
    pixels = _images.decoded(turned.getvalue(), 60, 40)
    assert _images.header(io.BytesIO(turned.getvalue())).shown == pixels.shape[1::-1] == (40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0, 5, 20, 60, 100])
def test_a_header_that_is_cut_short_is_the_file_s_fault_and_not_the_disk_s(kind: str, kept: int) -> None:
    short = encoded(kind)[:kept]
    try:
        _images.header(io.BytesIO(short))
    except UnreadableError as error:
        assert str(error)
    else:
        # what is left still says the size
        assert kept >= 20


def test_a_file_that_cannot_be_opened_is_the_disk_s_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _images.header(tmp_path / "a.png")


def test_the_header_of_a_png_without_exif_decodes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, with_exif = png_with(b"tEXt", b"Software\0paint", False), png_with(b"eXIf", b"", True)
    decoded_by_pillow = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded_by_pillow.append(image.format))
    assert _images.header(plain).shown == (60, 40)
    assert decoded_by_pillow == []
    _images.header(with_exif)
    assert decoded_by_pillow == ["PNG"]


def test_an_image_that_pillow_would_not_open_for_its_size_is_opened() -> None:
    assert _images.header(io.BytesIO(png_of_size(20_000, 20_000))).size == (20_000, 20_000)


@pytest.mark.parametrize(
    ("most", "form", "told"),
    [
        (4095, "PNG", "pixels arrive as 0..15 of 0..255, the file has 0..4095 of 16 bits"),
        (4095, "TIFF", "pixels arrive as 0..15 of 0..255, the file has 0..4095 of 16 bits"),
        (65535, "PNG", ""),
    ],
)
def test_the_range_in_which_16_bits_arrive_is_told(most: int, form: str, told: str) -> None:
    file = content((GREY / 255 * most).astype(np.uint16), form)
    assert _images.arrival(file, decoded(file, 80, 96)) == told


def test_a_dark_image_of_8_bits_is_as_dark_as_it_is() -> None:
    file = content((GREY / 25).astype(np.uint8))
    assert _images.arrival(file, decoded(file, 80, 96)) == ""


@pytest.mark.parametrize(
    ("name", "there", "differs"),
    [
        ("sub\\a.jpg", "'sub/a.jpg'", "a backslash is no separator here"),
        ("C:\\me\\b.jpg", "'b.jpg'", "a backslash"),
        ("images/b.jpg", "'b.jpg'", "the folder is no part of file_name"),
        ("M\u00fc.jpg", r"'Mu\u0308.jpg'", "another Unicode form (NFC, NFD)"),
        ("b.jpg ", "'b.jpg'", "a blank before or behind the name"),
        (" sub/a.jpg", "'sub/a.jpg'", "a blank before or behind the name"),
        ("b%2Ejpg", "'b.jpg'", "% stands for itself"),
        ("b", "'b.jpg'", "another ending"),
        ("sub/a.png", "'sub/a.jpg'", "another ending"),
        ("Sub/A.JPG", "'sub/a.jpg'", "upper or lower case"),
        ("/b.jpg", "'b.jpg'", "names are relative to the folder of the images"),
    ],
)
def test_a_path_that_differs_in_form_is_told_with_the_file_that_is_there(
    name: str, there: str, differs: str, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    for file in ("sub/a.jpg", "b.jpg", "Mu\u0308.jpg"):
        (tmp_path / file).touch()
    told = _images.elsewhere(tmp_path, name)
    assert told.startswith(f"no such file; there is {there} (")
    assert differs in told
    assert "as the file is called" in _images.broken(name, told).fix


@pytest.mark.parametrize("name", ["c.jpg", "sub", "b.jpg", "", "..", "b.jpg/x"])
def test_nothing_is_proposed_for_what_is_there_or_gone(name: str, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").touch()
    assert _images.elsewhere(tmp_path, name) == ""


class TestFirstLook:
    def look(self, folder: Path, name: str, file: bytes | None) -> tuple[Any, str]:
        labels = {"info": {"year": 1}, "images": [{"id": 1, "file_name": name, "width": 96, "height": 80}]}
        (folder / "a.json").write_text(json.dumps(labels, indent=1))
        if file is not None:
            (folder / name).write_bytes(file)
        return _images.first_look(Split(folder, folder / "a.json"))

    def test_a_sound_image_is_neither_fault_nor_note(self, tmp_path: Path) -> None:
        assert self.look(tmp_path, "a.png", content(GREY.astype(np.uint8))) == (None, "")

    def test_an_image_at_which_a_job_stops_is_a_fault(self, tmp_path: Path) -> None:
        fault, _ = self.look(tmp_path, "a.tif", content(GREY.astype(np.float32), "TIFF"))
        assert (fault.what, fault.where) == ("an image cannot be read", str(tmp_path / "a.tif"))
        assert "32-bit floats" in fault.got

    def test_a_missing_image_is_a_fault(self, tmp_path: Path) -> None:
        fault, _ = self.look(tmp_path, "a.png", None)
        assert fault.got == "No such file or directory"

    def test_a_link_to_nothing_is_told_as_one(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to("gone.png")
        fault, _ = self.look(tmp_path, "a.png", None)
        assert fault.got == "a link to gone.png, which is not there"

    def test_pixels_that_arrive_dark_are_a_note(self, tmp_path: Path) -> None:
        fault, note = self.look(tmp_path, "a.png", content((GREY * 16).astype(np.uint16)))
        assert (fault, note) == (
            None,
            "a.png: pixels arrive as 0..15 of 0..255, the file has 0..4080 of 16 bits",
        )

    def test_what_is_no_regular_file_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to("/dev/null")
        fault, _ = self.look(tmp_path, "a.png", None)
        assert fault.got == "no regular file"

    def test_a_name_that_is_too_long_for_a_file_is_told(self, tmp_path: Path) -> None:
        fault, _ = self.look(tmp_path, 5000 * "a", None)
        assert fault.got == "File name too long"
