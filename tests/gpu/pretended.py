"""A GPU that is not there: tensors whose values are on the CPU and whose device is "cuda:0".

Inside `gpu()` whatever is sent to "cuda" becomes such a tensor. Operations refuse to mix devices as CUDA's
do, and each for which the host would wait for the device is counted, by the line that asked for it. Kernels,
memory, NCCL and speed it cannot show.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mmcv
import mmdet
import mmengine
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import kdlab

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WAITS: Counter[str] = Counter()
"""How often the host waited, by what for and the file and line that asked."""

# of a size that only the device knows
_COUNTED = {
    "nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique", "_unique2", "bincount",
    "equal", "nms", "is_nonzero",
}  # fmt: skip
_INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
_COPYING = {"copy_", "_to_copy"}
_PACKAGES = [Path(str(module.__file__)).parent for module in (kdlab, mmdet, mmengine, mmcv, torchvision)]


class OnGpu(Tensor):
    """A tensor on the pretended GPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, values: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CPU,
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"OnGpu({self.values})"

    @classmethod
    def __torch_dispatch__(cls, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    def cpu(self) -> Tensor:
        return _moved(self, CPU)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return _to(self, *args, **kwargs)

    def tolist(self) -> Any:
        _wait("tolist")
        return self.values.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        _wait("new_tensor")
        kwargs.pop("device", None)
        return OnGpu(self.values.new_tensor(data, **kwargs))

    def new(self, *sizes: Any) -> Tensor:
        return OnGpu(self.values.new_empty(*sizes))


class _Move(torch.autograd.Function):
    """A copy to the other device."""

    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        return tensor.values.clone() if isinstance(tensor, OnGpu) else OnGpu(tensor.clone())

    @staticmethod
    def backward(_context: Any, grad: Tensor) -> Tensor:
        return grad.values if isinstance(grad, OnGpu) else OnGpu(grad)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if isinstance(tensor, OnGpu) == (device.type == "cuda"):
        return tensor
    _wait(f"copy to {device.type}")
    return _Move.apply(tensor)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` between two devices."""
    like = next((one for one in (*args, kwargs.get("other")) if isinstance(one, Tensor)), None)
    if like is not None:
        device, dtype, form = like.device, like.dtype, None
    else:
        kwargs.pop("copy", None)
        device, dtype, _, form = torch._C._nn._parse_to(*args, **kwargs)
    moved = tensor if device is None else _moved(tensor, device)
    changes = {
        name: value for name, value in (("dtype", dtype), ("memory_format", form)) if value is not None
    }
    return Tensor.to(moved, **changes) if changes else moved


def _wait(what: str) -> None:
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        # not by the name alone: a clone is called kdlab too
        if package := next((one for one in _PACKAGES if name.startswith(f"{one}/")), None):
            WAITS[f"{what} at {Path(name).relative_to(package.parent)}:{frame.f_lineno}"] += 1
            return
        frame = frame.f_back
    WAITS[what] += 1


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator on the values, if CUDA would run it."""
    name = operator._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    device = kwargs.get("device")
    onto_gpu = device is not None and torch.device(device).type == "cuda"
    if not ours and not onto_gpu:
        return operator(*args, **kwargs)
    if torch._C._current_graph_task_id() == -1:
        # in a backward pass the engine makes zeros itself, where it takes the tensors to be
        _refuse_mixing(name, tensors, args, kwargs)
    _count(name, args, kwargs)
    plain = {key: CPU if key == "device" and value is not None else value for key, value in kwargs.items()}
    found = operator(*tree_map(_values, args), **tree_map(_values, plain))
    return _as_told(operator, args, kwargs, found)


def _refuse_mixing(name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    others = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
    if name in _INDEXING:
        # indices alone may come from the host
        others = [tensor for tensor in others if not any(tensor is index for index in args[1])]
        if not isinstance(args[0], OnGpu):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
    if others and name not in _COPYING:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {name}")


def _count(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if name == "_local_scalar_dense":
        _wait("item")
    elif name in _COUNTED or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _wait(name)
    elif name in _INDEXING:
        for index in args[1]:
            # filling under a mask with one value counts nothing
            fills = "put" in name and args[2].numel() == 1
            if index is not None and not isinstance(index, OnGpu):
                _wait("index from the host")
            elif index is not None and index.dtype in (torch.bool, torch.uint8) and not fills:
                _wait("index by mask")
    elif name in _COPYING:
        devices = {isinstance(tensor, OnGpu) for tensor in args[:2] if isinstance(tensor, Tensor)}
        onto = kwargs.get("device")
        if len(devices) > 1 or (onto is not None and devices != {torch.device(onto).type == "cuda"}):
            _wait(name)


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, OnGpu) else leaf


def _as_told(operator: Any, args: Any, kwargs: dict[str, Any], found: Any) -> Any:
    """Results on the GPU; of an operation in place the tensor that it was given."""
    written = {}
    for place, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[place] if place < len(args) else None)
            written[frozenset(argument.alias_info.before_set)] = value

    def told(result: Any, value: Any) -> Any:
        if result.alias_info is not None and result.alias_info.is_write:
            return written.get(frozenset(result.alias_info.before_set), value)
        return tree_map(lambda leaf: OnGpu(leaf) if type(leaf) is Tensor else leaf, value)

    results = operator._schema.returns
    if len(results) == 1:
        return told(results[0], found)
    if isinstance(found, tuple | list) and len(found) == len(results):
        return tuple(told(result, value) for result, value in zip(results, found, strict=True))
    return found


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What makes tensors of Python's values, or sends those of the CPU away, before it comes to operators."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        onto = kwargs.get("device")
        if function is Tensor.to and not isinstance(args[0], OnGpu):
            return _to(*args, **kwargs)
        if function is Tensor.cuda:
            return _moved(args[0], CUDA)
        if function is F.one_hot and isinstance(args[0], OnGpu):
            if kwargs.get("num_classes", args[1] if len(args) > 1 else -1) == -1:
                _wait("one_hot")
            return OnGpu(function(args[0].values, *args[1:], **kwargs))
        if (
            function in (torch.tensor, torch.as_tensor)
            and onto is not None
            and torch.device(onto).type == "cuda"
        ):
            if isinstance(args[0], OnGpu):
                return args[0]
            _wait(function.__name__)
            trains = kwargs.get("requires_grad", False)
            made = OnGpu(function(*args, **{**kwargs, "device": CPU, "requires_grad": False}))
            return made.requires_grad_(trains)
        return function(*args, **kwargs)


@contextmanager
def gpu() -> Iterator[Counter[str]]:
    """Pretend that this machine has a GPU; the waits from here on."""
    state = torch.zeros(16, dtype=torch.uint8)
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda _device=None: None,
        "get_rng_state": lambda _device="cuda": state,
        "set_rng_state": lambda _state, _device="cuda": None,
        "max_memory_allocated": lambda _device=None: 2**30,
        "reset_peak_memory_stats": lambda _device=None: None,
        "get_device_name": lambda _device=None: "Pretended",
        "_lazy_init": lambda: None,
    }
    # of torch before and since 2.9
    names = ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check")
    checks = {name: lambda _self: None for name in names if hasattr(Optimizer, name)}
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    WAITS.clear()
    try:
        with (
            patch.multiple(torch.cuda, **cuda),
            patch.multiple(Optimizer, **checks),
            _Operators(),
            _Functions(),
        ):
            yield WAITS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
