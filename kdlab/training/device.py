"""Device of a job: its name, its memory, and the seeds of the processes on it."""

from __future__ import annotations

import os
import platform
import re
import resource
from contextlib import suppress
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
    # not by the environment alone: the process may have imported torch under another one
    torch.set_num_threads(job.resources.threads)
    if not job.resources.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MachineError(
            "the job was given a GPU and torch sees none",
            where=job.id,
            got=f"torch {torch.__version__}",
            fix="install a torch built for your driver, or hide the GPU: CUDA_VISIBLE_DEVICES= kdlab run ...",
        )
    device = torch.device("cuda")
    if job.resources.ranks > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # an earlier job of this process (--executor inline) may have had more
    torch.cuda.reset_peak_memory_stats()
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


_NO_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 ",
)
_NO_WORKSPACE = ("unable to find an engine", "CUBLAS_STATUS_NOT_INITIALIZED")
"""What libraries say on a full GPU, and of other things on others."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory is full, in the words of torch or of CUDA's libraries."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    if any(words in text for words in _NO_MEMORY):
        return True
    return any(words in text for words in _NO_WORKSPACE) and _is_nearly_full()


def _is_nearly_full() -> bool:
    """Whether less than a tenth of the GPU's memory is left, whoever has it."""
    with suppress(RuntimeError):
        # what torch keeps for itself is free
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return free < 0.1 * total
    return False


_BROKEN = ("uncorrectable ECC", "uncorrectable NVLink", "fallen off the bus", "hardware stack error")


def is_hardware_fault(error: BaseException) -> bool:
    """Whether an error says that the GPU is broken, so that another one may do."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _BROKEN)


def memory_gb(device: torch.device) -> float:
    """All the memory there is: of the machine or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def memory_facts(device: torch.device) -> dict[str, float]:
    """What a job that ran out of memory tells of it: "peak_gb" of "total_gb"."""
    return {"peak_gb": round(peak_memory_gb(device), 2), "total_gb": round(memory_gb(device), 2)}


def seed_ranks(seed: int) -> None:
    """Let the processes of a job draw different numbers from here on; the first draws as if alone."""
    if rank := ranks.rank():
        set_random_seed(int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]))
