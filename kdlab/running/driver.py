"""Lock of a plan that its `kdlab run` holds to its end, in a file that says what was typed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from kdlab.errors import UsageError
from kdlab.jobs.files import as_kind, parsed
from kdlab.jobs.lease import Process, try_lock
from kdlab.jobs.paths import Runs


@dataclass(frozen=True)
class Driver:
    """The last process that drove a plan.

    Args:
        process: which.
        command: what a person types to go on.
        jobs_at_once: how many jobs it was told to run side by side; None for what the devices allow.
        waits: what its next job waits for, and who has that; "" where nothing keeps it.
        at_work: whether it still drives it, or another that came before it does; where a disk has no locks
            nobody can tell, and it is False.
    """

    process: Process
    command: str
    at_work: bool
    jobs_at_once: int | None = None
    waits: str = ""

    @classmethod
    def of(cls, plan_id: str, runs: Runs) -> Self | None:
        """The last driver of a plan, None where it is not known."""
        try:
            with _opened(_file(plan_id, runs)) as file:
                data = parsed(file.read())
                at_work = not try_lock(file.fileno(), fcntl.LOCK_EX)
            return as_kind({**data, "at_work": at_work}, cls)
        except (FileNotFoundError, ValueError, TypeError):
            # a driver that cannot be named still holds its lock, and the jobs have their own files
            return None


@contextmanager
def driving(
    plan_id: str, runs: Runs, command: str, jobs_at_once: int | None = None
) -> Iterator[Callable[[str], None]]:
    """Say that this process drives a plan, as long as it is inside; several can.

    What is given says what its next job waits for, "" for nothing.
    """
    told = {"process": asdict(Process.current()), "command": command, "jobs_at_once": jobs_at_once}
    with open(os.open(_file(plan_id, runs), os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:  # noqa: PTH123
        # waits where a reader has it for an instant, and goes on where a disk has no locks
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)

        def say(waits: str) -> None:
            # a full disk stops what cannot do without, and tells why
            with suppress(OSError):
                # in one piece, for others read it any time
                size = os.fstat(file.fileno()).st_size
                os.pwrite(file.fileno(), json.dumps({**told, "waits": waits}).encode().ljust(size), 0)

        say("")
        yield say


@contextmanager
def alone(plan_id: str, runs: Runs) -> Iterator[None]:
    """Let one process at a time drive a plan, where two would each go their own way.

    Raises:
        UsageError: another one does.
    """
    path = runs.plans / f"{plan_id}.alone.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not try_lock(file.fileno(), fcntl.LOCK_EX):
            fix = f"kdlab status {plan_id}"
            raise UsageError("another command is at this search already", where=str(runs.folder), fix=fix)
        yield


def _opened(path: Path) -> BinaryIO:
    """A lock file to look at; NFS locks none that is open for reading alone."""
    try:
        return path.open("r+b")
    except OSError:
        return path.open("rb")


def _file(plan_id: str, runs: Runs) -> Path:
    return runs.plans / f"{plan_id}.lock"
