"""What a recipe may name in `overrides`: registered parts of models, and nothing that imports, runs or loads.

mmengine imports whatever a dotted `type` names and calls it, mmcv evaluates the `type` of an NMS, and some
parts of mmdet read files of code or weights. A recipe is data, so all of that is refused here, before
anything is built. An mmdet config is Python and may do as it likes; what a recipe puts over it may not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mmdet.registry import MODELS, TASK_UTILS
from mmengine.registry import WEIGHT_INITIALIZERS, Registry, registry

from kdlab.errors import Fault, suggestion

OPERATORS = frozenset({"nms", "soft_nms", "RoIAlign", "RoIPool"})
"""Names under `type` that mmcv and mmdet look up elsewhere than in a registry."""
LOADING = frozenset({"WEIGHTS", "checkpoint", "pretrained", "teacher_ckpt"})
"""Keys whose value mmdet reads weights from, so that no plan and no id would know of them."""
RUNNING = frozenset(
    {"_base_", "_scope_", "custom_imports", "import", "imports", "lang_model_name", "teacher_config"}
    | {"warp_mode"}
)
"""Keys whose value is imported, evaluated or read as code."""
NOT_OURS = frozenset({"BertModel", "Detectron2Wrapper", "Pretrained"})
"""Registered, and reading weights by a name or a config of their own."""
SHOWN_CHARACTERS = 80
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def registered() -> set[str]:
    """All names of parts of models, bare and with their scope: "GFLHead", "mmdet.GFLHead"."""
    found = set(OPERATORS)
    for start in (MODELS, TASK_UTILS, WEIGHT_INITIALIZERS):
        while start.parent is not None:
            start = start.parent
        for one in _family(start):
            keys = one.module_dict.keys() - NOT_OURS
            found |= keys | {f"{one.scope}.{key}" for key in keys}
    return found


def _family(parent: Registry) -> Iterator[Registry]:
    yield parent
    for child in parent.children.values():
        yield from _family(child)


def faults(overrides: Mapping[str, Any]) -> list[Fault]:
    """What in `overrides:` is no plain setting of registered parts; `where` is its dotted path."""
    known = registered()
    found = []
    for path, value in leaves(overrides, "overrides"):
        keys = path.split(".")
        names_part = "type" in keys
        if not RUNNING.isdisjoint(keys):
            clause, fix = "imports or runs what it names: a recipe is data", "remove it"
        elif not LOADING.isdisjoint(keys) and value not in (None, False, ""):
            clause = "loads weights that no plan and no job id would know of"
            fix = "name the file in teacher.checkpoint, or for a backbone in init"
        elif names_part and value is not None and not (keys[-1] == "type" and value in known):
            clause, fix = "names no registered part of a model", _nearest(value, known)
        elif isinstance(value, str) and _DOTTED.fullmatch(value) and value not in known:
            clause, fix = "is the dotted name of something to import: a recipe is data", "remove it"
        else:
            continue
        told = "keys of mmdet's registries (MODELS, TASK_UTILS, initialisers)" if names_part else ""
        found.append(Fault(f"{path} {clause}", path, json.dumps(value)[:SHOWN_CHARACTERS], told, fix))
    return found


def _nearest(value: Any, known: Collection[str]) -> str:
    near = suggestion(str(value), sorted(name for name in known if "." not in name))
    return near or "own parts: an mmdet config that registers them, named in detector"


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all values below one that are no mapping and no list."""
    if isinstance(value, Mapping | list | tuple):
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            yield from leaves(entry, f"{path}.{key}")
    else:
        yield path, value


@contextmanager
def importing_only(names: Collection[str]) -> Iterator[None]:
    """While inside, mmengine imports nothing for a name that no registry has, but these.

    The second wall: parts of mmdet look up strings under other keys than `type`, such as `padding_mode`.
    """
    by_name, by_module = registry.get_object_from_string, registry.import_module
    roots = {name.partition(".")[0] for name in names} | {"mmcv", "mmdet", "mmengine"}

    def imported(name: str) -> Any:
        if name.partition(".")[0] not in roots:
            raise ImportError(f"{name} is not imported by its name")
        return import_module(name)

    registry.get_object_from_string = lambda name: by_name(name) if name in names else None
    registry.import_module = imported
    try:
        yield
    finally:
        registry.get_object_from_string, registry.import_module = by_name, by_module
