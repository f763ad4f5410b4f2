"""Ray itself: the cluster, its nodes, and the actor that keeps a job; the only place that imports it."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import subprocess
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import kdlab
from kdlab.errors import Fault, MachineError, UsageError
from kdlab.jobs.handle import PREEMPTED
from kdlab.running.executors.base import Node

# Ray reads this when it is imported, and would print what befalls its nodes among the command's own output
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".?")
try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MachineError("Ray is not installed", got=str(error), fix="pip install 'kdlab[ray]'") from error

NAMESPACE = "kdlab"
LINGER_S = 60.0
_ANSWER_S = 60.0
_CONNECT_S = 3.0
_HEAD_S = 20.0
HEADLESS = threading.Event()
"""Set once the head of the cluster is gone: whatever asks Ray then would wait for ever."""


def connect(address: str) -> Any:
    """The module `ray`, connected to a cluster.

    Raises:
        MachineError: there is none.
    """
    where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if ray.is_initialized():
        _check(where)
        return ray
    # Ray itself would try for a minute where nobody listens, and aloud
    host, _, port = where.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(where, str(error)) from error
    # Ray takes SIGTERM for itself, which is the command's
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(where, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _no_cluster(where, str(error).strip().partition("\n")[0]) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return ray


def _check(where: str) -> None:
    """See that this Python is connected to the cluster that is asked for by address, if one is.

    Raises:
        UsageError: it is another one.
    """
    here = ray.get_runtime_context().gcs_address
    if where == "auto" or "://" in where or _host(where) == _host(here):
        return
    raise UsageError(
        "this Python is connected to another Ray cluster",
        where="resources.ray.address",
        got=where,
        known=here,
        fix="ray.shutdown()   or a new process",
    )


def _host(address: str) -> tuple[str, str]:
    """Address and port of a cluster, whatever its host is called."""
    host, _, port = address.rpartition(":")
    with suppress(OSError):
        host = socket.gethostbyname(host.strip("[]"))
    return host, port


def _no_cluster(where: str, what: str) -> MachineError:
    fix = "ray start --head   and on the other nodes: ray start --address=HOST:6379"
    return MachineError("there is no Ray cluster", where=where, got=what, fix=fix)


def wait_for_head() -> None:
    """See that the cluster's head is there; Ray would end this process after a minute, in its own words.

    Raises:
        MachineError: it has not been for a while.
    """
    where = ray.get_runtime_context().gcs_address
    host, _, port = where.rpartition(":")
    until = time.monotonic() + _HEAD_S
    while time.monotonic() < until:
        with suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
            return HEADLESS.clear()
        time.sleep(1.0)
    HEADLESS.set()
    fix = "start the cluster again, then run this again: jobs go on from their checkpoints"
    raise MachineError("the head of the Ray cluster is gone", where=where, fix=fix)


def nodes() -> list[Node]:
    """All nodes that are alive, in the order of their addresses.

    Raises:
        MachineError: the head of the cluster is gone.
    """
    wait_for_head()
    found = []
    for node in ray.nodes():
        offers = node["Resources"]
        if node["Alive"]:
            name, cores, gpus = node["NodeManagerAddress"], offers.get("CPU", 0), offers.get("GPU", 0)
            found.append(Node(name, int(cores), int(gpus), node["NodeID"]))
    return sorted(found, key=lambda node: (node.name, node.id))


def actor(name: str) -> Any:
    """The actor that keeps a job; None where it is gone."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def fate(name: str, error: Exception) -> int | None:
    """The end of a job whose actor is dead, as `Executor.poll` tells it.

    Raises:
        MachineError: the actor could not start the job.
    """
    if getattr(error, "actor_init_failed", False):
        reason = str(error).strip().rpartition("\n")[2]
        fix = "mend that node or remove it, then run this again"
        raise MachineError("a node of the Ray cluster cannot start a job", where=name, got=reason, fix=fix)
    # another command saw the end of the job and let the actor go; the files tell the rest
    return None if "ray.kill" in str(error) else PREEMPTED


def unfit(new: list[Node], folder: Path, python: str) -> list[Fault]:
    """Faults of nodes: one that does not see the folder, one with other versions.

    Args:
        new: the nodes.
        folder: where jobs read and write, a path of this machine.
        python: what runs the jobs, another one.
    """
    token = folder / f".seen-{uuid.uuid4().hex}"
    token.touch()
    asked = {}
    try:
        for node in new:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[node] = _look.options(scheduling_strategy=there).remote(str(token), python)
        answers = {node: _answer(answer) for node, answer in asked.items()}
    finally:
        token.unlink()
    # one that was lost meanwhile is no fault
    faults, mine, alive = [], _versions(), set(nodes())
    for node in alive & answers.keys():
        where, answer = f"node {node.name}", answers[node]
        if isinstance(answer, str):
            fix = "install kdlab in the Python from which ray was started there, or remove the node"
            faults.append(Fault("a node cannot run kdlab", where, answer, fix=fix))
            continue
        if not answer["seen"]:
            fix = "set KDLAB_RUNS to a folder that all nodes share"
            faults.append(Fault("a node does not see the runs folder", where, str(folder), fix=fix))
        if not answer["python"]:
            fix = "install the environment under the same path on all nodes"
            faults.append(Fault("a node does not have the Python of this command", where, python, fix=fix))
        if answer["versions"] != mine:
            fix = "install the same on all nodes"
            faults.append(Fault("a node has other versions", where, answer["versions"], mine, fix))
    return sorted(faults, key=lambda fault: fault.where)


def _answer(answer: Any) -> dict[str, Any] | str:
    try:
        found: dict[str, Any] = ray.get(answer, timeout=_ANSWER_S)
    except ray.exceptions.RayError as error:
        return str(error).strip().rpartition("\n")[2]
    return found


def _versions() -> str:
    return f"kdlab {kdlab.__version__}, Python {platform.python_version()}"


def _seen(token: str, python: str) -> dict[str, Any]:
    """What a node sees."""
    return {"seen": Path(token).exists(), "python": Path(python).exists(), "versions": _versions()}


class _Runner:
    """Keeps the process of one job on its node, beyond the command that started it.

    It leaves by itself some time after the job, so that nobody's GPUs stay taken.

    Args:
        command: what trains.
        log: the file that takes its output.
        told: its environment beside that of the node.
        folder: where it starts, if the node has it.
    """

    def __init__(self, command: list[str], log: str, told: dict[str, str], folder: str) -> None:
        with Path(log).open("ab", buffering=0) as file:
            now, host = time.strftime("%F %T"), platform.node()
            file.write(f"{now} starting on {host} by Ray\n".encode())
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | told,
                cwd=folder if Path(folder).is_dir() else None,
                start_new_session=True,
            )
        self._kill_at = float("inf")
        self._code: int | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> int | None:
        """The exit code, minus the signal's number for a killed process; None while it runs.

        Answers at once: a call that waits would stay here when the command that called has died.
        """
        return self._code

    def stop(self, grace_s: float) -> None:
        """Ask the job to stop, and kill it after `grace_s`."""
        if grace_s > 0 and self._kill_at == float("inf"):
            # the leader alone: loader processes that die of it would fail the step before the checkpoint
            self._process.send_signal(signal.SIGTERM)
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)

    def _watch(self) -> None:
        while self._process.poll() is None:
            if time.monotonic() >= self._kill_at:
                self._end_group()
            time.sleep(0.1)
        self._end_group()
        self._code = self._process.returncode
        time.sleep(LINGER_S)
        os._exit(0)

    def _end_group(self) -> None:
        """End the job with its loader processes, which would hold its devices."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


_look: Any = ray.remote(num_cpus=0, max_retries=0)(_seen)
Runner: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Runner)
"""The look at a node and the actor of a job, as Ray runs them."""
