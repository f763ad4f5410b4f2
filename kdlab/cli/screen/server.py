"""A web server of somebody else's, kept in the foreground and ended with all that it started."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import IO

from kdlab.errors import MachineError, UsageError

HUNG_UP = 129
_STDERR = 2
_LOOK_EVERY_S, _ANSWER_S, _END_S = 0.1, 5.0, 5.0
_PORTS, _LINES = 100, 15
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Server:
    """A server at work.

    Args:
        name: what people call it.
        process: leads a process group of its own.
        host: where it listens.
        port: as well.
        log: what it has printed; None where stderr has it.
    """

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], host: str, port: int, log: IO[bytes] | None
    ) -> None:
        self.pid = process.pid
        self._name, self._process, self._port, self._log = name, process, port, log
        self._host = _ANYWHERE.get(host, host)

    @property
    def url(self) -> str:
        """Its address as a browser on this machine takes it."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}/"

    def wait_until_up(self, limit_s: float) -> None:
        """Wait until it answers.

        Raises:
            MachineError: it ended, or does not answer in time.
        """
        until = time.monotonic() + limit_s
        while not self._answers():
            if self._process.poll() is not None:
                self.wait()
            if time.monotonic() > until:
                raise self._fault(f"does not answer after {limit_s:.0f} s")
            time.sleep(_LOOK_EVERY_S)

    def wait(self) -> None:
        """Wait until it ends, which it does not do by itself unless something is wrong.

        Raises:
            MachineError: it ended.
        """
        code = self._process.wait()
        raise self._fault(f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER_S)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _fault(self, what: str) -> MachineError:
        lines: list[str] = []
        if self._log:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").rstrip().splitlines()[-_LINES:]
        got = "\n".join(["its last lines:", *(f"  |  {line}" for line in lines)]) if lines else ""
        fix = "-v shows all that it prints" if self._log else ""
        return MachineError(f"the server of {self._name} {what}", where=self.url, got=got, fix=fix)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    host: str,
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    chatty: bool = False,
) -> Iterator[Server]:
    """Start a server, and end it and its children whatever happens.

    Args:
        name: what people call it.
        command: what starts it.
        host: where it will listen.
        port: as well.
        environment: what its environment has beside ours.
        chatty: whether what it prints goes to stderr, not to a file that is shown where it fails.
    """
    with TemporaryFile() as file, _hanging_up_ends():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR if chatty else file,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
            # a group of its own: Ctrl-C reaches kdlab alone, and none of its children is forgotten
            start_new_session=True,
        )
        try:
            yield Server(name, process, host, port, None if chatty else file)
        finally:
            _end(process)


def free_port(host: str, wanted: int) -> int:
    """The first port from `wanted` on that nobody listens at.

    Raises:
        UsageError: one cannot listen there at all.
        MachineError: a hundred ports in a row are taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = min(wanted + _PORTS, 1 << 16) - 1
    for port in range(wanted, last + 1):
        try:
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                what = f"one cannot listen at port {port} of {host}"
                fix = "another --port or --host; 127.0.0.1 is this machine"
                raise UsageError(what, got=str(error.strerror), fix=fix) from error
        else:
            return port
    raise MachineError(f"the ports {wanted} to {last} of {host} are all taken", fix="another --port")


@contextmanager
def _hanging_up_ends() -> Iterator[None]:
    """Let a terminal that closes end this process in good order, unless it was told to outlive that."""
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(HUNG_UP))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a whole process group; what does not go when asked is killed."""
    try:
        _signal(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    finally:
        _signal(process.pid, signal.SIGKILL)
        process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
