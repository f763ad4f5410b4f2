"""A model out of an mmdet config file, as plain JSON values that a job keeps in its settings."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config

from kdlab import backbones
from kdlab.errors import UsageError
from kdlab.jobs.augment import GREY

_TUPLE = "__tuple__"
SECOND_MODELS = ("teacher_config", "teacher_ckpt")
THAWED = {"frozen_stages": -1, "norm_eval": False}
DOUBLING, DOUBLED_TO = {"CSPNeXtPAFPN", "YOLOXPAFPN", "YOLOV3Neck"}, 32
"""Necks that double a map to lay it on the next finer one, so that images must be whole multiples of this."""


def read_config(path: Path, init: str) -> dict[str, Any]:
    """What a recipe's settings need of an mmdet config.

    No part of it loads weights by itself, and where the recipe loads none either, nothing stays frozen.

    Returns:
        "config" (its model), "imports" (its own modules), "code" (their SHA-256) and "backbone" (a name as
        recipes have it).

    Raises:
        UsageError: it is no config of a detector with a backbone, or of one that brings a teacher of its own.
    """
    try:
        cfg = Config.fromfile(path)
        model = cfg.model.to_dict()
        backbone = model["backbone"]
        json.dumps(model)
    except Exception as error:  # it is Python, and can raise anything
        raise UsageError(
            "this is no mmdet config of a detector", where=str(path), got=f"{type(error).__name__}: {error}"
        ) from error
    if init == "imagenet" and backbone.get("style") == "caffe":
        raise UsageError(
            "this config's backbone is in Caffe's style, and torchvision's weights are not",
            where=str(path),
            fix="init: FILE with weights of that style, or a config whose backbone has style='pytorch'",
        )
    if second := [key for key in SECOND_MODELS if key in model]:
        raise UsageError(
            "this config brings a teacher of its own",
            where=str(path),
            got=", ".join(second),
            fix="name its student's config, and the teacher in the recipe",
        )
    _drop_pretrained(model)
    _prepare_images(model)
    if init == "none":
        _thaw(backbone)
    imports = (cfg.get("custom_imports") or {}).get("imports") or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    return {
        "config": as_json(model),
        "imports": imports,
        "code": code_of(imports),
        "backbone": backbones.name_of(backbone),
    }


def folders_of(path: Path) -> list[str]:
    """Where the modules of a config may lie that are not installed: beside it, or in the working folder."""
    return [] if ".mim" in path.parts else [str(path.parent), str(Path.cwd())]


def see(folders: Iterable[str]) -> None:
    """Let a config's own modules be found: after all that is installed, so that none of that is shadowed."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)


def as_json(value: Any) -> Any:
    """Plain values in which a tuple is told from a list: some of mmdet's parts ask which it is."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [as_json(part) for part in value]}
    return [as_json(part) for part in value] if isinstance(value, list) else value


def from_json(value: Any) -> Any:
    """The inverse of `as_json`."""
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(from_json(part) for part in value[_TUPLE])
        return {key: from_json(part) for key, part in value.items()}
    return [from_json(part) for part in value] if isinstance(value, list) else value


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the source of each module; of a package, of all its Python files."""
    found = {}
    for name in modules:
        spec = find_spec(name)
        files = [Path(spec.origin)] if spec and spec.origin and spec.has_location else []
        if files and files[0].name == "__init__.py":
            files = sorted(files[0].parent.rglob("*.py"))
        found[name] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return found


def _prepare_images(model: dict[str, Any]) -> None:
    """Pad, in place, as mmdet's pipelines do where they leave nothing to the model, and augment nothing."""
    preprocessor = model.get("data_preprocessor", {})
    # augmentation is the recipe's, and a function of (seed, epoch, index) alone
    preprocessor.pop("batch_augments", None)
    neck = model.get("neck") or {}
    necks = {part.get("type") for part in (neck if isinstance(neck, list) else [neck])}
    if necks & DOUBLING:
        preprocessor.setdefault("pad_size_divisor", DOUBLED_TO)
    if "YOLOXPAFPN" in necks and not preprocessor.get("mean"):
        preprocessor.setdefault("pad_value", GREY)


def _thaw(backbone: dict[str, Any]) -> None:
    """Let, in place, all layers and statistics learn: frozen ones make sense on learned weights alone."""
    stands = {**_defaults(backbone.get("type")), **backbone}
    backbone.update({key: value for key, value in THAWED.items() if stands.get(key, value) != value})
    if isinstance(norm := backbone.get("norm_cfg"), dict):
        backbone["norm_cfg"] = norm | {"requires_grad": True}


def _defaults(name: Any) -> dict[str, Any]:
    """What a backbone takes for an argument that its config does not name, as far as mmdet knows it."""
    found: dict[str, Any] = {}
    for part in getattr(MODELS.get(name) if isinstance(name, str) else name, "__mro__", ()):
        taken = inspect.signature(part.__init__).parameters.values()
        found = {one.name: one.default for one in taken} | found
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in taken):
            break
    return found


def _loads(init: Any) -> bool:
    """Whether an initialisation reads a file; some of mmdet's backbones need no type for that."""
    return isinstance(init, dict) and (init.get("type") == "Pretrained" or "checkpoint" in init)


def _drop_pretrained(part: Any) -> None:
    """Take out, in place, whatever would load weights that no plan and no id knows of."""
    if isinstance(part, list | tuple):
        for entry in part:
            _drop_pretrained(entry)
    if not isinstance(part, dict):
        return
    own = part.get("init_cfg")
    if _loads(own):
        part["init_cfg"] = None
    elif isinstance(own, list):
        part["init_cfg"] = [one for one in own if not _loads(one)]
    if part.get("pretrained"):
        part["pretrained"] = None
    for entry in part.values():
        _drop_pretrained(entry)
