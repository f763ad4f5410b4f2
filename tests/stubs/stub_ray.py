"""Real Ray nodes on this machine, on ports and in folders of their own, ended for certain and no others."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_MARK = "KDLAB_TEST_RAY"


@dataclass(frozen=True)
class Node:
    """What started under one mark in the environment, which Ray's processes and their jobs inherit."""

    mark: str

    def processes(self) -> set[int]:
        wanted, found = f"{_MARK}={self.mark}".encode(), set()
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
        # a process of Ray writes its title over its environment, but is a child of one that does not
        return found | {process for process, parent in parents.items() if parent in found}

    def lose(self) -> None:
        """End it with all that it started, as a power cut would end a host."""
        while left := self.processes():
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_node(*words: str, cores: int, folder: Path) -> Node:
    node = Node(uuid.uuid4().hex)
    words = (*words, f"--num-cpus={cores}", "--object-store-memory=80000000", "--disable-usage-stats")
    if "--head" in words:
        words = (*words, "--include-dashboard=false")
    try:
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
            env={**os.environ, "RAY_TMPDIR": str(folder), _MARK: node.mark},
            check=True,
            capture_output=True,
            timeout=120,
        )
    except BaseException:
        node.lose()
        raise
    return node


@contextmanager
def ray_started(cores: int) -> Iterator[str]:
    """A cluster of one node; its address."""
    # sockets live below: their paths must stay short
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    address = f"127.0.0.1:{free_port()}"
    try:
        head = start_node("--head", f"--port={address.partition(':')[2]}", cores=cores, folder=folder)
        try:
            yield address
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
            head.lose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
