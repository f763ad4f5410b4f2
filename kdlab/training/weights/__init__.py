"""Checkpoints from outside: their weights, and how much of a model these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdlab.errors import Fault, JobError
from kdlab.training import checkpoints
from kdlab.training.weights.key_report import KeyReport, fit, some
from kdlab.training.weights.tensors import AVERAGES, HOLDERS, averaged_in, tensors_in, unusable

_OPTIMISERS = {"optimizer", "optimiser", "optimizers", "param_groups"}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        path: the file.
        tensors: all its weights under their names there.
        classes: what its labels stand for in their order, where it says so.
        also: the key of averaged weights that were left aside.
    """

    path: Path
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None = None
    also: str = ""


def read(path: Path, *, ema: bool = False) -> Checkpoint:
    """The weights in a file: mmdet's, mmrazor's, kdlab's, a plain state dict, or `.safetensors`.

    Args:
        path: the file.
        ema: take the averaged weights that it holds beside those of the last step.

    Raises:
        JobError: there is no such file, it is broken, holds code or no weights, or such as are no numbers.
    """
    if path.is_dir():
        raise JobError("the checkpoint is a folder", where=str(path), fix="name the file in it")
    if path.is_file() and not path.stat().st_size:
        raise JobError("the checkpoint is an empty file", where=str(path), fix="fetch it again")
    content = checkpoints.load(path)
    plain, (also, averages) = tensors_in(content), averaged_in(content)
    tensors = averages if ema else plain or averages
    if not tensors:
        raise JobError(faults=[_without_weights(content, str(path), AVERAGES if ema else HOLDERS)])
    if faults := list(unusable(tensors, str(path))):
        raise JobError(faults=faults)
    return Checkpoint(path, tensors, _classes(content.get("meta")), also if tensors is plain else "")


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


def _without_weights(content: Any, where: str, holders: Sequence[str]) -> Fault:
    """Fault of a file that has no tensors under any of the keys, and what it has instead."""
    found, ema = f"a {type(content).__name__}", holders is AVERAGES
    if isinstance(content, dict):
        found = ", ".join(map(str, list(content)[:6]))
        if _OPTIMISERS & content.keys():
            found = f"the state of an optimiser: {found}"
    return Fault(
        f"the checkpoint holds no {'averaged weights (EMA)' if ema else 'weights'}",
        where,
        found,
        f"tensors by name, or such a dict under {', '.join(holders)}",
        "--set teacher.ema=false" if ema else "name the file that holds the model",
    )


def _classes(meta: Any) -> tuple[str, ...] | None:
    """The class list in a checkpoint's `meta`, wherever mmdet's releases put it."""
    if not isinstance(meta, dict):
        return None
    inner = meta.get("dataset_meta")
    holder = meta | inner if isinstance(inner, dict) else meta
    classes = holder.get("classes", holder.get("CLASSES"))
    if isinstance(classes, np.ndarray):
        classes = classes.tolist()
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else None
