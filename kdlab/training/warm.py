"""A process that has imported what jobs need and becomes one when it is asked: `-m kdlab.training.warm FD`.

What starts jobs talks to it over a socket (`kdlab/running/warm.py`), in messages of JSON:

  from here     {"ready": true}                        once, when all is imported
  a request     {"folder": "...", "env": {...}}        with files: the log, then what leases the job's devices
  the answer    {"pid": 7}
  a request     {"ended": true}
  the answer    {"ended": {"7": 0}}                    exit codes of those that have ended since the last time

A value of `env` that is null takes the variable away. There is no thread here and no GPU, so that a fork is a
clean start. When the socket closes this process ends, and its jobs go on.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NoReturn

from kdlab.training import job

_BYTES, _FILES = 1 << 20, 253
_KINDS = ("trainer", "evaluating", "preparing", "scaling", "diagnosing", "benching")
"""Modules here that do the work of all kinds of jobs."""
_PLUGINS = ("backbones", "datasets", "detectors", "methods")
_LATER = ("matplotlib.pyplot", "pandas", "sklearn.metrics", "torch._dynamo", "torch.distributed.fsdp")
"""What torch and mmdet import when they are first used."""


def main(descriptor: str) -> int:
    """Serve until the other end of the socket is gone; a fork leaves by `SystemExit` when its job is done."""
    client = socket.socket(fileno=int(descriptor))
    import_all()
    if "libcuda.so" in Path("/proc/self/maps").read_text():
        print("its imports have begun to use CUDA, which no fork can go on with", file=sys.stderr)
        return 1
    # what is imported now is what its jobs run, wherever the checkout moves to
    job.commit()
    gc.collect()
    gc.freeze()
    client.send(b'{"ready": true}')
    if request := _serve(client):
        _become(*request)
    return 0


def import_all() -> None:
    """Import all that jobs run, plugins too: one that is imported later could be of another commit."""
    for name in _KINDS:
        import_module(f"kdlab.training.{name}")
    for name in _PLUGINS:
        package = import_module(f"kdlab.{name}")
        for module in iter_modules(package.__path__, f"kdlab.{name}."):
            import_module(module.name)
    for name in _LATER:
        import_module(name)


def _serve(client: socket.socket) -> tuple[Mapping[str, Any], list[int]] | None:
    """Answer requests; in each fork, the request that it is for and its files."""
    while True:
        text, files, *_ = socket.recv_fds(client, _BYTES, _FILES)
        if not text:
            return None
        told = json.loads(text)
        if "ended" in told:
            client.send(json.dumps({"ended": _ended()}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            client.close()
            return told, files
        for file in files:
            os.close(file)
        client.send(json.dumps({"pid": pid}).encode())


def _ended() -> dict[str, int]:
    """Exit codes of children; only now are their numbers free for others."""
    codes = {}
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            codes[str(found[0])] = os.waitstatus_to_exitcode(found[1])
    except ChildProcessError:
        pass
    return codes


def _become(told: Mapping[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the process of a job, as if started as one."""
    os.setsid()
    log = files[0]
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    for name, value in told["env"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # `ps` and `top` have it
    Path("/proc/self/comm").write_text(Path(told["folder"]).name[:15])
    _see_gpus(bool(os.environ.get("CUDA_VISIBLE_DEVICES")))
    job.leave(job.main(told["folder"]))


def _see_gpus(there: bool) -> None:
    """Tell libraries, which asked when none was to be seen, whether this job has a GPU."""
    for name in ("mmcv.utils.device_type", "mmcv.utils", "mmcv.ops.multi_scale_deform_attn"):
        setattr(import_module(name), "IS_CUDA_AVAILABLE", there)  # noqa: B010 - no attribute of theirs to mypy
    import_module("mmengine.device.utils").DEVICE = "cuda" if there else "cpu"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
