"""Where a job is, told by its files: on which GPUs or cores, on which host, or in a cluster's queue."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from kdlab.devices import Gpu, Machine
from kdlab.jobs.status import JobStatus

IDLE = "idle"
OTHERS = "used by others"
OTHER_RUN = "used by another kdlab run"


def place(status: JobStatus, numbers: Mapping[str, int]) -> str:
    """ "gpu0-3", "core1", "slurm node3", or a cluster's name for a job that waits: "slurm 1234".

    Args:
        status: of the job, once it was located; "" where nobody has it.
        numbers: of this machine's GPUs, by UUID.
    """
    handle, process = status.handle, status.process
    if status.in_queue and handle:
        return f"{handle.executor} {handle.ref}"
    if process is None:
        return ""
    if status.devices and not status.job.resources.gpus:
        return ranges("core", map(int, status.devices))
    if status.devices and numbers.keys() >= set(status.devices):
        return ranges("gpu", [numbers[uuid] for uuid in status.devices])
    if status.devices:
        return f"gpu {','.join(uuid[:8] for uuid in status.devices)}"
    host = process.host.partition(".")[0]
    if handle and handle.ref:
        return f"{handle.executor} {host}"
    return "" if process.here else host


def ranges(word: str, numbers: Iterable[int]) -> str:
    """ "gpu0-3" for four in a row, "gpu0,2-3" for others; the word alone for none."""
    runs = consecutive(numbers)
    return word + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """The numbers in runs without a gap, from the lowest on."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def without_jobs(gpus: Sequence[Gpu], ours: Collection[str]) -> dict[str, str]:
    """What is to be said of the GPUs, by UUID, that no job of `ours` has."""
    said = {gpu.uuid: OTHERS if gpu.busy else IDLE for gpu in gpus if gpu.uuid not in ours}
    for gpu in gpus:
        if said.get(gpu.uuid) == IDLE:
            # nobody else can have it for the instant in which it is ours; who asks just now asks again
            lease = Machine((), (gpu,)).lease("gpu", 1)
            if lease is None:
                said[gpu.uuid] = OTHER_RUN
            else:
                lease.close()
    return said
