"""One process a job on this machine, on leased GPUs or cores; outlives its scheduler. The default."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO

from kdlab import devices
from kdlab.errors import MachineError
from kdlab.jobs.handle import PREEMPTED, Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process
from kdlab.jobs.paths import JobPaths
from kdlab.running.executors import base
from kdlab.running.warm import MOST_FILES, Lost, WarmJob, WarmProcess

_LOOK_AGAIN_S = 10.0


class Local:
    """Runs jobs as subprocesses in sessions of their own.

    Args:
        gpus: the GPUs to use, by number, also where they are busy; None for all that are free.
        command: what trains, if not `base.command`; the job's folder is appended.
    """

    def __init__(self, gpus: Collection[int] | None = None, command: Sequence[str] | None = None) -> None:
        self._only, self._command = gpus, command
        self._found: devices.Machine | None = None
        self._looked = 0.0
        self._broken: set[str] = set()
        self._warm: WarmProcess | None = None
        self._why_cold = ""
        self._children: dict[Process, subprocess.Popen[bytes] | WarmJob] = {}
        self._kill_at: dict[Process, float] = {}

    @property
    def machine(self) -> devices.Machine:
        """See `Executor.machine`; looked at when it is first asked for, as jobs can be ended without it."""
        if self._found is None:
            self._found, self._looked = devices.detect(self._only), time.monotonic()
        return self._found

    def slots(self, job: Job) -> int:
        """See `Executor.slots`."""
        wants = job.resources
        if wants.gpus:
            return wants.share * len(self.machine.gpus) // wants.gpus
        return len(self.machine.cores) // self._cores_for(job)

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """See `Executor.start`."""
        if not self._is_ready(job):
            return None
        if self.machine.gpus and time.monotonic() - self._looked > _LOOK_AGAIN_S:
            self._look_again()
        wants, machine = job.resources, self._without_broken()
        if not wants.gpus:
            lease = machine.lease("core", self._cores_for(job))
        elif wants.share > 1:
            lease = machine.lease_share(wants.share, wants.memory_gb)
        else:
            lease = machine.lease("gpu", wants.gpus)
        if lease is None:
            return None
        kind = "GPU" if wants.gpus else "core"
        with lease, paths.log.open("ab", buffering=0) as log:
            lease.sign(f"{job.label} ({job.id}) in {paths.folder.parent.parent.absolute()}")
            log.write(f"{time.strftime('%F %T')} starting on {kind} {', '.join(lease.ids)}\n".encode())
            child = self._started(job, paths, log, lease)
        process = Process.of(child.pid)
        handle = Handle("local", process, lease.ids, starter=Process.current())
        try:
            handle.write(paths)
        except OSError:
            child.kill()
            child.wait()
            raise
        self._children[process] = child
        return handle

    @property
    def _is_cold(self) -> bool:
        return self._command is not None or bool(self._why_cold)

    def _is_ready(self, job: Job) -> bool:
        """Whether what the job starts out of has all its imports; it is made with the first job."""
        if self._is_cold or job.resources.ranks > 1:
            return True
        try:
            self._warm = self._warm or WarmProcess()
            return self._warm.ready()
        except (OSError, Lost) as error:
            self._why_cold = str(error)
            return True

    def _started(
        self, job: Job, paths: JobPaths, log: IO[bytes], lease: devices.DeviceLease
    ) -> subprocess.Popen[bytes] | WarmJob:
        own, files = base.environment(job, lease.ids), [log.fileno(), *lease.files]
        if self._warm and not self._is_cold and job.resources.ranks == 1 and len(files) <= MOST_FILES:
            try:
                return self._warm.start(str(paths.folder.absolute()), own, files)
            except Lost as error:
                self._why_cold = str(error)
        if self._why_cold:
            log.write(f"started cold, for the process with the imports is lost: {self._why_cold}\n".encode())
        return subprocess.Popen(
            base.command(job, paths, self._command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | own,
            start_new_session=True,
            pass_fds=lease.files,
        )

    def _look_again(self) -> None:
        """See which GPUs are there and free; where nvidia-smi does not answer, the last look holds."""
        with suppress(MachineError):
            seen = devices.detect(self._only, some=True)
            self._found = seen if seen.gpus else self._found
        self._looked = time.monotonic()

    def _without_broken(self) -> devices.Machine:
        """The machine without GPUs on which a job has met broken hardware, unless no other is left."""
        gpus = tuple(gpu for gpu in self.machine.gpus if gpu.uuid not in self._broken)
        return replace(self.machine, gpus=gpus or self.machine.gpus)

    def waits_for(self, job: Job) -> str:
        """See `Executor.waits_for`."""
        if not self._is_ready(job):
            return ""
        gpus = job.resources.gpus
        wanted = gpus or self._cores_for(job)
        by: dict[str, list[str]] = {}
        numbers = {gpu.uuid: str(gpu.index) for gpu in self.machine.gpus}
        for name, holder in self.machine.holders("gpu" if gpus else "core").items():
            by.setdefault(holder, []).append(numbers.get(name, name))
        word = "GPU" if gpus else "core"
        held = "; ".join(f"{word} {', '.join(names)} held by {holder}" for holder, names in by.items())
        return f"{wanted} {word}{'s' * (wanted > 1)}: {held}" if held else ""

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """See `Executor.poll`."""
        ended: dict[str, int | None] = {}
        for job, handle in handles.items():
            process = handle.process
            assert process is not None
            if time.monotonic() > self._kill_at.get(process, float("inf")):
                _signal(process, signal.SIGKILL)
            runs, code = self._look_at(process)
            if runs:
                continue
            ended[job] = code
            if code == PREEMPTED:
                self._broken |= {*handle.devices}
            # loader processes of a leader that was killed hold its lease and its devices
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            self._children.pop(process, None)
            self._kill_at.pop(process, None)
        return ended

    def _look_at(self, process: Process) -> tuple[bool, int | None]:
        """Whether a process runs, and of a child of ours the exit code."""
        child = self._children.get(process)
        try:
            if child:
                code = child.poll()
                return code is None, code
        except Lost as error:
            # the first says most
            self._why_cold = self._why_cold or str(error)
        return process.alive(), None

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """See `Executor.cancel`."""
        process, now = handle.process, time.monotonic()
        assert process is not None
        if grace_s <= 0:
            _signal(process, signal.SIGKILL)
        elif process not in self._kill_at and process.alive():
            # the leader alone: loader processes that die of it would fail the step before the checkpoint
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        self._kill_at[process] = min(now + grace_s, self._kill_at.get(process, float("inf")))

    def _cores_for(self, job: Job) -> int:
        # More threads than cores are slow but right, and the thread count is part of the result.
        return min(job.resources.cores, len(self.machine.cores))


def _signal(process: Process, number: signal.Signals) -> None:
    """Signal the job's whole group, or one that runs in somebody else's group alone."""
    if not process.alive():
        return
    with suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
