from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kdlab.inspection import images
from kdlab.inspection.images import ImageFacts, ImageTask


def facts(path: Path, content: bytes | None = None, size: tuple[int, int] = (200, 150)) -> ImageFacts:
    if content is not None:
        path.write_bytes(content)
    return images.facts_of(ImageTask("train", path.parent, path.name, *size))


def kinds(found: ImageFacts) -> list[str]:
    return [kind for kind, _ in images.check([found])]


def test_a_folder_of_the_name_of_an_image_is_no_image(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert (found.fault, found.why) == ("image-unreadable", "Is a directory")


def test_a_byte_changed_in_a_png_makes_it_unreadable(
    tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    content = bytearray(make_picture(form="PNG"))
    content[content.index(b"IDAT") + 10] ^= 0xFF
    found = facts(tmp_path / "a.png", bytes(content))
    assert (found.fault, found.format) == ("image-unreadable", "PNG")


def test_of_a_cut_image_the_size_is_judged_too(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    found = facts(tmp_path / "a.jpg", make_picture()[:-200], size=(1, 1))
    assert kinds(found) == ["image-truncated", "size-differs"]


def test_of_a_file_that_is_no_image_nothing_more_is_told(tmp_path: Path) -> None:
    assert kinds(facts(tmp_path / "a.jpg", b"text")) == ["image-unreadable"]


@pytest.mark.parametrize(
    ("turned", "size", "fits"),
    [(6, (200, 150), True), (6, (150, 200), True), (3, (150, 200), False), (1, (150, 200), False)],
)
def test_labels_may_have_the_size_before_or_after_a_quarter_turn(
    turned: int, size: tuple[int, int], fits: bool, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    found = facts(tmp_path / "a.jpg", make_picture(turned=turned), size)
    assert ("size-differs" not in kinds(found)) == fits
    assert ("exif-turned" in kinds(found)) == (turned != 1)


@pytest.mark.parametrize(
    ("mode", "form", "kind"), [("1", "PNG", "grey"), ("LA", "PNG", "alpha"), ("CMYK", "TIFF", "cmyk")]
)
def test_rarer_modes_are_told_as_what_they_are(
    mode: str, form: str, kind: str, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    assert kinds(facts(tmp_path / f"a.{form}", make_picture(mode=mode, form=form))) == [kind]


def test_facts_keep_the_order_and_tell_of_each(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    tasks = [ImageTask("train", tmp_path, f"{number}.jpg", 200, 150) for number in range(9)]
    for number, task in enumerate(tasks):
        task.path.write_bytes(make_picture(number))
    told: list[int] = []
    assert [found.task for found in images.look(tasks, told.append)] == tasks
    assert told == list(range(1, 10))


def test_an_interruption_ends_it(tmp_path: Path) -> None:
    def interrupt(done: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.look([ImageTask("train", tmp_path, "a", 1, 1)] * 3, interrupt)


def test_a_leak_is_not_told_as_a_same_name_besides(data: Any) -> None:
    data.rename("val", 0, "a.jpg", data.files["images/train/a.jpg"])
    assert [defect.kind for defect in data.examine().defects] == ["leak"]


def test_hidden_files_and_other_endings_are_no_images(tmp_path: Path) -> None:
    for name in (".a.jpg", "b.JPG", "c.txt", "d.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in images.files_below(tmp_path)] == ["b.JPG", "d.webp"]
    assert list(images.files_below(tmp_path / "nowhere")) == []


def test_a_name_that_no_file_can_have_is_unreadable(tmp_path: Path) -> None:
    found = facts(tmp_path / "a\0.jpg")
    assert (found.fault, found.why) == ("image-unreadable", "embedded null byte")


def test_what_is_no_regular_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("/dev/null")
    found = facts(tmp_path / "a.jpg")
    assert (found.fault, found.why) == ("image-unreadable", "no regular file")


@pytest.mark.parametrize("name", [5000 * "a", 5000 * "a" + "/a.jpg"])
def test_a_name_that_is_too_long_for_a_file_stops_no_inspection(name: str, data: Any, told: Any) -> None:
    data.labels["train"]["images"][0]["file_name"] = name
    assert told(data.examine(), "image-unreadable")[0].endswith("File name too long")


def test_a_link_to_nothing_is_a_note_where_no_labels_list_it(data: Any, told: Any) -> None:
    data.write()
    (data.root / "images/train/z.jpg").symlink_to("gone.jpg")
    found = data.examine()
    assert told(found, "unlisted") == [": z.jpg a link to gone.jpg, which is not there"]
    assert found.usable


def test_an_image_that_pillow_does_not_know_has_the_size_of_its_pixels(tmp_path: Path) -> None:
    file = bytes(cv2.imencode(".hdr", np.ones((150, 200, 3), np.float32))[1])
    assert "size-differs" not in kinds(facts(tmp_path / "a.hdr", file))
