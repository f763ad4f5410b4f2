"""A model's forward pass as torch.compile makes it, beside the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from kdlab.errors import MachineError

Forward = Callable[..., Any]
_PARTS = ("backbone", "neck", "bbox_head", "rpn_head")


def compiled_parts(model: nn.Module, without_head: bool) -> list[tuple[nn.Module, Forward]]:
    """Backbone, neck and head of a detector, each with a compiled forward that compiles on its first call.

    Args:
        model: an mmdet detector.
        without_head: leave the head plain. Hooks inside of it would not be called.
    """
    names = _PARTS[:2] if without_head else _PARTS
    parts = [getattr(model, name, None) for name in names]
    # of the forward, so that hooks on the part itself stay outside
    return [(part, torch.compile(part.forward)) for part in parts if part is not None]


@contextmanager
def running(parts: Sequence[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Inside, the parts run compiled; outside they are what they were, for methods that call them.

    Raises:
        MachineError: nothing can be compiled here.
    """
    for part, forward in parts:
        part.forward = forward
    try:
        yield
    except TorchDynamoException as error:
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
        fix = "install a C++ compiler (g++), on a GPU triton too, or --set teacher.compile=false"
        raise MachineError("the teacher cannot be compiled here", got=reason, fix=fix) from error
    finally:
        for part, _ in parts:
            del part.forward
