"""Checkpoints from outside: their weights, and how much of a model these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdlab.errors import Fault, JobError
from kdlab.training import checkpoints
from kdlab.training.weights.key_report import KeyReport, fit, some

HOLDERS = ("state_dict", "distiller", "model", "model_state_dict")
"""Under which keys files keep weights: mmdet, mmrazor and kdlab; kdlab's training states; others."""
_OPTIMISERS = {"optimizer", "optimiser", "optimizers", "param_groups"}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        path: the file.
        tensors: all its weights under their names there.
        classes: what its labels stand for in their order, where it says so.
    """

    path: Path
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None


def read(path: Path) -> Checkpoint:
    """The weights in a file: mmdet's, mmrazor's, kdlab's, a plain state dict, or `.safetensors`.

    Raises:
        JobError: there is no such file, it is broken, holds code or no weights, or NaN.
    """
    if path.is_dir():
        raise JobError("the checkpoint is a folder", where=str(path), fix="name the file in it")
    if path.is_file() and not path.stat().st_size:
        raise JobError("the checkpoint is an empty file", where=str(path), fix="fetch it again")
    content = checkpoints.load(path)
    tensors = _tensors(content)
    if not tensors:
        found = f"a {type(content).__name__}"
        if isinstance(content, dict):
            found = ", ".join(map(str, list(content)[:6]))
            if _OPTIMISERS & content.keys():
                found = f"the state of an optimiser: {found}"
        raise JobError(
            "the checkpoint holds no weights",
            where=str(path),
            got=found,
            known=f"tensors by name, or such a dict under {', '.join(HOLDERS)}",
            fix="name the file that holds the model",
        )
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise JobError(
            "the checkpoint holds weights that are not numbers",
            where=str(path),
            got=f"NaN or infinity in {len(broken)} of {len(tensors)} tensors: {some(broken)}",
            fix="its training diverged: use an earlier checkpoint of it",
        )
    return Checkpoint(path, tensors, _classes(content.get("meta")))


def load(model: nn.Module, checkpoint: Checkpoint, *, partial: bool = False) -> KeyReport:
    """Load a model from a checkpoint; with `partial` what does not fit keeps its values.

    Raises:
        JobError: the checkpoint is not whole, or holds the model more than once.
    """
    where = str(checkpoint.path)
    found, report = fit(model.state_dict(), checkpoint.tensors, where)
    if not (report.whole or partial):
        raise JobError(faults=[report.fault(where, "teacher", "name a checkpoint of this very model")])
    model.load_state_dict(found, strict=False)
    return report


def neck_and_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a student may inherit: all of a model's state but its backbone and batch counters."""
    return {
        name: value
        for name, value in state.items()
        if not name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    }


def inherit(student: nn.Module, teacher: nn.Module) -> dict[str, int]:
    """Start a student's neck and head from the teacher's where names and shapes agree.

    Returns:
        "tensors", how many were taken over, "of" how many.
    """
    own, agreed = neck_and_head(student.state_dict()), {}
    for name, value in neck_and_head(teacher.state_dict()).items():
        if name in own and own[name].shape == value.shape:
            agreed[name] = value
    student.load_state_dict(agreed, strict=False)
    return {"tensors": len(agreed), "of": len(own)}


def class_fault(checkpoint: Checkpoint, classes: Sequence[str]) -> Fault | None:
    """Fault where a checkpoint's labels stand for other classes, or for the same in another order."""
    theirs = checkpoint.classes
    if theirs is None or theirs == tuple(classes):
        return None
    if len(theirs) != len(classes):
        what = "the checkpoint was trained on another number of classes than the dataset has"
        got = f"{len(theirs)} classes ({some(theirs)}); the dataset has {len(classes)} ({some(classes)})"
    else:
        what = "the checkpoint's classes are not the dataset's"
        if sorted(theirs) == sorted(classes):
            what = "the checkpoint's classes stand in another order than the dataset's"
        label = [mine == other for mine, other in zip(theirs, classes, strict=True)].index(False)
        got = f"label {label} is {theirs[label]!r} in the checkpoint and {classes[label]!r} in the dataset"
    fix = "use a checkpoint that was trained on these classes in this order"
    return Fault(what, str(checkpoint.path), got, fix=fix)


def _tensors(content: Any) -> dict[str, Tensor]:
    """The weights in a file's content, from under the key that holds them."""
    if not isinstance(content, dict):
        return {}
    for candidate in (*(content.get(key) for key in HOLDERS), content):
        if not isinstance(candidate, dict):
            continue
        found = {name: value for name, value in candidate.items() if isinstance(value, Tensor)}
        if found and all(isinstance(name, str) for name in found):
            return found
    return {}


def _classes(meta: Any) -> tuple[str, ...] | None:
    """The class list in a checkpoint's `meta`, wherever mmdet's releases put it."""
    if not isinstance(meta, dict):
        return None
    holder = meta | (meta.get("dataset_meta") or {})
    classes = holder.get("classes", holder.get("CLASSES"))
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else None
