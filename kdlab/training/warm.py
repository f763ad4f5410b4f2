"""A process that has imported what jobs need and becomes one when it is asked: `-m kdlab.training.warm FD`.

What starts jobs talks to it over a socket (`kdlab/running/warm.py`), in messages of JSON:

  from here     {"ready": true}                        once, when all is imported
  a request     {"folder": "...", "env": {...}}        with files: the log, then what leases the job's devices
  the answer    {"pid": 7}
  a request     {"ended": true}
  the answer    {"ended": {"7": 0}}                    exit codes since the last time

It has no thread and no GPU, so that a fork of it is a clean start. When the socket closes it ends; jobs stay.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from kdlab.training import job

BYTES, FILES = 1 << 20, 64
_NEEDED = ("trainer", "evaluating", "preparing", "scaling", "diagnosing")
"""Modules here that do the work of all kinds of jobs."""
_LATER = (
    "matplotlib.pyplot",
    "pandas",
    "sklearn.metrics",
    "torch._dynamo",
    "torch.distributed.fsdp",
)
"""What torch and mmdet import when they are first used."""


def main(descriptor: str) -> int:
    """Serve until the other end of the socket is gone; a fork leaves by `SystemExit` when its job is done."""
    client = socket.socket(fileno=int(descriptor))
    for name in _NEEDED:
        import_module(f"kdlab.training.{name}")
    for name in _LATER:
        import_module(name)
    # what is imported now is what its jobs run, wherever the checkout moves to
    job.commit()
    gc.collect()
    gc.freeze()
    client.send(b'{"ready": true}')
    if request := _serve(client):
        _become(*request)
    return 0


def _serve(client: socket.socket) -> tuple[Mapping[str, Any], list[int]] | None:
    """Answer requests; in each fork, the request that it is for and its files."""
    ended: dict[int, int] = {}

    def reap(*_: object) -> None:
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = os.waitstatus_to_exitcode(found[1])
        except ChildProcessError:
            return

    signal.signal(signal.SIGCHLD, reap)
    while True:
        text, files, *_ = socket.recv_fds(client, BYTES, FILES)
        if not text:
            return None
        told = json.loads(text)
        if "ended" in told:
            codes = {str(pid): ended.pop(pid) for pid in list(ended)}
            client.send(json.dumps({"ended": codes}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            client.close()
            return told, files
        for file in files:
            os.close(file)
        client.send(json.dumps({"pid": pid}).encode())


def _become(told: Mapping[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the process of a job, as if started as one."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = files[0]
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.clear()
    os.environ.update(told["env"])
    job.leave(job.main(told["folder"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
