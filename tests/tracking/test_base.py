from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kdlab.errors import MachineError
from kdlab.reporting import queries
from kdlab.tracking import base


@pytest.fixture
def drip() -> Iterator[int]:
    """The port of a server whose answers never end: a byte, a rest, a byte."""
    over = threading.Event()

    def serve(client: socket.socket) -> None:
        with client:
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not over.wait(0.05):
                client.sendall(b" ")

    def accept(server: socket.socket) -> None:
        while not over.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield server.getsockname()[1]
        over.set()


def test_a_server_that_sends_a_byte_at_a_time_is_not_waited_for(
    bench, drip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow  # noqa: F401  takes seconds that are none of the server's

    monkeypatch.setattr(base, "ANSWER_S", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:S3CRET@127.0.0.1:{drip}")
    bench.runs.folder.mkdir()
    began = time.monotonic()
    with pytest.raises(MachineError, match="no whole answer") as raised:
        queries.plans("", bench.runs)
    assert time.monotonic() - began < 5
    assert "S3CRET" not in str(raised.value)


def test_what_asking_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        base.answer(lambda: 1 / 0)
    assert base.answer(lambda: 3) == 3
