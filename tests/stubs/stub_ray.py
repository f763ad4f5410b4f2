"""Real Ray nodes on this machine, on ports and in folders of their own, ended for certain."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_node(*words: str, cores: int, folder: Path) -> list[int]:
    """Start a node; the processes that it consists of."""
    before = ray_processes()
    small = ["--object-store-memory=80000000", "--disable-usage-stats", "--include-dashboard=false"]
    words = (*words, f"--num-cpus={cores}", *(small if "--head" in words else small[:2]))
    subprocess.run(
        [shutil.which("ray") or "ray", "start", *words],
        env={**os.environ, "RAY_TMPDIR": str(folder)},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return sorted(ray_processes() - before)


def ray_processes() -> set[int]:
    """All processes here that belong to Ray."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and b"ray" in (entry / "cmdline").read_bytes().split(b"\0")[0]:
                found.add(int(entry.name))
    return found


def lose(processes: list[int]) -> None:
    """End processes with all that they started, as a power cut would end a host."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    lost = set(processes)
    while more := {process for process, parent in parents.items() if parent in lost} - lost:
        lost |= more
    for process in lost:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def ray_started(cores: int) -> Iterator[str]:
    """A cluster of one node; its address."""
    # sockets live below: their paths must stay short
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    address = f"127.0.0.1:{free_port()}"
    before = ray_processes()
    try:
        start_node("--head", f"--port={address.partition(':')[2]}", cores=cores, folder=folder)
        yield address
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        lose(sorted(ray_processes() - before))
        shutil.rmtree(folder, ignore_errors=True)
