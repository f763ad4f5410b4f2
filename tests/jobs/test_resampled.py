"""AP on resampled images comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdlab.jobs.resampled import RESAMPLES, Resampled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ap = np.linspace(20, 30, RESAMPLES)
    ap[7] = np.nan
    Resampled(ap, 5000, "0123456789abcdef").write(tmp_path / "resampled.npy")
    return tmp_path / "resampled.npy"


def test_what_is_written_is_read(path: Path) -> None:
    found = Resampled.read(path)
    assert found is not None
    assert (found.images, found.truth) == (5000, "0123456789abcdef")
    assert found.ap[[0, -1]].tolist() == [20.0, 30.0]
    assert np.isnan(found.ap).nonzero()[0].tolist() == [7]


def test_numpy_reads_it_too(path: Path) -> None:
    record = np.load(path)
    assert record["images"] == 5000
    assert record["ap"].shape == (RESAMPLES,)


def test_no_file_is_none(tmp_path: Path) -> None:
    assert Resampled.read(tmp_path / "resampled.npy") is None


def test_a_file_cut_short_is_none(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        assert Resampled.read(path) is None


def test_a_longer_file_is_none(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    assert Resampled.read(path) is None
