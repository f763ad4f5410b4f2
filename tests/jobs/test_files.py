from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from kdlab.jobs.files import is_disk_full, read_json, replacing, write_json, write_json_once, write_text


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"AP": 12.5, "name": "ü"})
    assert read_json(tmp_path / "a.json") == {"AP": 12.5, "name": "ü"}


def test_missing_file_reads_as_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "a.json") is None


def test_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError, match="power"), replacing(tmp_path / "a.txt") as file:
        file.write(b"ne")
        raise RuntimeError("power")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with replacing(tmp_path / "a.txt") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_nan_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"AP": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_of_several_writers_the_first_is_read(tmp_path: Path) -> None:
    assert write_json_once(tmp_path / "a.json", 1)
    assert not write_json_once(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_of_several_writers_on_a_disk_without_links_the_first_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_of_several_writers_the_first_is_read(tmp_path)


def test_file_is_as_readable_as_one_that_was_opened_plainly(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "")
    (tmp_path / "b.txt").write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_full_disk_is_known_behind_what_it_led_to() -> None:
    with pytest.raises(ValueError, match="the write failed") as told:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("the write failed") from error
    assert is_disk_full(told.value)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(None)


def test_a_path_that_is_no_utf8_survives_the_way_through_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": "w\udcff"})
    assert read_json(tmp_path / "a.json") == {"path": "w\udcff"}
