"""Broken images are told once and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.datasets._images import UnreadableError
from kdlab.training.images import BrokenImage, BrokenImages, LoadImage


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


def test_what_is_no_regular_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("/dev/null")
    with pytest.raises(UnreadableError, match="no regular file"):
        LoadImage()({"img_path": str(tmp_path / "a.jpg"), "height": 1, "width": 1})
