"""A recipe in a line: its pair, dataset, methods and seeds."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from kdlab import catalog
from kdlab.errors import KdlabError
from kdlab.jobs.spec import ModelSettings
from kdlab.recipe import loader
from kdlab.recipe.settings import Recipe

_SHORT = (("resnext", "x"), ("resnet", "r"), ("mobilenet_v", "mbv"))


def overview(name_or_path: str) -> dict[str, Any]:
    """ "pair", "dataset", "methods" in the order of arms, and "seeds"; None where it does not load."""
    try:
        recipe = loader.load(name_or_path, [])
    except KdlabError:
        return {"pair": None, "dataset": None, "methods": None, "seeds": None}
    used = (method.method for arm in recipe.arms.values() for method in arm.values())
    return {
        "pair": pair(recipe),
        "dataset": recipe.dataset.name,
        "methods": [*dict.fromkeys(used)],
        "seeds": [*recipe.seeds],
    }


def pair(recipe: Recipe) -> str:
    """ "gfl r101 -> r50"; "gfl r18/16 -> r18/8" where widths are not usual; "gfl r18" of one model.

    Of a chain it has all: "gfl r152 -> r101 -> r50".
    """
    student = _model(recipe.student)
    if recipe.teacher is None:
        return " ".join(student)
    teacher = _model(recipe.teacher)
    left = student[1:] if student[0] == teacher[0] else student
    above = pair(recipe.stage) if recipe.stage else " ".join(teacher)
    return f"{above} -> {' '.join(left)}"


def _model(model: ModelSettings) -> list[str]:
    """The detector and its backbone as short as people say them; an mmdet config by its name."""
    if model.backbone is None:
        return [PurePath(model.detector).stem]
    known = catalog.backbones().get(model.backbone)
    usual = known is None or model.width in (None, known.width)
    backbone = model.backbone
    for long, short in _SHORT:
        backbone = backbone.replace(long, short)
    return [model.detector, backbone if usual else f"{backbone}/{model.width}"]
