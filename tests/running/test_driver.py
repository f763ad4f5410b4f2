from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

import pytest

from kdlab.jobs.paths import Runs
from kdlab.running.driver import Driver, driving


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    made = Runs(tmp_path)
    made.plans.mkdir()
    return made


def test_a_plan_that_nobody_ever_drove_has_no_driver(runs: Runs) -> None:
    assert Driver.of("7f3a0001", runs) is None


def test_a_driver_is_at_work_until_it_ends_and_its_command_stays(runs: Runs) -> None:
    with driving("7f3a0001", runs, "kdlab run digits/quickstart -y"):
        during = Driver.of("7f3a0001", runs)
    after = Driver.of("7f3a0001", runs)
    assert during is not None
    assert (during.at_work, during.process.pid) == (True, os.getpid())
    assert after is not None
    assert (after.at_work, after.command) == (False, "kdlab run digits/quickstart -y")


def test_the_newer_command_of_two_is_told_while_either_is_at_work(runs: Runs) -> None:
    with driving("7f3a0001", runs, "kdlab run first"):
        with driving("7f3a0001", runs, "kdlab run second"):
            pass
        driver = Driver.of("7f3a0001", runs)
    assert driver is not None
    assert (driver.at_work, driver.command) == (True, "kdlab run second")


def test_a_file_that_is_being_written_tells_nothing(runs: Runs) -> None:
    (runs.plans / "7f3a0001.lock").write_text('{"proc')
    assert Driver.of("7f3a0001", runs) is None


def test_nfs_which_locks_nothing_that_is_open_for_reading_alone_has_drivers(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fcntl.flock

    def nfs(file: int, mode: int) -> None:
        if mode & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        plain(file, mode)

    monkeypatch.setattr(fcntl, "flock", nfs)
    with driving("7f3a0001", runs, "kdlab run x"):
        driver = Driver.of("7f3a0001", runs)
    assert driver is not None
    assert driver.at_work
    monkeypatch.setattr(Path, "open", lambda path, mode: _read_only(path, mode))
    of_another = Driver.of("7f3a0001", runs)
    assert of_another is not None
    assert not of_another.at_work


def _read_only(path: Path, mode: str) -> IO[bytes]:
    if "+" in mode:
        raise PermissionError(errno.EACCES, "Permission denied")
    return open(path, mode)  # noqa: PTH123


def test_a_reader_does_not_keep_a_driver_out(runs: Runs) -> None:
    with driving("7f3a0001", runs, "kdlab run x"):
        pass
    assert Driver.of("7f3a0001", runs) is not None
    with driving("7f3a0001", runs, "kdlab run y"):
        driver = Driver.of("7f3a0001", runs)
    assert driver is not None
    assert driver.at_work


def test_a_full_disk_keeps_no_driver_from_its_plan(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kdlab.running.driver.json.dumps", full)
    with driving("7f3a0001", runs, "kdlab run x"):
        pass
    assert Driver.of("7f3a0001", runs) is None
