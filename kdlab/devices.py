"""The cores and GPUs of this machine, and leases of them across all schedulers of one user.

A lease is a `flock` on one file per GPU or core, held through a file descriptor that the job inherits: it
lives exactly as long as the job's processes, whatever becomes of the scheduler that started them. Jobs that
share a GPU hold its file together, and a file of a place on it each, which says how much memory they take.
"""

from __future__ import annotations

import csv
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from kdlab.errors import MachineError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOCKS = Path(f"/tmp/kdlab-{os.getuid()}")
_DEVICES, _NODES = Path("/dev"), ("nvidia[0-9]*", "dxg")
_PATIENCE_S = 30
_SHARED = ("[N/A]", "[Not Supported]")
"""Words for the memory of a GPU that uses the machine's."""
_ON_THE_CPU = "train on the CPU: CUDA_VISIBLE_DEVICES= kdlab ..."
MOST_SHARES = 8
"""Most jobs on one GPU."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a slice of one that is cut (MIG).

    Args:
        index: its number as nvidia-smi counts; of a slice (MIG) that of the whole.
        uuid: its name that never changes ("GPU-5f3c...", of a slice "MIG-...").
        memory_gb: all of its memory; the machine's where it has none of its own.
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


def detect(only: Collection[int] | None = None, *, some: bool = False) -> Machine:
    """Look at this machine; never imports torch.

    Args:
        only: numbers of the GPUs to use, also where they are busy; None for all that
            `CUDA_VISIBLE_DEVICES` allows.
        some: be content with those of them that are there.

    Raises:
        MachineError: a number in `only` is none of a GPU here, or nvidia-smi does not answer though there
            is one.
    """
    gpus = _visible(_gpus())
    if only is None:
        return Machine(cores(), tuple(_marked_busy(gpus)))
    known = dict.fromkeys(gpu.index for gpu in gpus)
    missing = [str(index) for index in only if index not in known]
    if missing and not some:
        raise MachineError(
            "there is no such GPU here",
            got=", ".join(missing),
            known=", ".join(map(str, known)) or "none; see nvidia-smi and CUDA_VISIBLE_DEVICES",
            fix="leave --gpus out to use all",
        )
    return Machine(cores(), tuple(gpu for index in only for gpu in gpus if gpu.index == index))


def cores() -> tuple[int, ...]:
    """The cores that this process may use, no more than a container's limit of their time allows."""
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(os.cpu_count() or 1))
    with suppress(OSError, ValueError):
        limit, period = _QUOTA.read_text().split()
        allowed = allowed[: max(1, round(int(limit) / int(period)))]
    return tuple(allowed)


def _gpus() -> Iterator[Gpu]:
    """All that nvidia-smi lists, one that is cut (MIG) as its slices; without what fell off the bus."""
    if not _wanted():
        return
    cut: dict[str, list[tuple[str, float]]] | None = None
    for index, uuid, memory, *mig in _rows("--query-gpu=index,uuid,memory.total,mig.mode.current"):
        if not index.isdigit():
            continue
        if mig == ["Enabled"]:
            cut = _slices() if cut is None else cut
            for name, memory_gb in cut.get(uuid, ()):
                yield Gpu(int(index), name, memory_gb)
        elif memory.isdigit():
            yield Gpu(int(index), uuid, round(int(memory) / 1024, 1))
        elif memory in _SHARED:
            yield Gpu(int(index), uuid, round(_machine_gb(), 1))


def _wanted() -> bool:
    """Whether there is anything to ask nvidia-smi about.

    Raises:
        MachineError: there is a GPU and no nvidia-smi.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if shutil.which("nvidia-smi"):
        return True
    if gpus := _nodes():
        fix = f"install it (in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility), or {_ON_THE_CPU}"
        raise MachineError("nvidia-smi is missing, which tells of GPUs", got=gpus, fix=fix)
    return False


def _nodes() -> str:
    """Files of GPUs that the system has, whatever nvidia-smi says of them."""
    return ", ".join(sorted(str(path) for kind in _NODES for path in _DEVICES.glob(kind)))


def _slices() -> dict[str, list[tuple[str, float]]]:
    """Names and memory in GB of what GPUs are cut into, by the UUID of the GPU."""
    found: dict[str, list[tuple[str, float]]] = {}
    of: list[tuple[str, float]] = []
    for line in _ask("-L").splitlines():
        if whole := re.match(r"GPU \d+: .*\(UUID: ([^)]+)\)", line):
            of = found.setdefault(whole[1], [])
        elif part := re.match(r"\s+MIG \S*?(\d+)gb\S*\s.*\(UUID: ([^)]+)\)", line):
            of.append((part[2], float(part[1])))
    return found


def _machine_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _marked_busy(gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs with `busy` set where processes compute that are no jobs of ours, which hold a lease."""
    used = [row[0] for row in _rows("--query-compute-apps=gpu_uuid")] if gpus else []
    marked = []
    for gpu in gpus:
        lease = Machine((), (gpu,)).lease("gpu", 1) if gpu.uuid in used else None
        if lease:
            lease.close()
        marked.append(replace(gpu, busy=lease is not None))
    return marked


def _rows(query: str) -> list[list[str]]:
    """What nvidia-smi answers to a query, a row a line."""
    lines = _ask(query, "--format=csv,noheader,nounits").splitlines()
    return [row for row in csv.reader(lines, skipinitialspace=True) if row]


def _ask(*words: str) -> str:
    """What nvidia-smi prints; nothing where it fails for there is no GPU.

    Raises:
        MachineError: it fails, or takes too long, although there is one.
    """
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    else:
        if done.returncode == 0:
            return done.stdout
        fault = f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()[:300]}"
    if not _nodes():
        return ""
    raise MachineError(
        "there is a GPU and nvidia-smi fails",
        got=fault,
        fix=f"repair the driver until nvidia-smi works, or {_ON_THE_CPU}",
    )


def _visible(gpus: Iterable[Gpu]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` names, in its order; like CUDA, stop at the first unknown name."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    all_gpus = list(gpus)
    if names is None:
        return all_gpus
    chosen: list[Gpu] = []
    for name in map(str.strip, names.split(",")):
        # a number means the first slice of a GPU that is cut
        fits = [gpu for gpu in all_gpus if name == str(gpu.index)][:1]
        fits = fits or [gpu for gpu in all_gpus if name and gpu.uuid.startswith(name)]
        if len(fits) != 1:
            break
        chosen += fits
    return chosen


def _folder() -> Path:
    """Folder of the lock files, for this user alone."""
    # not XDG_RUNTIME_DIR or TMPDIR: a login has others than cron, and the first goes with the last login
    own = os.environ.get("KDLAB_LOCKS")
    folder = Path(own).expanduser() if own else _LOCKS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            fix="set KDLAB_LOCKS to a folder of yours, the same in every shell",
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
