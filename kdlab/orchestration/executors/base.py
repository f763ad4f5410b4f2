"""What an executor is: four methods over plain data, so that any later process can go on where one died."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from kdlab import catalog
from kdlab.errors import UsageError, suggestion
from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import Job, JobPaths
from kdlab.jobs.lease import Process


@dataclass(frozen=True)
class Handle:
    """A started job, as `handle.json` in its folder keeps it.

    Args:
        executor: the key of the executor that started it.
        process: the leader of the job's process group.
        devices: core numbers or GPU UUIDs that it leases.
    """

    executor: str
    process: Process
    devices: tuple[str, ...] = ()

    @classmethod
    def read(cls, paths: JobPaths) -> Self | None:
        """The handle of the newest start, whether it still runs or not; None where there never was one."""
        data: dict[str, Any] | None = read_json(paths.handle)
        if data is None:
            return None
        return cls(data["executor"], Process(**data["process"]), tuple(data["devices"]))

    def write(self, paths: JobPaths) -> None:
        """Replace `handle.json`."""
        write_json(paths.handle, asdict(self))


class Executor(Protocol):
    """Starts jobs as processes, watches and ends them; knows nothing of plans, results or retries."""

    def slots(self, job: Job) -> int:
        """How many jobs like this one fit at once where nothing else runs; 0 where it never fits."""

    def start(self, job: Job, paths: JobPaths) -> Handle | None:
        """Start the job and write its handle; None where no device is free now.

        A job that ends within this call writes no handle, for nobody can adopt it.
        """

    def poll(self, handles: Mapping[str, Handle]) -> dict[str, int | None]:
        """Those of `handles`, by job id, that have ended, also when an earlier process had started them.

        Returns:
            Exit codes; minus the signal's number for a killed process, None where it is not known.
        """

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Ask the job to checkpoint and stop; returns at once.

        `poll` kills what outlives `grace_s`. A second call can only bring that moment forward; 0 kills now.
        """


def command(job: Job, paths: JobPaths) -> list[str]:
    """What runs a job: its one process, or one that starts and ends its several; SIGTERM stops either."""
    module = "job" if job.resources.ranks == 1 else "launch"
    return [sys.executable, "-m", f"kdlab.training.{module}", str(paths.folder)]


def load(key: str, gpus: Collection[int] | None = None) -> Executor:
    """The executor in the file `<key>.py` here: its class of that name in capitals, `Local` in `local.py`.

    Args:
        key: the file's name.
        gpus: the GPUs to use, by number, also where they are busy; None for all that are free.

    Raises:
        UsageError: there is no such file.
    """
    known = list(catalog.executors())
    if key not in known:
        raise UsageError(
            "there is no such executor", got=key, known=", ".join(known), fix=suggestion(key, known)
        )
    module = importlib.import_module(f"kdlab.orchestration.executors.{key}")
    executor: Executor = getattr(module, key.title())(gpus=gpus)
    return executor
