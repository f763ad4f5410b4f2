"""Executors: five methods over plain data, so that any later process can go on where one died."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kdlab import catalog, children
from kdlab.devices import Gpu, Machine
from kdlab.errors import KdlabError, UsageError, suggestion
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process
from kdlab.jobs.paths import JobPaths


class Executor(Protocol):
    """Starts jobs as processes, watches and ends them; knows nothing of plans, results or retries."""

    @property
    def machine(self) -> Machine:
        """The cores and GPUs that jobs can have, all together; those of a cluster are numbered through."""

    def slots(self, job: Job) -> int:
        """Number of jobs like this one that fit at once where nothing else runs; 0 where it never fits."""

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """Start the job and write its handle; None where no device is free now."""

    def waits_for(self, job: Job) -> str:
        """What a job that could not start waits for, and who has it; "" where that is not for us to know."""

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """Those of `handles`, by job id, that have ended, also when an earlier process had started them.

        Returns:
            Exit codes; minus the signal's number for a killed process, `PREEMPTED` for one that its
            cluster took away or lost, None where it is not known.
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


def command(job: Job, paths: JobPaths, own: Sequence[str] | None = None) -> list[str]:
    """Command of a job, on any machine that sees its folder; SIGTERM stops it at a checkpoint.

    It is the one process of the job, or one that starts and ends its several.

    Args:
        job: which.
        paths: its folder, which is appended.
        own: another command to run in place of kdlab's.
    """
    module = "job" if job.resources.ranks == 1 else "launch"
    words = own or children.python("-m", f"kdlab.training.{module}")
    return [*words, str(paths.folder.absolute())]


def environment(job: Job, gpus: Sequence[str] | None = None) -> dict[str, str]:
    """Environment variables of a job besides those of its machine.

    Args:
        job: which.
        gpus: UUIDs of those that it may see; None leaves that to a cluster. A job on the CPU sees none.
    """
    threads = str(job.resources.threads)
    told = children.environment()
    told |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if not job.resources.gpus:
        told["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus is not None:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return told


@dataclass(frozen=True)
class Node:
    """A node of a cluster that is up, whoever uses it now.

    Args:
        name: as people know it.
        cores: those that jobs can have.
        gpus: the same.
        id: as the cluster knows it, where that is another name.
    """

    name: str
    cores: int
    gpus: int
    id: str = ""


def machine_of(nodes: Sequence[Node]) -> Machine:
    """A cluster as one machine; nobody asks it for the memory of its GPUs."""
    names = [f"{node.name}:{number}" for node in nodes for number in range(node.gpus)]
    gpus = [Gpu(index, name, memory_gb=0.0) for index, name in enumerate(names)]
    return Machine(tuple(range(sum(node.cores for node in nodes))), tuple(gpus))


def cores_on(nodes: Sequence[Node], job: Job, wanted: int) -> int:
    """Cores to ask for, for a job that runs on one node.

    More threads than cores are slow but right, and the thread count is part of the result.
    """
    most = max((node.cores for node in nodes if node.gpus >= job.resources.gpus), default=wanted)
    return max(1, min(wanted, most))


def slots_on(nodes: Sequence[Node], cores: int, gpus: int, share: int = 1) -> int:
    """Number of jobs with so many cores and GPUs that fit at once, each on one node, `share` on a GPU."""
    slots = [node.cores // cores for node in nodes]
    if gpus:
        slots = [min(slot, share * node.gpus // gpus) for slot, node in zip(slots, nodes, strict=True)]
    return sum(slots)


def refuse_gpus(gpus: Collection[int] | None, cluster: str, fix: str) -> None:
    """See that nobody chooses GPUs by number where a cluster does.

    Raises:
        UsageError: somebody does.
    """
    if gpus is not None:
        numbers = ",".join(map(str, gpus))
        raise UsageError(f"{cluster} chooses the GPUs of a job", got=f"--gpus {numbers}", fix=fix)


class ExecutorRegistry:
    """The executors of running jobs, those of earlier commands among them.

    Args:
        own: the executor of this command.
    """

    def __init__(self, own: Executor) -> None:
        self._own = own
        self._loaded = {key_of(own): own}

    def of(self, handle: Handle) -> Executor | None:
        """The executor to ask about a job; None where its heartbeat alone tells of it."""
        key = self._key(handle)
        return self._loaded.get(key) if key else None

    def is_own(self, handle: Handle) -> bool:
        """Whether a job has devices of the executor of this command, whichever command started it."""
        return self.of(handle) is self._own

    def ended(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """`Executor.poll` over jobs of several executors; those without one are left out."""
        groups: dict[str, dict[str, Handle]] = defaultdict(dict)
        for job, handle in handles.items():
            if key := self._key(handle):
                groups[key][job] = handle
        ended: dict[str, int | None] = {}
        for key, group in groups.items():
            ended |= self._loaded[key].poll(group)
        return ended

    def _key(self, handle: Handle) -> str | None:
        """The key of a job's executor, which is loaded now."""
        if not (handle.here or handle.ref):
            return None
        if handle.in_process and handle.process != Process.current():
            # whoever waited for its end would wait for that of a notebook
            return None
        # any process of this host is a matter of `Local`
        key = handle.executor if handle.ref or handle.executor in self._loaded else "local"
        if key not in self._loaded:
            try:
                self._loaded[key] = load(key)
            except KdlabError:
                # a cluster of earlier days need not be reachable from here: then the files alone tell
                return None
        return key


def key_of(executor: Executor) -> str:
    """The name by which people choose an executor: its class in small letters."""
    return type(executor).__name__.lower()
