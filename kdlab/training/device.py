"""Device of a job: its name, its memory, and the seeds of the processes on it."""

from __future__ import annotations

import os
import platform
import re
import resource
from pathlib import Path

import numpy as np
import torch
from mmengine.runner import set_random_seed

from kdlab.errors import MachineError
from kdlab.jobs.job import Job
from kdlab.training import ranks


def device_of(job: Job) -> torch.device:
    """The GPU that the job was given, or the CPU with the job's number of threads.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
    """
    if not job.resources.gpus:
        torch.set_num_threads(job.spec.threads)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MachineError(
            "the job was given a GPU and torch sees none",
            where=job.id,
            got=f"torch {torch.__version__}",
            fix="install a torch built for your driver, or hide the GPU: CUDA_VISIBLE_DEVICES= kdlab run ...",
        )
    if job.resources.ranks == 1:
        return torch.device("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def name_of(device: torch.device) -> str:
    """ "cuda: NVIDIA H100", "cpu: AMD EPYC"."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"cpu: {model[1].strip() if model else platform.machine()}"


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory so far: resident size of the process, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory_gb(device: torch.device) -> float:
    """All the memory there is: of the machine or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def seed_ranks(seed: int) -> None:
    """Let the processes of a job draw different numbers from here on; the first draws as if alone."""
    if rank := ranks.rank():
        set_random_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))
