from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from kdlab.cli.screen import server
from kdlab.errors import MachineError, UsageError
from tests.cli.conftest import wait_for

HOST = "127.0.0.1"
WEB = """
import sys, http.server as h
h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.BaseHTTPRequestHandler).serve_forever()
"""
# its child deaf to SIGTERM, which it tells in a file
WITH_CHILD = f"""
import os, signal, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open('child', 'w').write(str(os.getpid()))
    time.sleep(600)
{WEB}
"""


@pytest.fixture
def port() -> int:
    return server.free_port(HOST, 21000 + os.getpid() % 1000 * 10)


@contextmanager
def running(code: str, port: int, chatty: bool = False) -> Iterator[server.Server]:
    with server.running("X", (sys.executable, "-c", code, str(port)), HOST, port, chatty=chatty) as started:
        yield started


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def test_it_is_up_once_it_answers(port: int) -> None:
    with running(f"import time; time.sleep(0.5){WEB}", port) as started:
        started.wait_until_up(10)
        assert started.url == f"http://127.0.0.1:{port}/"
        with closing(HTTPConnection(HOST, port)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().status == 501


def test_leaving_ends_also_children_that_do_not_listen(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = tmp_path / "child"
    with running(WITH_CHILD, port) as started:
        started.wait_until_up(10)
        wait_for(lambda: child.exists() and child.read_text())
        assert not gone(int(child.read_text()))
    wait_for(lambda: gone(int(child.read_text())))
    assert gone(started.pid)


def test_a_server_deaf_to_the_request_is_killed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_END_S", 0.2)
    with running(f"import signal; signal.signal(15, signal.SIG_IGN){WEB}", port) as started:
        started.wait_until_up(10)
    assert gone(started.pid)


def test_a_server_that_ends_at_once_tells_its_last_lines(port: int) -> None:
    code = "for n in range(20): print('line', n, flush=True)\nraise SystemExit(7)"
    with pytest.raises(MachineError) as caught, running(code, port) as started:
        started.wait_until_up(10)
    told = str(caught.value).splitlines()
    assert told[0] == f"error: http://127.0.0.1:{port}/  the server of X ended with exit code 7"
    assert told[1] == "  got    its last lines:"
    assert told[2:17] == [f"  |  line {n}" for n in range(5, 20)]


def test_a_server_that_is_killed_tells_the_signal(port: int) -> None:
    with pytest.raises(MachineError, match="was ended by signal 9"), running(WEB, port) as started:
        started.wait_until_up(10)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()


def test_a_server_that_never_answers_is_given_up(port: int) -> None:
    with (
        pytest.raises(MachineError, match="does not answer after 0 s"),
        running("import time; time.sleep(60)", port) as started,
    ):
        started.wait_until_up(0.3)


def test_what_it_prints_goes_to_stderr_if_wanted(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('said'); print('wrong', file=sys.stderr)"
    with pytest.raises(MachineError) as caught, running(code, port, chatty=True) as started:
        started.wait()
    assert "last lines" not in str(caught.value)
    assert sorted(capfd.readouterr().err.split()) == ["said", "wrong"]


@pytest.fixture
def hangups_heeded() -> Iterator[None]:
    """Whoever started the tests under nohup has them ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_heeded")
def test_a_terminal_that_closes_ends_it(port: int) -> None:
    with pytest.raises(SystemExit) as caught, running(WEB, port) as started:
        os.kill(os.getpid(), signal.SIGHUP)
        started.wait()
    assert caught.value.code == server.HUNG_UP
    assert gone(started.pid)


def test_a_taken_port_is_passed_over(port: int) -> None:
    with closing(socket.create_server((HOST, port))):
        assert server.free_port(HOST, port) > port


def test_a_host_that_is_not_this_machine_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="one cannot listen at port 5000"):
        server.free_port("192.0.2.1", 5000)
