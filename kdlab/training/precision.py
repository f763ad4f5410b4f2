"""Mixed precision: matrix products and convolutions in 16 bits, weights and losses in 32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from kdlab.errors import MachineError
from kdlab.jobs.spec import Precision

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def computing_in(precision: Precision | None, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a model computes in `precision`; None leaves it as it is outside.

    Raises:
        MachineError: the GPU has no bf16.
    """
    if precision is None:
        return nullcontext()
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        fix = "--set schedule.precision=fp16, and teacher.precision where it is bf16"
        raise MachineError("this GPU has no bf16", got=torch.cuda.get_device_name(), fix=fix)
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


@OPTIM_WRAPPERS.register_module(force=True)
class Bf16OptimWrapper(OptimWrapper):
    """Steps whose forward pass computes in bf16. It has the range of fp32, so no loss is scaled."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Around the forward pass."""
        device = next(model.parameters()).device
        with super().optim_context(model), computing_in("bf16", device):
            yield
