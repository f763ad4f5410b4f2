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
from kdlab.errors import MachineError
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process
from kdlab.jobs.paths import JobPaths
from kdlab.running.executors import _ray, base
from kdlab.running.executors.base import Node

_STOPPED = 128 + signal.SIGTERM
_DEAF_S = 5.0
_ASK_EVERY_S = 0.5
_PLACED_S = 2.0
"""Longest time in which an actor that has a place answers."""


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
        base.refuse_gpus(gpus, "Ray", "leave --gpus out")
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
        return base.machine_of(_ray.nodes())

    def slots(self, job: Job) -> int:
        """See `Executor.slots`; a job runs on one node."""
        nodes, wants = _ray.nodes(), job.resources
        return base.slots_on(nodes, _cores_for(job, nodes), wants.gpus, wants.share)

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """See `Executor.start`; Ray may keep the job waiting for a node.

        Raises:
            MachineError: a node does not see the folder, or has another kdlab or Python.
        """
        command = base.command(job, paths, self._command)
        nodes = _ray.nodes()
        new = [node for node in nodes if node.cores and node.id not in self._checked]
        if new and (faults := _ray.unfit(new, paths.folder.parent.absolute(), command[0])):
            raise MachineError(faults=faults)
        self._checked |= {node.id for node in new}
        ref = f"{job.id}-{uuid.uuid4().hex[:8]}"
        handle = Handle("ray", ref=ref, starter=Process.current())
        handle.write(paths)
        # beside what the node itself has
        own = {
            key: value for key, value in os.environ.items() if key == "PYTHONPATH" or key.startswith("KDLAB_")
        }
        told, log = own | base.environment(job), str(paths.log.absolute())
        self._actors[handle.ref] = _ray.Runner.options(
            name=handle.ref,
            namespace=_ray.NAMESPACE,
            lifetime="detached",
            num_cpus=_cores_for(job, nodes),
            num_gpus=job.resources.gpus / job.resources.share,
        ).remote(command, log, told, str(Path.cwd()))
        self._ask(handle.ref)
        return handle

    def waits_for(self, job: Job) -> str:
        """See `Executor.waits_for`; the cluster's queue tells."""
        return ""

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """See `Executor.poll`; without the cluster's head the files alone tell."""
        if _ray.HEADLESS.is_set():
            return dict.fromkeys(handles)
        ended: dict[str, int | None] = {}
        for job, handle in handles.items():
            ref = handle.ref
            if time.monotonic() > self._kill_at.get(ref, float("inf")):
                self._codes.setdefault(ref, -signal.SIGKILL)
            if (code := self._end(ref)) is _RUNS:
                continue
            ended[job] = code
            # lets the actor go, and with it the resources that it holds
            if self._found(ref):
                self._ray.kill(self._actors[ref])
            self._placed.discard(ref)
            for known in (self._actors, self._asked, self._codes, self._kill_at):
                known.pop(ref, None)
        return ended

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """See `Executor.cancel`; what waits for a node is given up at once."""
        ref = handle.ref
        if _ray.HEADLESS.is_set() or ref in self._codes or not self._found(ref):
            return
        question, since = self._asked[ref]
        patience_s = max(0.0, since + _PLACED_S - time.monotonic())
        if ref not in self._placed and not self._ray.wait([question], timeout=patience_s)[0]:
            # it never answered, so it waits for a node
            self._codes[ref] = _STOPPED
            self._ray.kill(self._actors[ref])
            return
        self._placed.add(ref)
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


_RUNS = object()


def _cores_for(job: Job, nodes: list[Node]) -> int:
    """CPUs of one node to ask Ray for: those that feed a GPU count with it."""
    wants = job.resources
    return base.cores_on(nodes, job, wants.gpus * wants.threads if wants.gpus else wants.cores)
