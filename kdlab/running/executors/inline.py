"""Runs a job in this process, one at a time, so that breakpoint() works."""

from __future__ import annotations

import importlib
import signal
import traceback
from collections.abc import Collection, Mapping

from kdlab.devices import Machine
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import Process
from kdlab.jobs.paths import JobPaths
from kdlab.running.executors.local import Local

MODULE = "kdlab.training.job"
_STOPPED = 128 + signal.SIGTERM


class Inline:
    """Calls `run_job` here; `start` returns when the job has ended.

    Args:
        gpus: not leased: the job sees the devices that this process sees.
        module: where `run_job(paths)` is.
    """

    def __init__(self, gpus: Collection[int] | None = None, module: str = MODULE) -> None:
        self._module = module
        self._codes: dict[str, int] = {}
        self._told = True
        self._others = Local(gpus)

    @property
    def machine(self) -> Machine:
        """See `Executor.machine`."""
        return self._others.machine

    def slots(self, job: Job) -> int:
        """See `Executor.slots`."""
        return 1

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """See `Executor.start`; None until the end of the job before was polled."""
        if not self._told:
            return None
        me = Process.current()
        handle = Handle("inline", me, starter=me)
        # for others: this process goes on when the job has ended, and no signal would be for the job alone
        handle.write(paths)
        try:
            done = importlib.import_module(self._module).run_job(paths)
            self._codes[job.id] = 0 if done else _STOPPED
        except Exception as error:
            traceback.print_exc()
            self._codes[job.id] = importlib.import_module(MODULE).exit_code(error)
        self._told = False
        return handle

    def waits_for(self, job: Job) -> str:
        """See `Executor.waits_for`; for the job before, which is ours."""
        return ""

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """See `Executor.poll`."""
        self._told = True
        others = {job: handle for job, handle in handles.items() if job not in self._codes}
        return {job: self._codes[job] for job in handles.keys() - others.keys()} | self._others.poll(others)

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """See `Executor.cancel`; no job that this executor started runs while anybody could call this."""
        if handle.executor != "inline":
            self._others.cancel(handle, grace_s)
