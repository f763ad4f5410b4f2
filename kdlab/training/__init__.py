"""What runs inside a job's process. torch, mmengine and mmdet are imported here and nowhere else."""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class CompiledMmcv(MetaPathFinder, Loader):
    """Serves `mmcv._ext` from `mmcv_ops`. Asked last, so a compiled mmcv is found before."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The stand-in's spec, for that one name."""
        # with a loader: without one mmengine sees "no compiled mmcv" and ignores dcn_offset_lr_mult
        return (
            ModuleSpec(fullname, self, origin="kdlab.training.mmcv_ops") if fullname == "mmcv._ext" else None
        )

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module with the operators."""
        from kdlab.training.mmcv_ops import StandIn

        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it is complete."""


if not any(isinstance(finder, CompiledMmcv) for finder in sys.meta_path):
    sys.meta_path.append(CompiledMmcv())
