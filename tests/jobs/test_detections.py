"""Detections come back as they were, or not at all."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from kdlab.jobs.detections import Detections

FOUND = Detections(
    images=np.array([1, 2, 4], np.int32),
    image=np.array([0, 2], np.int32),
    box=np.array([[0.1, 0.2, 10.3, 20.4], [5, 5, 9, 9]], np.float32),
    score=np.array([0.9, 0.1], np.float32),
    label=np.array([1, 0], np.int16),
    object_image=np.array([0, 1, 2], np.int32),
    object_box=np.array([[0.1, 0.2, 10.3, 20.4], [1, 2, 3, 4], [5, 5, 9, 9]]),
    object_label=np.array([1, 0, 0], np.int16),
    ignored=np.array([False, True, False]),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    FOUND.write(tmp_path / "detections.npz")
    return tmp_path / "detections.npz"


def test_what_is_written_is_read(path: Path) -> None:
    again = Detections.read(path)
    assert again is not None
    for one in fields(Detections):
        mine, theirs = getattr(FOUND, one.name), getattr(again, one.name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_no_file_is_none(tmp_path: Path) -> None:
    assert Detections.read(tmp_path / "detections.npz") is None


def test_a_file_cut_short_is_none(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert Detections.read(path) is None


@pytest.mark.parametrize("changes", [{"score": FOUND.score[:1]}, {"ignored": FOUND.ignored[:1]}])
def test_columns_that_do_not_fit_one_another_are_none(path: Path, changes: dict[str, np.ndarray]) -> None:
    replace(FOUND, **changes).write(path)
    assert Detections.read(path) is None
