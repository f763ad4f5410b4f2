"""The cores and GPUs of this machine, and leases of them across all schedulers of one user.

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
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from kdlab.errors import MachineError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MOST_SHARES = 8
"""Most jobs on one GPU."""


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

    def sign(self, holder: str) -> None:
        """Write down who has the devices, for others that wait for them."""
        # the last ones: a share's first file says what it takes of the memory
        for file in self.files[-len(self.ids) :]:
            # who waits goes without a name where the disk is full
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, holder.encode(errors="replace"), 0)

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
        """The device that jobs train on here, as torch calls it."""
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

    def holders(self, kind: Literal["core", "gpu"]) -> dict[str, str]:
        """Who has the devices that cannot be leased now, by core number or UUID, as they signed.

        Raises:
            MachineError: the folder of the lock files cannot be used.
        """
        found = {gpu.uuid: "a process that is no job of kdlab" for gpu in self.gpus if gpu.busy}
        names = [gpu.uuid for gpu in self.gpus] if kind == "gpu" else [str(core) for core in self.cores]
        with _alone():
            for name in names:
                if (file := _hold(f"{kind}-{name}")) is not None:
                    os.close(file)
                else:
                    signed = (_folder() / f"{kind}-{name}").read_text(errors="replace")
                    found[name] = signed or "another kdlab"
        return found if kind == "gpu" else {name: found[name] for name in names if name in found}

    def lease_share(self, parts: int, memory_gb: float | None) -> DeviceLease | None:
        """A place on the emptiest GPU that has one, or None where there is none now.

        Args:
            parts: how many jobs may be on one GPU, those of other schedulers among them.
            memory_gb: what the job is expected to take; None counts as its part of the GPU's memory.

        Raises:
            MachineError: the folder of the lock files cannot be used.
        """
        found: list[tuple[int, DeviceLease]] = []
        with _alone():
            for gpu in self.gpus:
                place = None if gpu.busy else _place_on(gpu, parts, memory_gb or gpu.memory_gb / parts)
                if place:
                    found.append(place)
            found.sort(key=lambda place: place[0])
            for _, lease in found[1:]:
                lease.close()
        return found[0][1] if found else None


def _place_on(gpu: Gpu, parts: int, need_gb: float) -> tuple[int, DeviceLease] | None:
    """A place on a GPU with the number of its neighbours; None where it is full or somebody has it alone."""
    name = f"gpu-{gpu.uuid}"
    whole = _hold(name, fcntl.LOCK_SH)
    if whole is None:
        return None
    free, taken_gb = [], []
    for number in range(MOST_SHARES):
        file = _hold(f"{name}.{number}")
        if file is not None:
            free.append(file)
            continue
        # what its holder expects to take of the memory
        text = (_folder() / f"{name}.{number}").read_text().partition("\n")[0]
        taken_gb.append(float(text or 0))
    fits = len(taken_gb) < parts and (not taken_gb or sum(taken_gb) + need_gb <= gpu.memory_gb)
    for file in free[1:] if fits else [*free, whole]:
        os.close(file)
    if not fits:
        return None
    os.pwrite(free[0], f"{need_gb:.3f}\n".encode(), 0)
    return len(taken_gb), DeviceLease((gpu.uuid,), (free[0], whole))


def detect(only: Collection[int] | None = None) -> Machine:
    """Look at this machine; never imports torch.

    Args:
        only: numbers of the GPUs to use, also where they are busy; None for all that
            `CUDA_VISIBLE_DEVICES` allows.

    Raises:
        MachineError: a number in `only` is none of a GPU here.
    """
    cores = tuple(_cores())
    gpus = {gpu.index: gpu for gpu in _visible(_gpus())}
    if only is None:
        return Machine(cores, tuple(_marked_busy(list(gpus.values()))))
    if missing := [str(index) for index in only if index not in gpus]:
        raise MachineError(
            "there is no such GPU here",
            got=", ".join(missing),
            known=", ".join(map(str, gpus)) or "none; see nvidia-smi and CUDA_VISIBLE_DEVICES",
            fix="leave --gpus out to use all",
        )
    return Machine(cores, tuple(gpus[index] for index in only))


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    # a container may have a limit of so many cores' worth of time
    with suppress(OSError, ValueError):
        limit, period = _QUOTA.read_text().split()
        cores = cores[: max(1, round(int(limit) / int(period)))]
    return cores


def _gpus() -> Iterator[Gpu]:
    """All that nvidia-smi lists; one that has fallen off the bus reports words for numbers."""
    for row in _ask("--query-gpu=index,uuid,memory.total"):
        if len(row) == 3 and row[0].isdigit() and row[2].isdigit():
            yield Gpu(int(row[0]), row[1], round(int(row[2]) / 1024, 1))


def _marked_busy(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs with `busy` set where processes compute that are no jobs of ours, which hold a lease."""
    used = [row[0] for row in _ask("--query-compute-apps=gpu_uuid")] if gpus else []
    marked = []
    for gpu in gpus:
        lease = Machine((), (gpu,)).lease("gpu", 1) if gpu.uuid in used else None
        if lease:
            lease.close()
        marked.append(replace(gpu, busy=lease is not None))
    return marked


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


def _visible(gpus: Iterable[Gpu]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` names, in its order; like CUDA, stop at the first unknown name."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    all_gpus = list(gpus)
    if names is None:
        return all_gpus
    chosen: list[Gpu] = []
    for name in map(str.strip, names.split(",")):
        fits = [gpu for gpu in all_gpus if name and (name == str(gpu.index) or gpu.uuid.startswith(name))]
        if len(fits) != 1:
            break
        chosen += fits
    return chosen


def _folder() -> Path:
    """Folder of the lock files, for this user alone."""
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
