"""What a job keeps of its detections comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdlab.jobs.matches import Matches


@pytest.fixture
def matches() -> Matches:
    return Matches(
        images=np.array([3, 8], np.int64),
        image=np.array([1, 0, 0], np.int32),
        label=np.array([0, 0, 1], np.int16),
        score=np.array([0.9, 0.5, 0.7], np.float32),
        right=np.array([1023, 0, 1], np.uint16),
        ignored=np.array([0, 2, 0], np.uint16),
        objects=np.array([[1, 1], [2, 0]], np.uint16),
    )


def test_what_is_written_is_read(tmp_path: Path, matches: Matches) -> None:
    matches.write(tmp_path / "matches.npz")
    read = Matches.read(tmp_path / "matches.npz")
    assert read is not None
    for name, array in vars(matches).items():
        assert getattr(read, name).dtype == array.dtype
        assert (getattr(read, name) == array).all()


def test_no_file_is_none(tmp_path: Path) -> None:
    assert Matches.read(tmp_path / "matches.npz") is None


def test_a_damaged_file_is_none_or_what_it_was(tmp_path: Path, matches: Matches) -> None:
    path = tmp_path / "matches.npz"
    matches.write(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        read = Matches.read(path)
        assert read is None or len(read.image) == len(read.score)


@pytest.mark.parametrize("part", [0, 10, 500, -1])
def test_a_file_cut_short_is_none(tmp_path: Path, matches: Matches, part: int) -> None:
    path = tmp_path / "matches.npz"
    matches.write(path)
    path.write_bytes(path.read_bytes()[:part])
    assert Matches.read(path) is None
