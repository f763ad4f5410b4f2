"""Processes of one job that train together, one per GPU: reductions, gathers and broadcasts.

Outside `joined` every function here is that of a process which is alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import nn

from kdlab.errors import JobError
from kdlab.jobs.job import Job

RENDEZVOUS = "KDLAB_RENDEZVOUS"
"""Environment variable of torch's `init_method`; without it torchrun's variables apply."""

_PATIENCE = timedelta(hours=1)
"""Patience of one process for another: rank 0 measures and writes while the others stand still."""


@contextmanager
def joined(job: Job) -> Iterator[None]:
    """Be one of the job's processes inside; nothing for a job of a single process.

    Raises:
        JobError: the job wants several and this process was started alone.
    """
    ranks = job.resources.ranks
    if ranks == 1:
        yield
        return
    if int(os.environ.get("WORLD_SIZE", "1")) != ranks:
        raise JobError(
            f"the job needs {ranks} processes and this one was started alone",
            where=job.id,
            got=f"WORLD_SIZE={os.environ.get('WORLD_SIZE', '')}",
            fix="use an executor that starts them all (--executor local), or --set schedule.gpus=1",
        )
    # what lies on the host (flags, detections, states) takes gloo, so that nobody waits for a GPU
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if job.resources.gpus else "gloo",
        init_method=os.environ.get(RENDEZVOUS, "env://"),
        rank=int(os.environ["RANK"]),
        world_size=ranks,
        timeout=_PATIENCE,
    )
    yield
    # not after an error, where it could wait for those that are gone
    dist.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 writes the job's files."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(model: nn.Module) -> nn.Module:
    """The model with gradients averaged over the processes; as it is where there is one."""
    if count() == 1:
        return model
    with warnings.catch_warnings():
        # the newer name of `broadcast_buffers` is not known to all torch that kdlab runs with
        warnings.simplefilter("ignore", FutureWarning)
        # some heads and backbones have parameters that a batch does not use
        return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Each flag as true where it is on any process."""
    if count() == 1:
        return flags
    together = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return tuple(together.bool().tolist())


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the processes of numbers that all of them have by the same names."""
    if count() == 1:
        return dict(values)
    together = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(together)
    return dict(zip(values, (together / count()).tolist(), strict=True))


def gathered(mine: Any) -> list[Any]:
    """What each process has, in their order, on rank 0; nothing on the others."""
    if count() == 1:
        return [mine]
    found = [None] * count() if rank() == 0 else None
    dist.gather_object(mine, found)
    return found or []


def broadcast(of_first: Any) -> Any:
    """On all processes what rank 0 has."""
    box = [of_first]
    if count() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def share_buffers(model: nn.Module) -> None:
    """Give every process the running statistics of rank 0, which are those that are kept."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def is_loss_of_peer(error: BaseException) -> bool:
    """Whether an error only says that another process of the job has gone, which then told why."""
    text = str(error)
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    if any(words in text for words in _NCCL_S_OWN) and "remote" not in text:
        return False
    # gloo's errors are plain ones that begin with the place in its source
    return isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text


_NCCL_S_OWN = ("unhandled system error", "unhandled cuda error", "invalid usage", "internal error")
"""What NCCL says of faults that it met itself, on all processes alike."""
