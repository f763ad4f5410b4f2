"""What an executor is: four methods over plain data, so that any later process can go on where one died."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from kdlab import catalog
from kdlab.devices import Gpu, Machine
from kdlab.errors import KdlabError, UsageError, suggestion
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths

TAKEN = 75
"""Exit code of a job that was taken off its machine: a lost node, preemption, a time limit. Unix calls it
EX_TEMPFAIL, "try again"."""


class Executor(Protocol):
    """Starts jobs as processes, watches and ends them; knows nothing of plans, results or retries."""

    @property
    def machine(self) -> Machine:
        """The cores and GPUs that jobs can have, all together; those of a cluster are numbered through."""

    def slots(self, job: Job) -> int:
        """How many jobs like this one fit at once where nothing else runs; 0 where it never fits."""

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """Start the job and write its handle; None where no device is free now.

        A job that ends within this call writes no handle, for nobody can adopt it.
        """

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """Those of `handles`, by job id, that have ended, also when an earlier process had started them.

        Returns:
            Exit codes; minus the signal's number for a killed process, `TAKEN` for one that its machine
            lost or took away, None where it is not known.
        """

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Ask the job to checkpoint and stop; returns at once.

        `poll` kills what outlives `grace_s`. A second call can only bring that moment forward; 0 kills now.
        """


def load(key: str, gpus: Collection[int] | None = None, options: Mapping[str, Any] | None = None) -> Executor:
    """The executor in the file `<key>.py` here: its class of that name in capitals, `Local` in `local.py`.

    Args:
        key: the file's name.
        gpus: the GPUs to use, by number, also where they are busy; None for all that are free.
        options: keyword arguments of the class, as `resources.<key>` of a recipe gives them.

    Raises:
        UsageError: there is no such file.
        MachineError: what it needs is not there.
    """
    check(key)
    module = importlib.import_module(f"kdlab.running.executors.{key}")
    executor: Executor = getattr(module, key.title())(gpus=gpus, **(options or {}))
    return executor


def check(key: str) -> None:
    """See that an executor exists.

    Raises:
        UsageError: there is no such file.
    """
    known = list(catalog.executors())
    if key not in known:
        raise UsageError(
            "there is no such executor", got=key, known=", ".join(known), fix=suggestion(key, known)
        )


def command(job: Job, paths: JobPaths) -> list[str]:
    """What runs a job, on any machine that sees its folder; SIGTERM stops it at a checkpoint.

    It is the one process of the job, or one that starts and ends its several.
    """
    module = "job" if job.resources.ranks == 1 else "launch"
    return [sys.executable, "-m", f"kdlab.training.{module}", str(paths.folder.absolute())]


def environment(job: Job, gpus: Sequence[str] | None = None) -> dict[str, str]:
    """What a job's process must be told beside what its machine says.

    Args:
        job: which.
        gpus: UUIDs of those that it may see; None leaves that to a cluster. A job on the CPU sees none.
    """
    threads = str(job.resources.threads)
    told = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if not job.resources.gpus:
        told["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus is not None:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return told


class Node(Protocol):
    """A machine of a cluster."""

    @property
    def name(self) -> str:
        """As people know it."""

    @property
    def cores(self) -> int:
        """That jobs can have."""

    @property
    def gpus(self) -> int:
        """That jobs can have."""


def machine_of(nodes: Sequence[Node]) -> Machine:
    """A cluster as one machine; nobody asks it for the memory of its GPUs."""
    names = [f"{node.name}:{number}" for node in nodes for number in range(node.gpus)]
    gpus = [Gpu(index, name, memory_gb=0.0) for index, name in enumerate(names)]
    return Machine(tuple(range(sum(node.cores for node in nodes))), tuple(gpus))


class Keepers:
    """Who watches over a running job: the executor that started it, also in an earlier command.

    Args:
        own: the executor of this command.
    """

    def __init__(self, own: Executor) -> None:
        self._own = own
        self._others: dict[str, Executor] = {}

    def of(self, handle: Handle) -> Executor | None:
        """The executor to ask about a job; None where its heartbeat alone tells of it."""
        if handle.executor == key_of(self._own):
            return self._own if handle.here or handle.ref else None
        if not (handle.here or handle.ref):
            return None
        key = handle.executor if handle.ref else "local"
        if key not in self._others:
            # a cluster of earlier days need not be reachable from here: then the files alone tell
            with suppress(KdlabError):
                self._others[key] = load(key)
        return self._others.get(key)

    def ended(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """`Executor.poll` over jobs of several executors; those without a keeper are left out."""
        groups: dict[int, tuple[Executor, dict[str, Handle]]] = {}
        for job, handle in handles.items():
            if keeper := self.of(handle):
                groups.setdefault(id(keeper), (keeper, {}))[1][job] = handle
        return {job: code for keeper, group in groups.values() for job, code in keeper.poll(group).items()}


def key_of(executor: Executor) -> str:
    """The name by which people choose an executor: its class in small letters."""
    return type(executor).__name__.lower()
