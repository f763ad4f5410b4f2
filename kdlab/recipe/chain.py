"""Chains of teachers: a teacher that is one of the students of another recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard

from kdlab.errors import UsageError, fixes, suggestion
from kdlab.jobs.spec import ModelSettings
from kdlab.recipe.document import Document, shown
from kdlab.recipe.settings import Recipe

NAMES = ("recipe", "arm")
BESIDES = ("seed", "precision", "compile", "expect_ap")
"""Keys next to the names, of which none says how the teacher is trained."""


def is_chained(teacher: Any) -> TypeGuard[dict[str, Any]]:
    """Whether `teacher:` names an arm of another recipe."""
    return isinstance(teacher, dict) and any(teacher.get(key) is not None for key in NAMES)


def stage_of(teacher: dict[str, Any], document: Document, load: Callable[[str], Recipe]) -> Recipe | None:
    """The recipe that `teacher:` names, with nothing in it but what trains the teacher; None after a fault.

    Args:
        teacher: as it was written.
        document: gets the faults.
        load: the recipe of a name or path; raises `UsageError`.
    """
    strays = [key for key in teacher if key not in (*NAMES, *BESIDES) and teacher[key] is not None]
    if strays:
        what = "has no effect next to recipe and arm, which say how the teacher is trained"
        fix = "remove what is not of these, or replace all: --set 'teacher={recipe: NAME, arm: NAME}'"
        got, known = ", ".join(strays), (*NAMES, *BESIDES)
        document.fault(("teacher", strays[0]), what, got=got, known=known, fix=fix)
    words = [teacher.get(key) for key in NAMES]
    for key, word in zip(NAMES, words, strict=True):
        if word is None:
            fix = "name both: teacher: {recipe: NAME, arm: NAME}"
            document.fault(("teacher", key), "is missing", fix=fix)
        elif not isinstance(word, str):
            document.fault(("teacher", key), "must be text", got=shown(word))
    name, arm = words
    if not (isinstance(name, str) and isinstance(arm, str)):
        return None
    try:
        whole = load(name)
    except UsageError as error:
        here = document.places["teacher", "recipe"]
        for fault in error.faults:
            own = replace(fault, what=f"teacher.recipe: {fault.what}", where=here)
            document.faults.append(fault if fault.where else own)
        return None
    if arm not in whole.arms:
        fix = fixes(suggestion(arm, list(whole.arms)), f"see: kdlab show {name}")
        document.fault(("teacher", "arm"), f"is no arm of {whole.name}", got=arm, known=whole.arms, fix=fix)
        return None
    seed = teacher.get("seed")
    learns = bool(whole.arms[arm]) or arm in whole.inherits
    changes = {
        "teacher": whole.teacher if learns else None,
        "stage": whole.stage if learns else None,
        "arms": {arm: whole.arms[arm]},
        "inherits": tuple(name for name in whole.inherits if name == arm),
        "seeds": (whole.seeds[0] if seed is None else seed,),
    }
    return whole.model_copy(update=changes)


def completed(teacher: dict[str, Any], stage: Recipe, document: Document) -> dict[str, Any]:
    """`teacher:` with the model and the schedule of the stage's student, and in `document` where they stand.

    First weights are left out: this recipe has no use for them.
    """
    model = {key: getattr(stage.student, key) for key in ModelSettings.model_fields if key != "init"}
    for key in model:
        if place := stage.places.get(f"student.{key}"):
            document.places["teacher", key] = place
    own = {key: teacher[key] for key in (*NAMES, *BESIDES) if teacher.get(key) is not None}
    return {**model, "schedule": stage.schedule, **own, "seed": stage.seeds[0]}
