"""Starts the processes of a job that has several: `python -m kdlab.training.launch FOLDER`.

They get torchrun's variables, so torchrun can start them as well. It is not used here, because it puts each
process into a session of its own, which outlives the kill of the job, signals their loader processes too, so
that the step before the last checkpoint fails, and hides behind exit code 1 what a process was killed by.
"""

from __future__ import annotations

import math
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

from kdlab import children
from kdlab.jobs.handle import PREEMPTED
from kdlab.jobs.job import read_job
from kdlab.jobs.paths import JobPaths

MODULE = "kdlab.training.job"
STOPPED = 143
_POLL_S = 0.1
_GRACE_S = 10.0
"""For the others to end by themselves once one has failed; a process that waits for a GPU cannot."""


def main(folder: str, module: str = MODULE) -> int:
    """Run a job's processes until all or one have ended.

    SIGTERM and Ctrl-C reach them as SIGTERM, a second one as SIGKILL. They see those of a terminal or a batch
    system too, and so heed no Ctrl-C and no second SIGTERM.

    Returns:
        0 done, 143 stopped on request, else the code of the process that failed first, which is minus the
        signal's number if it was killed.
    """
    ranks = read_job(JobPaths(Path(folder))).resources.ranks
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        asked.append(number)
        for child in started:
            child.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    with tempfile.TemporaryDirectory(prefix="kdlab-") as meeting:
        for rank in range(ranks):
            started.append(
                subprocess.Popen(
                    children.python("-m", module, folder),
                    env=environment(rank, ranks, meeting),
                    # what it would say of the job, rank 0 says; its errors go to the log
                    stdout=subprocess.DEVNULL if rank else None,
                    # the lock files of the leased devices go with it
                    close_fds=False,
                )
            )
        try:
            # some were not there yet to hear of it, and nothing is lost
            return STOPPED if asked else exit_code(started)
        finally:
            for child in started:
                child.kill()
                child.wait()


def environment(rank: int, ranks: int, meeting: str) -> dict[str, str]:
    """torchrun's variables, and a file to meet at: a port could be taken before it is used."""
    # torch's warning that all parameters were used is none, and others are told once
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    if rank:
        quiet["PYTHONWARNINGS"] = "ignore"
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "KDLAB_RENDEZVOUS": f"file://{meeting}/meeting",
    }
    if "lo" in dict(socket.if_nameindex()).values():
        # the name of a host can lead to an address that it does not have
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return quiet | os.environ | children.environment() | own


def exit_code(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; once one has failed, not longer than the grace, and with its code."""
    first, deadline = 0, math.inf
    while True:
        codes = [child.poll() for child in children]
        # a killed one first, or one whose GPU is broken: the others fail because it is gone
        failed = [code for code in codes if code not in (None, 0, STOPPED)]
        failed.sort(key=lambda code: (code > 0, code != PREEMPTED, code))
        if failed and not first:
            first, deadline = failed[0], time.monotonic() + _GRACE_S
        if None not in codes or time.monotonic() > deadline:
            return first or max(codes)
        time.sleep(_POLL_S)


def leave(code: int) -> None:
    """End this process as the one ended whose code this is: by the same signal, if it was one."""
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(abs(code))


if __name__ == "__main__":
    leave(main(sys.argv[1]))
