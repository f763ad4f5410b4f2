"""The lease of a job's folder: one process at a time may write, and a forgotten one learns that it lost.

The holder keeps a `flock`, which the kernel drops with the last process of the job, and renews a heartbeat
for readers on other hosts, where a shared disk may not carry the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Self

import psutil

from kdlab.errors import JobError
from kdlab.jobs.files import read_if_whole, write_json
from kdlab.jobs.paths import JobPaths

HEARTBEAT_S = 10.0
DEAD_AFTER_S = 60.0
PROBED_S = 2.0
ORPHANS_S = 15.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""Of disks without locks; the last is NFS's word for a file that is open for reading alone."""


@dataclass(frozen=True)
class Process:
    """A process of some host; its start time keeps it apart from a later one with the same number.

    Args:
        host: the machine's name.
        pid: its number there.
        started: seconds after its machine booted, which setting the clock does not move; None if it was gone.
    """

    host: str
    pid: int
    started: float | None

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this number here and now."""
        try:
            started = _started(psutil.Process(pid))
        except psutil.Error:
            started = None
        return cls(socket.gethostname(), pid, started)

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls.of(os.getpid())

    @property
    def here(self) -> bool:
        """Whether it belongs to this host."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether it runs on this host; one that ended and was not waited for does not.

        Without its start time it was gone when it was written down: who has its number now is another.
        """
        if not self.here or self.started is None:
            return False
        try:
            process = psutil.Process(self.pid)
            ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            return not ended and self.started == _started(process)
        except psutil.NoSuchProcess:
            return False


def _started(process: psutil.Process) -> float:
    since_boot_s: float = process.create_time() - psutil.boot_time()
    return round(since_boot_s, 2)


@dataclass(frozen=True)
class LeaseInfo:
    """Content of `lease.json`: the newest attempt, its process, its last sign of life (0: given up)."""

    attempt: int
    process: Process
    heartbeat: float

    @classmethod
    def read(cls, paths: JobPaths) -> Self | None:
        """The newest holder, dead or alive; None where there never was one, or its file is damaged."""
        return read_if_whole(paths.lease, cls)

    def write(self, paths: JobPaths) -> None:
        """Replace `lease.json`."""
        write_json(paths.lease, asdict(self))

    def shows_life(self) -> bool:
        """Whether it can still be at work, as far as can be told without the lock."""
        if not self.heartbeat:
            return False
        return self.process.alive() if self.process.here else time.time() - self.heartbeat < DEAD_AFTER_S


class LeaseLost(JobError):  # noqa: N818  what happened, not a fault to mend
    """A newer attempt of this job has begun; this process must write no more."""


class Lease:
    """The right to write into a job's folder; a context manager that gives it up."""

    def __init__(self, paths: JobPaths, lock: int, info: LeaseInfo) -> None:
        self._paths, self._lock, self._info = paths, lock, info
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease heartbeat", daemon=True)
        self._heart.start()

    @classmethod
    def acquire(cls, paths: JobPaths) -> Self:
        """Become the newest attempt of the job.

        Raises:
            JobError: another process holds the folder; says which.
        """
        lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o666)
        began, me = time.monotonic(), Process.current()
        try:
            while not try_lock(lock, fcntl.LOCK_EX):
                before, waited_s = LeaseInfo.read(paths), time.monotonic() - began
                # Readers hold the lock for an instant, loader processes of a killed holder for seconds.
                if waited_s > (PROBED_S if before is None or before.shows_life() else ORPHANS_S):
                    raise _held(paths, before)
                time.sleep(0.05)
            before = LeaseInfo.read(paths)
            if before is not None and before.shows_life() and before.process != me:
                raise _held(paths, before)
            info = LeaseInfo(newest_attempt(paths) + 1, me, time.time())
            info.write(paths)
        except BaseException:
            os.close(lock)
            raise
        return cls(paths, lock, info)

    @property
    def attempt(self) -> int:
        """The number of this process among all that worked on the job, from 1."""
        return self._info.attempt

    def check(self) -> None:
        """Call before writing a checkpoint or the result.

        Raises:
            LeaseLost: another process has begun on this job since.
        """
        newest = LeaseInfo.read(self._paths)
        if newest is not None and self._superseded_by(newest):
            raise LeaseLost(
                f"attempt {newest.attempt} has begun, so attempt {self.attempt} ends without writing",
                where=self._paths.folder.name,
                got=_told(newest),
                fix=f"nothing to mend; to follow the newer one: tail -f {self._paths.log}",
            )

    def release(self) -> None:
        """Give the folder up; a second call does nothing."""
        if self._released.is_set():
            return
        self._released.set()
        self._heart.join()
        self._renew(0.0)
        # An explicit unlock also frees what forked loader processes inherited; closing alone would not.
        with suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _superseded_by(self, newest: LeaseInfo) -> bool:
        other = newest.process != self._info.process
        return newest.attempt > self.attempt or (newest.attempt == self.attempt and other)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            self._renew(time.time())

    def _renew(self, heartbeat: float) -> None:
        # A full disk or a folder that was cleaned away must not end the training.
        with suppress(OSError):
            newest = LeaseInfo.read(self._paths)
            # a damaged file is made again; one that is gone went with its folder
            mine = not self._superseded_by(newest) if newest else self._paths.lease.exists()
            if mine:
                replace(self._info, heartbeat=heartbeat).write(self._paths)


def newest_attempt(paths: JobPaths) -> int:
    """The number of the newest process that worked on a job, 0 before the first."""
    info = LeaseInfo.read(paths)
    return info.attempt if info else 0


def holder(paths: JobPaths) -> LeaseInfo | None:
    """The process that works in a job's folder now, None where there is none."""
    info = LeaseInfo.read(paths)
    if info is None or info.shows_life():
        return info
    # a host whose clock is behind looks dead, too
    with suppress(FileNotFoundError), paths.lock.open("rb") as lock:
        return None if try_lock(lock.fileno(), fcntl.LOCK_SH) else info
    return None


def try_lock(file: int, mode: int) -> bool:
    """Whether a file could be locked now; yes on a disk without locks, where heartbeats decide alone."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _held(paths: JobPaths, info: LeaseInfo | None) -> JobError:
    job = paths.folder.name
    return JobError(
        "another process works on this job",
        where=job,
        got=_told(info) if info else "a process that has not said its name yet",
        fix=f"follow it: tail -f {paths.log}   or end it: touch {paths.stop_request}",
    )


def _told(info: LeaseInfo) -> str:
    return f"attempt {info.attempt}, process {info.process.pid} on {info.process.host}"
