"""Checkpoints that are whole or not there, and load without running code; `loop.py` says when one is due."""

from __future__ import annotations

import datetime
import hashlib
import pickle
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file
from torch import Tensor, nn

from kdlab.errors import JobError
from kdlab.jobs.files import replacing
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult


def _statistic(owner: Any, name: str) -> Any:
    """`getattr` for the only names that mmengine's checkpoints ask for."""
    if owner is not HistoryBuffer or name not in ("mean", "max", "min", "current"):
        raise pickle.UnpicklingError(f"it asks for the attribute {name} of {owner}")
    return getattr(owner, name)


def _path(*parts: str) -> str:
    """A path of any machine as text."""
    return "/".join(parts)


SETTINGS = (
    "addict.addict.Dict",
    "argparse.Namespace",
    "easydict.EasyDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "types.SimpleNamespace",
    "yacs.config.CfgNode",
)
# what mmengine, numpy and others put into checkpoints beside tensors: constructors of plain data, numpy's by
# the names of numpy 1 and 2; classes that hold settings come as a dict, and none of their code runs
_ARRAY, _NUMBER = np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]
SAFE_GLOBALS = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efdUS"},
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(
        (_path, f"{module}.{kind}{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, name in product(("", "Pure"), ("PosixPath", "WindowsPath"))
    ),
    *((OrderedDict, name) for name in SETTINGS),
]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(path: Path, content: dict[str, Any]) -> str:
    """Write a file atomically; returns its SHA-256.

    Raises:
        JobError: the disk is full or not writable; what was at `path` before stays.
    """
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a failed write as a RuntimeError about positions
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise JobError(
            "a checkpoint cannot be written",
            where=str(path.parent),
            got=cause.strerror or str(cause),
            fix="make room; the same command resumes from the last checkpoint",
        ) from error
    return sha256(path)


def save_model(path: Path, model: nn.Module, classes: Sequence[str]) -> str:
    """Write a detector's weights with the names of its classes, as mmdet does; as `save` otherwise."""
    return save(
        path, {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": list(classes)}}}
    )


def load(path: Path) -> Any:
    """Tensors and plain data from a checkpoint, torch's or `.safetensors`; code in it is refused.

    Raises:
        JobError: no file, a broken one, or one that holds more than data.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _settle(content)
        return content
    except FileNotFoundError:
        raise JobError("no such checkpoint", where=str(path), fix="check the path") from None
    except Exception as error:  # a broken file can raise anything
        # torch wraps what it met into advice to load without the safeguard
        met = error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error
        told = f"{type(met).__name__}: {str(met).strip().partition('. ')[0][:200]}"
        fix = "fetch it again: the file is damaged, or no checkpoint"
        if code := re.search(r"GLOBAL (\S+)|'([\w.]+)' is not allowed|function (<.*>)", told):
            told = f"an object of {next(filter(None, code.groups()))}, whose class could run code"
            fix = "kdlab never runs code from a checkpoint: where it was made, save the weights alone, "
            fix += "torch.save(model.state_dict(), 'weights.pth')"
        raise JobError("the checkpoint cannot be read", where=str(path), got=told, fix=fix) from error


def _settle(content: Any) -> None:
    """Make items of what settings were read as: attributes of an OrderedDict, in the way of its methods."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, OrderedDict):
            held = vars(value)
            # torch's, beside the tensors of a model
            items = {key: held.pop(key) for key in held.keys() - {"_metadata"}}
            value.update(items)
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def finished_state(paths: JobPaths) -> dict[str, Tensor]:
    """The tensors that a finished job left, contiguous and on the CPU.

    Raises:
        JobError: they are missing or not the ones that its result names.
    """
    result = JobResult.read(paths)
    digest = sha256(paths.weights) if paths.weights.exists() else ""
    if result is None or digest != result.model.get("weights_sha256"):
        raise JobError(
            "the weights are missing or not the ones that the job's result names",
            where=str(paths.weights),
            fix=f"remove {paths.folder} and run its recipe again: the job is trained anew",
        )
    return {name: tensor.contiguous() for name, tensor in load(paths.weights)["state_dict"].items()}


def load_finished(module: nn.Module, parent: JobPaths) -> None:
    """Load the weights that a finished job left; as `finished_state` otherwise.

    Raises:
        JobError: they do not fit the module.
    """
    try:
        module.load_state_dict(finished_state(parent))
    except RuntimeError as error:
        raise JobError(
            "a parent's weights do not fit its settings", where=str(parent.weights), got=str(error)[:300]
        ) from error


class TrainingCheckpoints:
    """Training states of one job: the last two, each named by its iteration and its content's hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*.pth.*"):
            # all processes of a job clear up at once
            unfinished.unlink(missing_ok=True)

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """Write a state, then remove all others but the newest of an earlier iteration.

        Raises:
            JobError: the disk is full; what was there before stays.
        """
        unnamed = self.folder / "writing.pth"
        digest = save(unnamed, state)
        named = self.folder / f"{iteration:09d}-{digest}.pth"
        unnamed.replace(named)
        earlier = [path for path in self._newest_first() if path.name[:9] < named.name[:9]]
        for path in self._newest_first():
            if path != named and path not in earlier[:1]:
                path.unlink()

    def save_best(self, state: dict[str, Any]) -> None:
        """Keep weights as those of the best evaluation; they stay when the states go."""
        save(self.folder / "best.pth", state)

    def newest(self) -> tuple[dict[str, Any] | None, list[Path]]:
        """The newest state whose hash is right, and the files of wrong ones that were passed over."""
        broken: list[Path] = []
        for path in self._newest_first():
            if sha256(path) == path.stem.partition("-")[2]:
                return load(path), broken
            broken.append(path)
        return None, broken

    def clear(self) -> None:
        """Remove all states; a finished job keeps its weights alone."""
        for path in self._newest_first():
            # a scheduler that reads the result may remove them too
            path.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*-*.pth"), reverse=True)


def random_state() -> dict[str, Any]:
    """The state of all global generators, as tensors and plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
