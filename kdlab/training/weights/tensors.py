"""Tensors in a checkpoint's content: under which key they are, and which kinds of them are no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kdlab.errors import Fault
from kdlab.training.weights.key_report import some

HOLDERS = ("state_dict", "distiller", "model", "model_state_dict")
"""Under which keys files keep weights: mmdet, mmrazor and kdlab; kdlab's training states; others."""
AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_model_state_dict")
"""Under which keys files keep the moving average (EMA) of the weights beside them. mmengine's
`ema_state_dict` is none: there the average stands under `state_dict`."""
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.bool),
}
"""Of weights, and of the counts, indices and masks beside them; int8 is what quantising leaves."""


def tensors_in(content: Any) -> dict[str, Tensor]:
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


def averaged_in(content: Any) -> tuple[str, dict[str, Tensor]]:
    """The averaged weights in a file's content and the key that holds them; ("", {}) where there are none."""
    for key in AVERAGES if isinstance(content, dict) else ():
        held = content.get(key)
        inside = held.get("module") if isinstance(held, dict) else None
        if found := tensors_in(inside) or tensors_in(held):
            return key, found
    return "", {}


def unusable(tensors: Mapping[str, Tensor], where: str) -> Iterator[Fault]:
    """Faults of tensors that are no plain numbers, each kind once, with how to write plain ones."""
    fix = "where it was made, before any quantising, save plain copies: value.float().contiguous() of each"
    kinds: dict[str, list[str]] = {}
    for name, value in tensors.items():
        if kind := _kind(value):
            kinds.setdefault(kind, []).append(name)
    for kind, names in kinds.items():
        got = f"{len(names)} of {len(tensors)} tensors: {some(names)}"
        yield Fault(f"the checkpoint holds {kind}, which are no plain weights", where, got, fix=fix)
    if kinds:
        return
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        yield Fault(
            "the checkpoint holds weights that are not numbers",
            where,
            f"NaN or infinity in {len(broken)} of {len(tensors)} tensors: {some(broken)}",
            fix="its training diverged: use an earlier checkpoint of it",
        )


def _kind(value: Tensor) -> str:
    """What is odd about a tensor, in the plural; "" for plain weights."""
    if value.layout != torch.strided:
        return f"sparse tensors ({str(value.layout).removeprefix('torch.')})"
    if value.is_quantized or value.dtype not in DTYPES:
        return f"tensors of {str(value.dtype).removeprefix('torch.')}"
    if value.is_meta:
        return "tensors without values (device meta)"
    # a file of a kilobyte may claim terabytes
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "expanded tensors, whose values repeat in place"
    return ""
