"""Slurm's own commands and what they say, as plain data; the only place that runs them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdlab.errors import MachineError
from kdlab.running.executors.base import Node

_PATIENCE_S = 120.0
_UP = ("idle", "mix", "alloc", "comp", "plnd", "resv")
"""States of nodes that run jobs now or later, as sinfo shortens them."""
_GPUS = re.compile(r"(?:^|,)gpu(?::[^,:(]+)?:(\d+)")
_ALIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "COMPLETING"),
    *("STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
}


@dataclass(frozen=True)
class State:
    """State of a batch job.

    Args:
        word: Slurm's word for it ("RUNNING"); "" where nothing is known any more.
        code: exit code once it has ended, minus the signal's number for a killed one; None unknown.
    """

    word: str
    code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs or will run."""
        return self.word not in _ALIVE


def nodes(partition: str | None) -> list[Node]:
    """The nodes of a partition that are up; of the default one for None.

    Raises:
        MachineError: Slurm does not answer, or no such node is up.
    """
    done = run(["sinfo", "--all", "--noheader", "--Node", "--format=%P|%t|%N|%c|%G"])
    if done.returncode:
        raise MachineError(
            "Slurm does not answer",
            got=words_of(done),
            fix="see whether sinfo works here, or train on this machine: --executor local",
        )
    rows = [line.strip().split("|", 4) for line in done.stdout.splitlines()]
    ours = _rows_of(partition, rows)
    found = {}
    for _, state, name, cores, gres in ours:
        # "mix-" and "idle~", which sleeps, are up; "drng" and "idle*", which does not answer, are not
        if state.rstrip("~#%@^-+!$") in _UP:
            # sum of "gpu:2" or "gpu:a100:4(S:0-1),gpu:t4:1"; nothing is found in "(null)"
            found[name] = Node(name, int(cores), sum(map(int, _GPUS.findall(gres))))
    if found:
        return list(found.values())
    states = {f"{row[2]} {row[1]}" for row in ours}
    partitions = {row[0].rstrip("*") for row in rows}
    raise MachineError(
        f"no node of partition {partition or 'by default'} is up",
        got=", ".join(sorted(states)) or "no node at all",
        known=f"partitions {', '.join(sorted(partitions))}",
        fix="choose another one: --set resources.slurm.partition=NAME",
    )


def _rows_of(partition: str | None, rows: list[list[str]]) -> list[list[str]]:
    """Those of a partition or several; for None of the default one, which a star marks, else all."""
    if partition:
        return [row for row in rows if row[0].rstrip("*") in partition.split(",")]
    defaults = {row[0] for row in rows if row[0].endswith("*")}
    return [row for row in rows if row[0] in defaults] or rows


def queue() -> dict[str, State] | None:
    """This user's jobs that Slurm's controller remembers, by number; None where it does not answer now."""
    form = "JobID:|,State:|,exit_code:|"
    done = run(["squeue", "--me", "--states=all", "--noheader", f"--Format={form}"])
    return None if done.returncode else dict(_states(done.stdout))


def accounted(refs: Collection[str]) -> dict[str, State]:
    """States by the accounting of jobs that the controller forgot; nothing where there is no accounting."""
    form = "--format=JobIDRaw,State,ExitCode"
    done = run(["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(refs)}", form])
    return {} if done.returncode else dict(_states(done.stdout))


def run(
    words: Sequence[str], script: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One of Slurm's commands, with a return code also where it is missing or silent."""
    try:
        return subprocess.run(
            words,
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
            # Ctrl-C must not end sbatch between the job that it made and the number that it tells
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer in {_PATIENCE_S:.0f} s: timed out")
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: {error.strerror}")


def words_of(done: subprocess.CompletedProcess[str]) -> str:
    """The error messages of a command, on one line."""
    lines = [line.rpartition("error: ")[2] for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"{done.args[0]} ended with exit code {done.returncode}"


def _states(text: str) -> Iterator[tuple[str, State]]:
    """From lines "12|FAILED|256" or "12|CANCELLED by 1000|0:15"."""
    for line in text.splitlines():
        ref, words, ending = [part.strip() for part in line.split("|")][:3]
        word = words.partition(" ")[0]
        # a wait status (of squeue) or "code:signal" (of sacct)
        code, colon, number = ending.partition(":")
        if not code.isdigit():
            yield ref, State(word)
        elif not colon:
            yield ref, State(word, os.waitstatus_to_exitcode(int(code)))
        else:
            yield ref, State(word, -int(number or 0) or int(code))
