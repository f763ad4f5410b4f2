"""What this machine computes on, and leases of it across all schedulers of one user.

A lease is a `flock` on one file per GPU or core, held through a file descriptor that the job inherits: it
lives exactly as long as the job's processes, whatever becomes of the scheduler that started them. Jobs that
share a GPU hold its file together, and a file of a place on it each, which says how much memory they take.
"""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from kdlab.errors import MachineError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MOST_SHARES = 8
"""How many jobs can be on one GPU at most."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Args:
        index: its number as nvidia-smi counts.
        uuid: its name that never changes ("GPU-5f3c...").
        memory_gb: all of its memory.
        busy: a process that is no job of ours computes on it, so it is not leased.
    """

    index: int
    uuid: str
    memory_gb: float
    busy: bool = False


@dataclass(frozen=True)
class DeviceLease:
    """Devices that are ours until `close`; processes that inherited `files` keep them on.

    Args:
        ids: core numbers or GPU UUIDs.
        files: open descriptors to hand to `Popen(pass_fds=...)`.
    """

    ids: tuple[str, ...]
    files: tuple[int, ...]

    def close(self) -> None:
        """Let go of our hold."""
        for file in self.files:
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Machine:
    """The cores and GPUs that this process may use."""

    cores: tuple[int, ...]
    gpus: tuple[Gpu, ...] = ()

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What jobs train on here, as torch calls it."""
        return "cuda" if self.gpus else "cpu"

    def lease(self, kind: Literal["core", "gpu"], count: int) -> DeviceLease | None:
        """`count` devices that nobody holds, or None where fewer are free now.

        Raises:
            MachineError: the folder of the lock files cannot be used.
        """
        cores = [str(core) for core in self.cores]
        names = cores if kind == "core" else [gpu.uuid for gpu in self.gpus if not gpu.busy]
        held: dict[str, int] = {}
        with _alone():
            for name in names:
                if len(held) < count and (file := _hold(f"{kind}-{name}")) is not None:
                    held[name] = file
        lease = DeviceLease(tuple(held), tuple(held.values()))
        if len(held) == count:
            return lease
        lease.close()
        return None

    def lease_share(self, parts: int, memory_gb: float | None) -> DeviceLease | None:
        """A place on the emptiest GPU that has one, or None where there is none now.

        Args:
            parts: how many jobs may be on one GPU, those of other schedulers among them.
            memory_gb: what the job is expected to take; None counts as its part of the GPU's memory.

        Raises:
            MachineError: the folder of the lock files cannot be used.
        """
        with _alone():
            gpus = [gpu for gpu in self.gpus if not gpu.busy]
            needs = [memory_gb or gpu.memory_gb / parts for gpu in gpus]
            places = [_place_on(gpu, parts, need) for gpu, need in zip(gpus, needs, strict=True)]
            found = sorted((place for place in places if place), key=lambda place: place[0])
            for _, lease, _ in found[1:]:
                lease.close()
            if not found:
                return None
            _, lease, need = found[0]
            os.pwrite(lease.files[0], f"{need:.3f}\n".encode(), 0)
            return lease


def _place_on(gpu: Gpu, parts: int, need_gb: float) -> tuple[int, DeviceLease, float] | None:
    """(neighbours, lease, need) of a place on a GPU; None where it is full or somebody has it alone."""
    name = f"gpu-{gpu.uuid}"
    whole = _hold(name, fcntl.LOCK_SH)
    if whole is None:
        return None
    places = [(f"{name}.{number}", _hold(f"{name}.{number}")) for number in range(MOST_SHARES)]
    taken = [_gb_of(place) for place, file in places if file is None]
    free = [file for _, file in places if file is not None]
    fits = len(taken) < parts and (not taken or sum(taken) + need_gb <= gpu.memory_gb)
    for file in [*free[fits:], *([] if fits else [whole])]:
        os.close(file)
    return (len(taken), DeviceLease((gpu.uuid,), (free[0], whole)), need_gb) if fits else None


def _gb_of(place: str) -> float:
    """What the holder of a place expects to take of the GPU's memory."""
    try:
        return float((_folder() / place).read_text().partition("\n")[0])
    except (OSError, ValueError):
        return 0.0


def detect(only: Collection[int] | None = None) -> Machine:
    """Look at this machine; never imports torch.

    Args:
        only: numbers of the GPUs to use, also where they are busy; None for all that
            `CUDA_VISIBLE_DEVICES` allows.

    Raises:
        MachineError: a number in `only` is none of a GPU here.
    """
    return Machine(tuple(_cores()), tuple(_gpus(only)))


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))[: _quota()]
    return list(range(os.cpu_count() or 1))


def _quota() -> int | None:
    """How many cores' worth of time a container may take; None without such a limit."""
    try:
        limit, period = _QUOTA.read_text().split()
        return max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        return None


def _gpus(only: Collection[int] | None) -> list[Gpu]:
    found = _visible([Gpu(int(i), uuid, round(int(mib) / 1024, 1)) for i, uuid, mib in _devices()])
    if only is None:
        used = {row[0] for row in _ask("--query-compute-apps=gpu_uuid")} if found else set()
        return [
            Gpu(gpu.index, gpu.uuid, gpu.memory_gb, gpu.uuid in used and _is_free(f"gpu-{gpu.uuid}"))
            for gpu in found
        ]
    known = {gpu.index: gpu for gpu in found}
    if missing := [str(index) for index in only if index not in known]:
        raise MachineError(
            "there is no such GPU here",
            got=", ".join(missing),
            known=", ".join(map(str, known)) or "none; see nvidia-smi and CUDA_VISIBLE_DEVICES",
            fix="leave --gpus out to use all",
        )
    return [known[index] for index in only]


def _devices() -> Iterator[list[str]]:
    """Index, UUID and MiB of each GPU; one that has fallen off the bus reports words for numbers."""
    for row in _ask("--query-gpu=index,uuid,memory.total"):
        if len(row) == 3 and row[0].isdigit() and row[2].isdigit():
            yield row


def _ask(query: str) -> list[list[str]]:
    """Rows that nvidia-smi answers; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, query, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [row for row in csv.reader(answer.splitlines(), skipinitialspace=True) if row]


def _visible(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` names, in its order; like CUDA, stop at the first unknown name."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for name in map(str.strip, names.split(",")):
        fits = [gpu for gpu in gpus if name and (name == str(gpu.index) or gpu.uuid.startswith(name))]
        if len(fits) != 1:
            break
        chosen += fits
    return chosen


def _folder() -> Path:
    """Where the lock files are, for this user alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        folder = Path(runtime) / "kdlab"
    else:
        folder = Path(tempfile.gettempdir()) / f"kdlab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other scheduler lease meanwhile, so that two that want all devices do not each get half."""
    try:
        file = os.open(_folder() / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise MachineError(
            "the folder of the device locks cannot be used",
            got=str(error),
            fix="set XDG_RUNTIME_DIR or TMPDIR to a folder of yours",
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _hold(name: str, mode: int = fcntl.LOCK_EX) -> int | None:
    """The descriptor through which we now hold a device; None where it is taken."""
    file = os.open(_folder() / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _is_free(name: str) -> bool:
    with _alone():
        file = _hold(name)
    if file is not None:
        os.close(file)
    return file is not None
