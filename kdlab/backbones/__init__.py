"""One file a kind of backbone: its names and widths, its mmdet config, and how its weights are named."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from kdlab import plugins
from kdlab.backbones.base import Backbone

__path__ += plugins.of("backbones")


@cache
def kinds() -> tuple[type[Backbone], ...]:
    """All kinds of backbones."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(module.BACKBONE for module in modules if hasattr(module, "BACKBONE"))


def kind_of(name: str) -> type[Backbone]:
    """The kind of a backbone by a recipe's name for it."""
    return next(kind for kind in kinds() if name in kind.names)


def name_of(config: Mapping[str, Any]) -> str:
    """The recipe's name for mmdet's config of a backbone; the type in small letters where there is none."""
    names = (kind.name_of(config) for kind in kinds())
    return next(filter(None, names), str(config["type"]).lower())
