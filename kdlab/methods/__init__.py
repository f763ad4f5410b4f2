"""One file a distillation method: the formula as a free function and one `Method` class."""

from __future__ import annotations

import importlib
import inspect

import kdlab.mmcv_ops  # noqa: F401 - before anything imports mmdet
from kdlab import plugins
from kdlab.methods.base import Method

__path__ += plugins.of("methods")


def method_class(key: str) -> type[Method]:
    """The `Method` of `methods/<key>.py`."""
    module = importlib.import_module(f"kdlab.methods.{key}")
    return next(
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    )
