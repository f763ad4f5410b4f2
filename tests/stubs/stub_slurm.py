"""Stands in for Slurm's commands: a queue of files in `$STUB_SLURM`, and real processes.

A keeper process beside each job waits for free cores, runs the script, watches the time limit and writes
down how it ended. Words of sbatch that it does not know are remembered and do nothing. Files steer it:
`nodes` (what sinfo prints), `down` (the controller does not answer), `refuse` (what sbatch says of a job that
it does not take), `accounting` (sacct answers, also of jobs that the controller forgot).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "sinfo")
NODES = "main*|idle|n1|4|(null)\n"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"}
CORES = 4


def install(folder: Path) -> dict[str, str]:
    """Make the commands in `folder`; the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in COMMANDS:
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {Path(__file__).resolve()} {name} "$@"\n')
        command.chmod(0o755)
    (folder / "nodes").write_text(NODES)
    return {"STUB_SLURM": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


class Cluster:
    """The files of one stand-in; tests use it to look inside and to play the cluster's part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def locked(self) -> Iterator[dict[str, dict[str, Any]]]:
        """All jobs by number; what was changed of them is kept."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.folder / "jobs.json"
            jobs = json.loads(file.read_text()) if file.exists() else {}
            yield jobs
            file.with_suffix(".new").write_text(json.dumps(jobs))
            file.with_suffix(".new").replace(file)

    def job(self, ref: str) -> dict[str, Any]:
        with self.locked() as jobs:
            return dict(jobs[ref])

    def take(self, ref: str, word: str) -> None:
        """End a running job as a lost node, a preemption or a time limit would."""
        with self.locked() as jobs:
            jobs[ref]["word"] = word
            signalled(jobs[ref], signal.SIGKILL, group=True)

    def end(self) -> None:
        """Kill all jobs."""
        with self.locked() as jobs:
            for job in jobs.values():
                job["word"] = job["word"] if job["over"] else "CANCELLED"
                signalled(job, signal.SIGKILL, group=True)

    def forget(self, ref: str) -> None:
        """Let the controller forget a job."""
        with self.locked() as jobs:
            jobs[ref]["forgotten"] = True

    def calls(self, name: str) -> int:
        file = self.folder / "calls"
        return file.read_text().split().count(name) if file.exists() else 0


def signalled(job: dict[str, Any], number: int, *, group: bool = False) -> None:
    if job["pid"] and not job["over"]:
        with suppress(ProcessLookupError):
            os.killpg(job["pid"], number) if group else os.kill(job["pid"], number)


def sbatch(cluster: Cluster, words: list[str]) -> None:
    if (refusal := cluster.folder / "refuse").exists():
        sys.exit(f"sbatch: error: {refusal.read_text()}")
    told = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    if told.get("partition", "main") != "main":
        sys.exit("sbatch: error: Batch job submission failed: Invalid partition name specified")
    with cluster.locked() as jobs:
        ref = str(len(jobs) + 1)
        jobs[ref] = {"words": words, "word": "PENDING", "pid": 0, "status": 0, "over": False,
                     "cores": int(told["cpus-per-task"]), "script": sys.stdin.read(),
                     "log": told["output"].replace("%%", "%"), "minutes": float(told.get("time", 1e6)),
                     "warned_s": float(told["signal"].partition("@")[2])}  # fmt: skip
    subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, "keep", ref],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(ref)


def keep(cluster: Cluster, words: list[str]) -> None:
    """The part of the cluster's daemons, for one job."""
    [ref] = words
    child = None
    while child is None:
        with cluster.locked() as jobs:
            job = jobs[ref]
            if job["word"] != "PENDING":
                return
            others = [other for other in jobs.values() if other["pid"] and not other["over"]]
            if sum(other["cores"] for other in others) + job["cores"] <= CORES:
                child = launched(job, ref)
                job |= {"word": "RUNNING", "pid": child.pid}
        time.sleep(0.02)
    end = time.time() + 60 * job["minutes"]
    while child.poll() is None:
        if time.time() > end - job["warned_s"]:
            child.send_signal(signal.SIGTERM)
            job["warned_s"] = -1e9
        if time.time() > end:
            cluster.take(ref, "TIMEOUT")
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with cluster.locked() as jobs:
        code = child.returncode
        jobs[ref] |= {"over": True, "status": -code if code < 0 else code << 8}
        if jobs[ref]["word"] == "RUNNING":
            jobs[ref]["word"] = "FAILED" if code else "COMPLETED"


def launched(job: dict[str, Any], ref: str) -> subprocess.Popen[bytes]:
    with Path(job["log"]).open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", job["script"]], stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"SLURM_JOB_ID": ref},
        )  # fmt: skip


def squeue(cluster: Cluster, words: list[str]) -> None:
    with cluster.locked() as jobs:
        for ref, job in jobs.items():
            completing = job["word"] in ENDED and job["pid"] and not job["over"]
            if not job.get("forgotten"):
                print(f"{ref}|{'COMPLETING' if completing else job['word']}|{job['status']}|")


def sacct(cluster: Cluster, words: list[str]) -> None:
    if not (cluster.folder / "accounting").exists():
        sys.exit("Slurm accounting storage is disabled")
    refs = next(word for word in words if word.startswith("--jobs=")).partition("=")[2].split(",")
    with cluster.locked() as jobs:
        for ref in refs:
            if job := jobs.get(ref):
                code, number = job["status"] >> 8, job["status"] & 127
                print(f"{ref}|{job['word']}{' by 0' * (job['word'] == 'CANCELLED')}|{code}:{number}")


def scancel(cluster: Cluster, words: list[str]) -> None:
    told = dict(word.removeprefix("--").partition("=")[::2] for word in words[:-1])
    with cluster.locked() as jobs:
        job = jobs.get(words[-1])
        if job is None or job["word"] in ENDED:
            sys.exit(f"scancel: error: Kill job error on job id {words[-1]}: Invalid job id specified")
        if "signal" in told:
            signalled(job, signal.Signals[f"SIG{told['signal']}"])
        elif told.get("state", job["word"]) == job["word"]:
            job["word"] = "CANCELLED"
            signalled(job, signal.SIGTERM, group=True)


def sinfo(cluster: Cluster, words: list[str]) -> None:
    print((cluster.folder / "nodes").read_text(), end="")


def main(name: str, *words: str) -> None:
    cluster = Cluster(Path(os.environ["STUB_SLURM"]))
    with (cluster.folder / "calls").open("a") as calls:
        calls.write(f"{name}\n")
    if name != "keep" and (cluster.folder / "down").exists():
        sys.exit(f"{name}: error: Unable to contact slurm controller (connect failure)")
    {"keep": keep, "sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel, "sinfo": sinfo}[
        name
    ](cluster, list(words))


if __name__ == "__main__":
    main(*sys.argv[1:])
