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
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any

from kdlab import children

MOST_FILES = 200
"""That a message takes; Linux allows 253."""
IMPORTS_S = 180.0
_BYTES = 1 << 20
_PATIENCE_S = 30.0
"""For an answer, which takes milliseconds."""
_POLL_S = 0.02
# libraries read them when they are loaded; a job sets its own number of threads
_ONE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SET = {
    **dict.fromkeys(_ONE, "1"),
    "PYTHONUNBUFFERED": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Of the warm process: mmengine and mmcv ask for GPUs when they are imported. Were CUDA itself asked, even
where there is none, no fork could use it any more; its management library (NVML) may be, and counts none."""


class Lost(Exception):  # noqa: N818 - not an error: jobs are started without it
    """The warm process has ended or does not answer; says what is known of it."""


class WarmProcess:
    """The process out of which jobs are started; imports begin at once and end when `ready` says so."""

    def __init__(self) -> None:
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_PATIENCE_S)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        with its:
            process = subprocess.Popen(
                children.python("-m", "kdlab.training.warm", str(its.fileno())),
                pass_fds=[its.fileno()],
                env=os.environ | children.environment() | _SET,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        self.pid = process.pid
        self.close = weakref.finalize(self, _end, self._socket, self._errors, process)
        """Lets it end; its jobs go on."""
        self._ready, self._late_at = False, time.monotonic() + IMPORTS_S
        self._codes: dict[int, int] = {}

    def ready(self) -> bool:
        """Whether its imports are done.

        Raises:
            Lost: it has ended, or imports for ever.
        """
        if not self._ready and select.select([self._socket], [], [], 0)[0]:
            self._ready = bool(self._answer()["ready"])
        if not self._ready and time.monotonic() > self._late_at:
            raise self._lost(f"not ready after {IMPORTS_S:.0f} s")
        return self._ready

    def start(self, folder: str, env: Mapping[str, str], files: Sequence[int]) -> WarmJob:
        """Start the job of a folder.

        Args:
            folder: its own.
            env: what its environment has besides ours.
            files: descriptors: its log, then what it is to hold as long as it lives; `MOST_FILES` at most.

        Raises:
            Lost: there is no warm process any more.
        """
        ours = {name: os.environ.get(name) for name in _SET}
        return WarmJob(self, self._ask({"folder": folder, "env": {**ours, **env}}, files)["pid"])

    def code(self, pid: int) -> int | None:
        """Exit code of a job that has ended, once; None before.

        Raises:
            Lost: there is no warm process any more, and nobody knows the codes of its jobs.
        """
        if pid not in self._codes:
            found = self._ask({"ended": True})["ended"]
            self._codes |= {int(name): code for name, code in found.items()}
        # from here on the number may be another process's
        return self._codes.pop(pid, None)

    def _ask(self, told: Mapping[str, Any], files: Sequence[int] = ()) -> Any:
        try:
            socket.send_fds(self._socket, [json.dumps(told).encode()], files)
        except OSError as error:
            raise self._lost(str(error)) from error
        return self._answer()

    def _answer(self) -> Any:
        try:
            text = self._socket.recv(_BYTES)
        except OSError as error:
            raise self._lost(str(error)) from error
        if not text:
            raise self._lost("it has ended")
        return json.loads(text)

    def _lost(self, why: str) -> Lost:
        """What it may still say would answer another question."""
        if self._socket.fileno() >= 0:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            why = f"{why}: {said[-1][:200]}" if said else why
        self.close()
        return Lost(why)


def _end(its_socket: socket.socket, errors: IO[bytes], process: subprocess.Popen[bytes]) -> None:
    its_socket.close()
    errors.close()
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
            Lost: there is no warm process any more.
        """
        if self.returncode is None:
            self.returncode = self._warm.code(self.pid)
        return self.returncode

    def kill(self) -> None:
        """As `Popen.kill`."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """As `Popen.wait`; raises as `poll`."""
        while (code := self.poll()) is None:
            time.sleep(_POLL_S)
        return code
