"""Starts the processes of a job that has several: `python -m kdlab.training.launch FOLDER`.

They get torchrun's variables, so torchrun can start them as well. It is not used here, because it puts each
process into a session of its own, which outlives the kill of the job, signals their loader processes too, so
that the step before the last checkpoint fails, and hides behind exit code 1 what a process was killed by.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths

MODULE = "kdlab.training.job"
STOPPED = 143
_POLL_S = 0.1
_GRACE_S = 10.0
"""For the others to end by themselves once one has failed; a process that waits for a GPU cannot."""

Children = Sequence["subprocess.Popen[bytes]"]


def main(folder: str, module: str = MODULE) -> int:
    """Run a job's processes until all or one have ended.

    Returns:
        0 done, 143 stopped on request, else the code of the process that failed first, which is minus the
        signal's number if it was killed.
    """
    ranks = read_job(JobPaths(Path(folder))).resources.ranks
    with tempfile.TemporaryDirectory(prefix="kdlab-") as meeting:
        children: list[subprocess.Popen[bytes]] = []
        asked = _forward_signals(children)
        for rank in range(ranks):
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, folder],
                    env=_quiet(rank) | os.environ | _environment(rank, ranks, meeting),
                    # what it would say of the job, rank 0 says; its errors go to the log
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    # the lock files of the leased devices go with it
                    close_fds=False,
                )
            )
        try:
            # some were not there yet to hear of it, and nothing is lost
            return STOPPED if asked else _watch(children)
        finally:
            _kill(children)


def _quiet(rank: int) -> dict[str, str]:
    """Warnings once and not from each process, and none of torch that all parameters were used."""
    return {"TORCH_CPP_LOG_LEVEL": "ERROR", **({"PYTHONWARNINGS": "ignore"} if rank else {})}


def _environment(rank: int, ranks: int, meeting: str) -> dict[str, str]:
    """torchrun's variables, and a file to meet at: a port could be taken before it is used."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if any(name == "lo" for _, name in socket.if_nameindex()) else {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "KDLAB_RENDEZVOUS": f"file://{meeting}/meeting",
        # the name of a host can lead to an address that it does not have
        **loopback,
    }


def _forward_signals(children: Children) -> list[int]:
    """Pass SIGTERM and Ctrl-C on as SIGTERM, a second one as SIGKILL.

    The processes see those of a terminal or a batch system too, and so heed no Ctrl-C and no second SIGTERM.

    Returns:
        The signals so far; the list grows.
    """
    asked: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    return asked


def _watch(children: Children) -> int:
    """Wait for all; once one has failed, not longer than the grace."""
    while True:
        codes = [child.poll() for child in children]
        # a killed one first: the others fail because it is gone
        if failed := sorted(code for code in codes if code not in (None, 0, STOPPED)):
            _give_grace(children)
            return int(failed[0])
        if None not in codes:
            return STOPPED if STOPPED in codes else 0
        time.sleep(_POLL_S)


def _give_grace(children: Children) -> None:
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(_POLL_S)


def _kill(children: Children) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def leave(code: int) -> None:
    """End this process as the one ended whose code this is: by the same signal, if it was one."""
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(abs(code))


if __name__ == "__main__":
    leave(main(sys.argv[1]))
