"""The handle of a started job: how whoever comes later finds its process, or a cluster's job."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from kdlab.jobs.files import read_if_whole, write_json
from kdlab.jobs.lease import Process
from kdlab.jobs.paths import JobPaths

PREEMPTED = 75
"""Exit code of a job that lost its machine or its GPU: preemption, a time limit, a lost node, a broken GPU.
Unix calls it EX_TEMPFAIL, "try again"."""


@dataclass(frozen=True)
class Handle:
    """A started job, as `handle.json` in its folder keeps it.

    Args:
        executor: the key of the executor that started it.
        process: the leader of the job's process group; None where a cluster decides when and where it runs.
        devices: core numbers or GPU UUIDs that it leases.
        ref: the name by which a cluster knows it.
        starter: the command that started it; None where that is not known.
    """

    executor: str
    process: Process | None = None
    devices: tuple[str, ...] = ()
    ref: str = ""
    starter: Process | None = None

    @classmethod
    def read(cls, paths: JobPaths) -> Self | None:
        """The handle of the newest start, whether it still runs or not.

        None where there never was one, or its file is damaged: then the lease tells of the process.
        """
        return read_if_whole(paths.handle, cls)

    def write(self, paths: JobPaths) -> None:
        """Replace `handle.json`."""
        write_json(paths.handle, asdict(self))

    @property
    def here(self) -> bool:
        """Whether it is a process of this host."""
        return self.process is not None and self.process.here

    @property
    def in_process(self) -> bool:
        """Whether its process is a notebook's or a shell's, which lives on when the job has ended."""
        return self.executor == "inline"

    @property
    def is_anothers(self) -> bool:
        """Whether another command started it which is still there, or on another host and may be."""
        starter = self.starter
        if starter is None or starter == Process.current():
            return False
        return starter.alive() if starter.here else not self.ref
