"""Where a job computes: its device, what it is called and how much memory it took."""

from __future__ import annotations

import platform
import random
import resource
from pathlib import Path

import numpy as np
import torch

from kdlab.errors import MachineError
from kdlab.jobs.job import Job


def device_of(job: Job) -> torch.device:
    """The GPU that the job was given, or the CPU with the job's number of threads.

    Raises:
        MachineError: the job needs a GPU that torch does not see.
    """
    if not job.resources.gpus:
        torch.set_num_threads(job.settings["threads"])
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MachineError(
            "the job was given a GPU and torch sees none",
            where=job.id,
            got=f"torch {torch.__version__}",
            fix="install a torch built for your driver, or hide the GPU: CUDA_VISIBLE_DEVICES= kdlab run ...",
        )
    return torch.device("cuda")


def name_of(device: torch.device) -> str:
    """ "cuda: NVIDIA H100", "cpu: AMD EPYC"."""
    return f"{device.type}: {_processor(device)}"


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory so far: resident size of the process, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seed_all(seed: int) -> None:
    """Seed all global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
