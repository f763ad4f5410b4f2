"""Where a job is, told by its files: on which GPUs or cores, on which host, or in a cluster's queue."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kdlab.devices import Gpu, Machine
from kdlab.jobs.handle import Handle
from kdlab.jobs.job import Job
from kdlab.jobs.lease import LeaseInfo, holder
from kdlab.jobs.paths import JobPaths

IDLE = "idle"
OTHERS = "used by others"
OTHER_RUN = "used by another kdlab run"


@dataclass(frozen=True)
class Place:
    """Where a job is.

    Args:
        told: "gpu0-3", "core1", "slurm node3", or the name by which a cluster knows it: "slurm 1234".
        gpus: the UUIDs of those of this machine that it has.
        waits: "queued in slurm" before a cluster starts it; "" where it runs.
        away: whether it is, or will be, on a host that need not be this one.
    """

    told: str
    gpus: tuple[str, ...] = ()
    waits: str = ""
    away: bool = False


def place(job: Job, paths: JobPaths, numbers: Mapping[str, int]) -> Place | None:
    """Where a job is now, None where nobody works on it; looks at its handle and its lease.

    Args:
        job: which.
        paths: its folder.
        numbers: of this machine's GPUs, by UUID.
    """
    handle = Handle.read(paths)
    if handle and handle.process and handle.process.alive():
        return _here(job, handle, numbers)
    if info := holder(paths):
        executor = handle.executor if handle and handle.ref else ""
        host = "" if info.process.here and not executor else info.process.host.partition(".")[0]
        return Place(f"{executor} {host}".strip(), away=bool(host))
    if handle and handle.ref and _unbegun(paths):
        return Place(f"{handle.executor} {handle.ref}", waits=f"queued in {handle.executor}", away=True)
    return None


def _here(job: Job, handle: Handle, numbers: Mapping[str, int]) -> Place:
    if not job.resources.gpus:
        return Place(ranges("core", map(int, handle.devices)))
    known = [numbers[uuid] for uuid in handle.devices if uuid in numbers]
    if len(known) < len(handle.devices):
        return Place(f"gpu {','.join(uuid[:8] for uuid in handle.devices)}", handle.devices)
    return Place(ranges("gpu", known), handle.devices)


def _unbegun(paths: JobPaths) -> bool:
    """Whether a process has yet to take the job's lease since it was handed to a cluster, and is wanted."""
    if paths.stop_request.exists():
        return False
    if LeaseInfo.read(paths) is None:
        return True
    return paths.lease.stat().st_mtime_ns < paths.handle.stat().st_mtime_ns


def ranges(word: str, numbers: Iterable[int]) -> str:
    """ "gpu0-3" for four in a row, "gpu0,2-3" for others; the word alone for none."""
    parts = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        parts.append(str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}")
    return word + ",".join(parts)


def without_jobs(gpus: Sequence[Gpu], ours: Collection[str]) -> dict[str, str]:
    """What is to be said of the GPUs, by UUID, that no job of `ours` has."""
    return {gpu.uuid: _said(gpu) for gpu in gpus if gpu.uuid not in ours}


def _said(gpu: Gpu) -> str:
    if gpu.busy:
        return OTHERS
    # nobody else can have it for the instant in which it is ours; a scheduler that asks just now asks again
    lease = Machine((), (gpu,)).lease("gpu", 1)
    if lease is None:
        return OTHER_RUN
    lease.close()
    return IDLE
