"""Jobs of this machine out of a process that has imported torch and mmdet once: each starts in a moment.

`kdlab/training/warm.py` is that process. It is started with the first job and ends with this one; its jobs go
on. Where it cannot be had, jobs are started as processes that import for themselves.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from kdlab import children

_BYTES = 1 << 20
# libraries read them when they are loaded; a job sets its own number of threads
_ALONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Lost(Exception):  # noqa: N818 - not an error: jobs are started without it
    """The warm process has ended."""


class WarmProcess:
    """The process out of which jobs are started; imports begin at once and end when `ready` says so."""

    def __init__(self) -> None:
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            process = subprocess.Popen(
                children.python("-W", "ignore", "-m", "kdlab.training.warm", str(its.fileno())),
                pass_fds=[its.fileno()],
                env=os.environ | children.environment() | _ALONE | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _end, self._socket, process)
        """Lets it end; its jobs go on."""
        self.pid = process.pid
        self._ready = False
        self._codes: dict[int, int] = {}

    def ready(self) -> bool:
        """Whether its imports are done.

        Raises:
            Lost: it has ended.
        """
        if not self._ready and select.select([self._socket], [], [], 0)[0]:
            self._ready = bool(self._answer()["ready"])
        return self._ready

    def start(self, folder: str, env: Mapping[str, str], files: Sequence[int]) -> WarmJob:
        """Start the job of a folder.

        Args:
            folder: its own.
            env: all of its environment.
            files: descriptors: its log, then what it is to hold as long as it lives.

        Raises:
            Lost: the warm process has ended.
        """
        return WarmJob(self, self._ask({"folder": folder, "env": dict(env)}, files)["pid"])

    def code(self, pid: int) -> int | None:
        """Exit code of a job that has ended; None before.

        Raises:
            Lost: the warm process has ended, and nobody knows the codes of its jobs.
        """
        if pid not in self._codes:
            found = self._ask({"ended": True})["ended"]
            self._codes |= {int(name): code for name, code in found.items()}
        return self._codes.get(pid)

    def _ask(self, told: Mapping[str, Any], files: Sequence[int] = ()) -> Any:
        try:
            socket.send_fds(self._socket, [json.dumps(told).encode()], files)
        except OSError as error:
            raise Lost from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            text = self._socket.recv(_BYTES)
        except OSError as error:
            raise Lost from error
        if not text:
            raise Lost
        return json.loads(text)


def _end(its_socket: socket.socket, process: subprocess.Popen[bytes]) -> None:
    its_socket.close()
    # it may be importing
    process.kill()
    process.wait()


class WarmJob:
    """A job that a warm process started: what is needed of `Popen`."""

    def __init__(self, warm: WarmProcess, pid: int) -> None:
        self.pid, self._warm = pid, warm
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As `Popen.poll`.

        Raises:
            Lost: the warm process has ended.
        """
        if self.returncode is None:
            self.returncode = self._warm.code(self.pid)
        return self.returncode

    def kill(self) -> None:
        """As `Popen.kill`."""
        os.kill(self.pid, signal.SIGKILL)
