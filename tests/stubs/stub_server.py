"""Starts stub jobs as forks of one small process, where only what the scheduler makes of them is tested.

A stub as a process of its own spends a quarter of a second on imports, and the tests start hundreds.
`popen` stands for the `Popen` of `Local`: the child leads a session of its own and holds the files that it
is handed, and the environment and the log are its own. It takes a message of JSON a request, with files:

  {"folder": "...", "env": {...}} and the log and leases   -> the child's number
  {"pid": 7}                                               -> its exit code, null while it runs
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.stubs import stub_job

_BYTES, _FILES = 1 << 17, 16
# two schedulers may be threads of one test
_TURN = threading.Lock()


class Child:
    """What is needed of `Popen`, for a child of the server."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As `Popen.poll`."""
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})
        return self.returncode

    def wait(self) -> int:
        """As `Popen.wait`."""
        while self.poll() is None:
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """As `Popen.kill`."""
        os.kill(self.pid, signal.SIGKILL)


def popen(
    command: Sequence[str],
    *,
    stdout: IO[bytes],
    env: Mapping[str, str],
    pass_fds: Sequence[int],
    **as_usual: Any,
) -> Child | subprocess.Popen[bytes]:
    """A child of the server where a stub is to start, else a process as usual."""
    if tuple(command[:-1]) != stub_job.COMMAND:
        return subprocess.Popen(command, stdout=stdout, env=env, pass_fds=pass_fds, **as_usual)
    told = {"folder": command[-1], "env": dict(env)}
    return Child(_ask(told, [stdout.fileno(), *pass_fds]))


SUBPROCESS = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
"""In the place of `subprocess` in the module of `Local`."""


@cache
def _server() -> socket.socket:
    """The end of a socket at whose other end a server is, for the life of this process."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, __file__, str(its.fileno())]
        process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    atexit.register(lambda: (mine.close(), process.wait()))
    return mine


def _ask(told: dict[str, Any], files: Sequence[int] = ()) -> Any:
    with _TURN:
        socket.send_fds(_server(), [json.dumps(told).encode()], files)
        return json.loads(_server().recv(_BYTES))


def _become(folder: str, env: Mapping[str, str], log: int) -> NoReturn:
    """Be the process of a job; never returns."""
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(env)
        code = stub_job.main(Path(folder))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def serve(client: socket.socket) -> None:
    """Answer until the other end is gone, and take in whoever ends."""
    codes: dict[int, int] = {}

    def reap(*_: object) -> None:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return

    signal.signal(signal.SIGCHLD, reap)
    while (received := socket.recv_fds(client, _BYTES, _FILES))[0]:
        told, files = json.loads(received[0]), received[1]
        if "pid" in told:
            client.send(json.dumps(codes.get(told["pid"])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            client.close()
            _become(told["folder"], told["env"], files[0])
        for file in files:
            os.close(file)
        client.send(json.dumps(pid).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
