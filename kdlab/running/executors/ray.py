"""The same jobs on an existing Ray cluster, one detached actor a job (needs: pip install 'kdlab[ray]')."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.devices import Machine
from kdlab.errors import MachineError, UsageError
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.paths import JobPaths
from kdlab.running.executors import _ray
from kdlab.running.executors.base import command as training
from kdlab.running.executors.base import environment, machine_of

_STOPPED = 128 + signal.SIGTERM
_DEAF_S = 5.0
_ASK_EVERY_S = 0.5
_PLACED_S = 2.0
"""How long an actor that has a place may take to answer."""


class Ray:
    """Gives each job to an actor that Ray places on a node with the GPUs or cores that the job needs.

    Args:
        gpus: must be None, for Ray chooses the GPUs.
        command: what trains, the job's folder is appended; None for `base.command`.
        address: of the cluster, "host:6379"; "auto" for `$RAY_ADDRESS`, else the cluster of this machine.

    Raises:
        MachineError: Ray is not installed, or there is no cluster.
    """

    def __init__(
        self,
        gpus: Collection[int] | None = None,
        command: Sequence[str] | None = None,
        *,
        address: str = "auto",
    ) -> None:
        if gpus is not None:
            told, fix = ",".join(map(str, gpus)), "leave --gpus out"
            raise UsageError("Ray chooses the GPUs of a job", got=f"--gpus {told}", fix=fix)
        self._command = command
        self._ray = _ray.connect(address)
        self._checked: set[str] = set()
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, tuple[Any, float]] = {}
        self._placed: set[str] = set()
        self._codes: dict[str, int] = {}
        self._kill_at: dict[str, float] = {}

    @property
    def machine(self) -> Machine:
        """See `Executor.machine`; all nodes that are alive."""
        return machine_of(_ray.nodes())

    def slots(self, job: Job) -> int:
        """See `Executor.slots`; a job runs on one node."""
        nodes, gpus, share = _ray.nodes(), job.resources.gpus, job.resources.share
        cores = _cores_for(job, nodes)
        return sum(
            min(node.cores // cores, share * node.gpus // gpus) if gpus else node.cores // cores
            for node in nodes
        )

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """See `Executor.start`; Ray may keep the job waiting for a node.

        Raises:
            MachineError: a node does not see the folder, or has another kdlab or Python.
        """
        trains = [*self._command, str(paths.folder.absolute())] if self._command else training(job, paths)
        nodes = _ray.nodes()
        self._check(nodes, paths.folder.parent, trains[0])
        handle = Handle("ray", ref=f"{job.id}-{uuid.uuid4().hex[:8]}")
        handle.write(paths)
        log = str(paths.log.absolute())
        self._actors[handle.ref] = _ray.Runner.options(
            name=handle.ref,
            lifetime="detached",
            num_cpus=_cores_for(job, nodes),
            num_gpus=job.resources.gpus / job.resources.share,
        ).remote(trains, log, _told(job), str(Path.cwd()))
        self._ask(handle.ref)
        return handle

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """See `Executor.poll`; without the cluster's head the files alone tell."""
        if _ray.HEADLESS.is_set():
            return dict.fromkeys(handles)
        ended: dict[str, int | None] = {}
        for job, handle in handles.items():
            if time.monotonic() > self._kill_at.get(handle.ref, float("inf")):
                self._kill(handle.ref)
            if (found := self._end(handle.ref)) is not _RUNS:
                ended[job] = found
                self._forget(handle.ref)
        return ended

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """See `Executor.cancel`; what waits for a node is given up at once."""
        ref = handle.ref
        if _ray.HEADLESS.is_set() or ref in self._codes or not self._found(ref):
            return
        if not self._has_a_place(ref):
            self._codes[ref] = _STOPPED
            self._ray.kill(self._actors[ref])
            return
        self._actors[ref].stop.remote(grace_s)
        # the actor kills the job; a node that does not answer is let go
        until = time.monotonic() + grace_s + _DEAF_S
        self._kill_at[ref] = min(until, self._kill_at.get(ref, float("inf")))

    def _found(self, ref: str) -> bool:
        """Whether there is an actor of this name, also of another command; asks it for the job's end."""
        if ref not in self._actors and (actor := _ray.actor(ref)) is not None:
            self._actors[ref] = actor
            self._ask(ref)
        return ref in self._actors

    def _ask(self, ref: str) -> None:
        self._asked[ref] = self._actors[ref].end.remote(), time.monotonic()

    def _has_a_place(self, ref: str) -> bool:
        """Whether the actor ever answered; one that has not for some seconds waits for a node."""
        question, since = self._asked[ref]
        patience = max(0.0, since + _PLACED_S - time.monotonic())
        if ref not in self._placed and self._ray.wait([question], timeout=patience)[0]:
            self._placed.add(ref)
        return ref in self._placed

    def _end(self, ref: str) -> Any:
        """The exit code of a job, `_RUNS` where it has none yet."""
        if ref in self._codes:
            return self._codes[ref]
        if not self._found(ref):
            return None
        question, since = self._asked[ref]
        if not self._ray.wait([question], timeout=0)[0]:
            return _RUNS
        try:
            code = self._ray.get(question)
            self._placed.add(ref)
        except self._ray.exceptions.ActorUnavailableError:
            # the connection, not the node
            code = None
        except self._ray.exceptions.RayError as error:
            return _ray.fate(ref, error)
        if code is None and time.monotonic() > since + _ASK_EVERY_S:
            self._ask(ref)
        return _RUNS if code is None else code

    def _kill(self, ref: str) -> None:
        self._codes.setdefault(ref, -signal.SIGKILL)
        if self._found(ref):
            self._ray.kill(self._actors[ref])

    def _forget(self, ref: str) -> None:
        """Let the actor go, and with it the resources that it holds."""
        if self._found(ref):
            self._ray.kill(self._actors[ref])
        self._placed.discard(ref)
        for known in (self._actors, self._asked, self._codes, self._kill_at):
            known.pop(ref, None)

    def _check(self, nodes: list[_ray.Node], folder: Path, python: str) -> None:
        """See that all new nodes that take jobs see the folder and have what this one has."""
        new = [node for node in nodes if node.cores and node.id not in self._checked]
        if new and (faults := _ray.unfit(new, folder.absolute(), python)):
            raise MachineError(faults=faults)
        self._checked |= {node.id for node in new}


_RUNS = object()


def _cores_for(job: Job, nodes: list[_ray.Node]) -> int:
    """CPUs of one node to ask Ray for: those that feed a GPU count with it."""
    gpus, wants = job.resources.gpus, job.resources
    wanted = gpus * wants.threads if gpus else wants.cores
    # More threads than cores are slow but right, and the thread count is part of the result.
    most = max((node.cores for node in nodes if node.gpus * wants.share >= gpus), default=wanted)
    return max(1, min(wanted, most))


def _told(job: Job) -> dict[str, str]:
    """What the job's environment must say beside the node's own."""
    own = {key: value for key, value in os.environ.items() if key == "PYTHONPATH" or key.startswith("KDLAB_")}
    return own | environment(job)
