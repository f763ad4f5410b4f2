"""Stand-in for mmcv's compiled operators, served by torchvision: importing it makes mmdet find them."""

from __future__ import annotations

import fcntl
import sys
from contextlib import suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class CompiledMmcv(MetaPathFinder, Loader):
    """Serves `mmcv._ext` from `operators`. Asked last, so a compiled mmcv is found before."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The stand-in's spec, for that one name."""
        if fullname != "mmcv._ext":
            return None
        # with a loader: without one mmengine sees "no compiled mmcv" and ignores dcn_offset_lr_mult
        return ModuleSpec(fullname, self, origin="kdlab.mmcv_ops.operators")

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module with the operators."""
        from kdlab.mmcv_ops.operators import StandIn

        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it is complete."""


def import_yapf() -> None:
    """Import what mmengine formats configs with, one process at a time.

    In a new environment yapf writes a cache, under its name before it has content: of two jobs that start at
    once, one would find it empty and fail.
    """
    spec = find_spec("yapf")
    if spec is None or spec.origin is None:
        return
    with Path(spec.origin).open("rb") as file:
        # a disk without locks has the race, and no more than that
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        import_module("yapf")


import_yapf()
if not any(isinstance(finder, CompiledMmcv) for finder in sys.meta_path):
    sys.meta_path.append(CompiledMmcv())
