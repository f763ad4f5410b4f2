from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kdlab.errors import JobError
from kdlab.jobs import lease as leases
from kdlab.jobs.lease import DEAD_AFTER_S, Lease, LeaseInfo, LeaseLost, Process, holder
from kdlab.jobs.paths import JobPaths

HOLD = """
import sys, time
from pathlib import Path
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.lease import Lease
lease = Lease.acquire(JobPaths(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def paths(tmp_path: Path) -> JobPaths:
    return JobPaths(tmp_path)


@pytest.fixture
def other(paths: JobPaths) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", HOLD, str(paths.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(paths: JobPaths, age_s: float, attempt: int = 4) -> None:
    """Make the lease one of another host, last heard of `age_s` ago."""
    LeaseInfo(attempt, Process("another-host", 1, 1), time.time() - age_s).write(paths)


@contextmanager
def locked_for(paths: JobPaths, seconds: float, mode: int) -> Iterator[None]:
    """Hold the lock from inside another open file for a while."""
    file = os.open(paths.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, mode)
    release = threading.Timer(seconds, os.close, [file])
    release.start()
    yield
    release.join()


def test_attempts_grow_from_one(paths: JobPaths) -> None:
    attempts = []
    for _ in range(3):
        with Lease.acquire(paths) as lease:
            attempts.append(lease.attempt)
    assert attempts == [1, 2, 3]


def test_holder_is_named_while_it_lives_and_nobody_after(paths: JobPaths) -> None:
    with Lease.acquire(paths):
        info = holder(paths)
        assert info is not None
        assert info.process == Process.of(os.getpid())
    assert holder(paths) is None


def test_folder_that_nobody_ever_held_has_no_holder(paths: JobPaths) -> None:
    assert holder(paths) is None


def test_held_folder_is_refused_with_the_name_of_its_holder(
    paths: JobPaths, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PROBED_S", 0.1)
    with pytest.raises(JobError, match=f"process {other.pid} on"):
        Lease.acquire(paths)


def test_folder_of_a_killed_process_is_free(paths: JobPaths, other: subprocess.Popen[str]) -> None:
    assert holder(paths) is not None
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(paths) is None
    with Lease.acquire(paths) as lease:
        assert lease.attempt == 2


def test_lock_that_loaders_of_a_killed_process_still_hold_is_waited_for(
    paths: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PROBED_S", 0.0)
    killed = replace(Process.of(os.getpid()), pid=2**22 + 1)
    LeaseInfo(1, killed, time.time()).write(paths)
    with locked_for(paths, 0.3, fcntl.LOCK_EX), Lease.acquire(paths) as lease:
        assert lease.attempt == 2


def test_probing_readers_do_not_keep_a_job_from_starting(paths: JobPaths) -> None:
    with locked_for(paths, 0.2, fcntl.LOCK_SH), Lease.acquire(paths) as lease:
        assert lease.attempt == 1


def test_forked_loader_does_not_keep_a_released_lease(paths: JobPaths) -> None:
    lease = Lease.acquire(paths)
    inherited = os.dup(lease._lock)
    lease.release()
    assert holder(paths) is None
    os.close(inherited)


def test_job_on_another_host_lives_by_its_heartbeat(paths: JobPaths) -> None:
    elsewhere(paths, age_s=DEAD_AFTER_S / 2)
    assert holder(paths) is not None
    with pytest.raises(JobError, match="another-host"):
        Lease.acquire(paths)


def test_job_on_another_host_whose_clock_is_behind_lives_by_its_lock(paths: JobPaths) -> None:
    elsewhere(paths, age_s=DEAD_AFTER_S * 2)
    with locked_for(paths, 0.3, fcntl.LOCK_EX):
        assert holder(paths) is not None
    assert holder(paths) is None


def test_job_on_another_host_without_heartbeat_is_dead(paths: JobPaths) -> None:
    elsewhere(paths, age_s=DEAD_AFTER_S * 2)
    assert holder(paths) is None
    with Lease.acquire(paths) as lease:
        assert lease.attempt == 5


def test_heartbeat_is_renewed(paths: JobPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    with Lease.acquire(paths):
        first = holder(paths)
        time.sleep(0.2)
        second = holder(paths)
    assert first is not None
    assert second is not None
    assert second.heartbeat > first.heartbeat
    assert replace(second, heartbeat=first.heartbeat) == first


def test_check_passes_while_the_attempt_is_the_newest(paths: JobPaths) -> None:
    with Lease.acquire(paths) as lease:
        lease.check()


@pytest.mark.parametrize("ahead", [0, 1])
def test_forgotten_process_learns_that_another_took_over(paths: JobPaths, ahead: int) -> None:
    with Lease.acquire(paths) as lease:
        elsewhere(paths, age_s=0, attempt=lease.attempt + ahead)
        with pytest.raises(LeaseLost, match="ends without writing"):
            lease.check()


def test_forgotten_process_leaves_the_newer_lease_alone(
    paths: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.02)
    lease = Lease.acquire(paths)
    # a heartbeat that has just looked may still write; the newer process then says again that it is there
    for _ in range(2):
        elsewhere(paths, age_s=0)
        newer = LeaseInfo.read(paths)
        time.sleep(0.1)
    assert LeaseInfo.read(paths) == newer
    lease.release()
    assert LeaseInfo.read(paths) == newer


def test_heartbeat_outlives_a_folder_that_was_cleaned_away(paths: JobPaths) -> None:
    with Lease.acquire(paths) as lease:
        paths.lease.unlink()
        lease.check()


def test_disk_without_locks_falls_back_on_the_process(
    paths: JobPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lease = Lease.acquire(paths)
    assert holder(paths) is not None
    lease.release()
    assert holder(paths) is None


def test_pid_that_was_given_to_another_process_is_not_the_same_process() -> None:
    me = Process.of(os.getpid())
    assert me.alive()
    assert me.started is not None
    assert not replace(me, started=me.started + 1).alive()


def test_ended_child_that_nobody_waited_for_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    process = Process.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive()
    child.wait()


def test_process_that_is_gone_or_of_another_host_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    process = Process.of(child.pid)
    child.wait()
    assert not process.alive()
    assert not replace(Process.of(os.getpid()), host="another-host").alive()


def test_process_is_the_same_one_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    me, boot_s = Process.of(os.getpid()), psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_s + 3600)
    assert me.alive()
