"""Weights from outside: reads what others saved, and says how much of a model it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from kdlab.errors import Fault, JobError
from kdlab.training import checkpoints
from kdlab.training.weights.key_report import KeyReport, fit

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
    if path.is_dir() or (path.is_file() and not path.stat().st_size):
        what = "the checkpoint is a folder" if path.is_dir() else "the checkpoint is an empty file"
        raise JobError(what, where=str(path), fix="name the file of a checkpoint, or fetch it again")
    content = _safetensors(path) if path.suffix == ".safetensors" else checkpoints.load(path)
    tensors = _tensors(content)
    if not tensors:
        raise JobError(
            "the checkpoint holds no weights",
            where=str(path),
            got=_described(content),
            known=f"tensors by name, or such a dict under {', '.join(HOLDERS)}",
            fix="name the file that holds the model",
        )
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise JobError(
            "the checkpoint holds weights that are not numbers",
            where=str(path),
            got=f"NaN or infinity in {len(broken)} of {len(tensors)} tensors: {_some(broken)}",
            fix="its training diverged: use an earlier checkpoint of it",
        )
    return Checkpoint(path, tensors, _classes(content.get("meta")))


def load(
    model: nn.Module, checkpoint: Checkpoint, role: str = "model", *, partial: bool = False
) -> KeyReport:
    """Load a model from a checkpoint.

    Args:
        model: takes the tensors.
        checkpoint: gives them.
        role: what the model is, for errors.
        partial: accept that the two differ; what is not loaded keeps its values.

    Raises:
        JobError: the checkpoint is not whole, or holds the model more than once.
    """
    where = str(checkpoint.path)
    found, report = fit(model.state_dict(), checkpoint.tensors, where)
    if not (report.whole or partial):
        fault = report.fault(where, role, "name a checkpoint of this very model")
        raise JobError(faults=[fault])
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
    own, theirs = neck_and_head(student.state_dict()), neck_and_head(teacher.state_dict())
    agreed = {n: theirs[n] for n, value in own.items() if n in theirs and theirs[n].shape == value.shape}
    student.load_state_dict(agreed, strict=False)
    return {"tensors": len(agreed), "of": len(own)}


def class_fault(checkpoint: Checkpoint, classes: Sequence[str]) -> Fault | None:
    """What is wrong where a checkpoint's labels stand for other classes, or for the same in another order."""
    theirs = checkpoint.classes
    if theirs is None or theirs == tuple(classes):
        return None
    fix = "use a checkpoint that was trained on these classes in this order"
    where = str(checkpoint.path)
    if len(theirs) != len(classes):
        what = "the checkpoint was trained on another number of classes than the data set has"
        got = f"{len(theirs)} classes ({_some(theirs)}); the data set has {len(classes)} ({_some(classes)})"
        return Fault(what, where, got, fix=fix)
    label = next(k for k, pair in enumerate(zip(theirs, classes, strict=True)) if pair[0] != pair[1])
    same = sorted(theirs) == sorted(classes)
    what = f"the checkpoint's classes {'stand in another order than' if same else 'are not'} the data set's"
    got = f"label {label} is {theirs[label]!r} in the checkpoint and {classes[label]!r} in the data set"
    return Fault(what, where, got, fix=fix)


def _tensors(content: Any) -> dict[str, Tensor]:
    """The weights in a file's content, from under the key that holds them."""
    if not isinstance(content, dict):
        return {}
    held = [content[key] for key in HOLDERS if isinstance(content.get(key), dict)]
    for candidate in (*held, content):
        found = {
            name: value
            for name, value in candidate.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
        if found:
            return found
    return {}


def _described(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = ", ".join(map(str, list(content)[:6])) or "nothing"
    return f"the state of an optimiser: {keys}" if _OPTIMISERS & content.keys() else keys


def _classes(meta: Any) -> tuple[str, ...] | None:
    """The class list in a checkpoint's `meta`, wherever mmdet's releases put it."""
    if not isinstance(meta, dict):
        return None
    for holder in (meta.get("dataset_meta"), meta):
        for key, value in (holder if isinstance(holder, dict) else {}).items():
            if str(key).lower() == "classes" and isinstance(value, list | tuple):
                return tuple(map(str, value))
    return None


def _some(words: Sequence[str]) -> str:
    return ", ".join([*words[:3], *(["..."] if len(words) > 3 else [])])


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The content of a file in Hugging Face's format.

    Raises:
        JobError: there is no such file, or it is broken.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise JobError("no such checkpoint", where=str(path), fix="check the path") from None
    except Exception as error:  # the package raises errors of its own kinds
        raise JobError(
            "the checkpoint cannot be read", where=str(path), got=str(error)[:200], fix="fetch it again"
        ) from error
