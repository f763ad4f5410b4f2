"""Pairs of models and the methods that cannot serve them, told before anything runs with what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdlab import catalog
from kdlab.errors import Fault
from kdlab.jobs.spec import MethodSettings
from kdlab.recipe.settings import Recipe

FACTS = {"classes": "num_classes", "strides": "strides", "anchors": "anchors", "priors": "priors",
         "channels": "channels", "head": "head", "bins": "bins"}  # fmt: skip
STUDENT_ONLY = ("assignment", "anchor_boxes")


def faults(recipe: Recipe, student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> list[Fault]:
    """All that keeps a method of the recipe from serving the pair, each once."""
    known, teacher = catalog.methods(), teacher or {}
    found: dict[str, tuple[str, str]] = {}
    for arm, methods in recipe.arms.items():
        for name, settings in methods.items():
            for reason, got in _reasons(known[settings.method], settings, student, teacher):
                what = f"{settings.method} cannot serve this pair: {reason}"
                found.setdefault(what, (f"{recipe.path}  arms.{arm}.{name}", got))
    if not found:
        return []
    plain = {key: MethodSettings(method=key, weight=0.0) for key in known}
    passing = [key for key in known if not any(_reasons(known[key], plain[key], student, teacher))]
    fix = "use a method that can, or a pair that agrees; see: kdlab ls methods"
    return [Fault(what, where, got, ", ".join(passing), fix) for what, (where, got) in found.items()]


def inheritance(
    recipe: Recipe, student: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> Iterator[Fault]:
    """That a student would inherit nothing: no layer of neck and head has weights of the same shape."""
    if not recipe.inherits or teacher is None:
        return
    mine, theirs = student["neck_and_head"], teacher["neck_and_head"]
    # biases and scales agree between any two heads of a family
    if not any(theirs.get(name) == shape and len(shape) > 1 for name, shape in mine.items()):
        yield Fault(
            "inherit: true has nothing to take over",
            f"{recipe.path}  arms.{recipe.inherits[0]}",
            _difference("head", student, teacher),
            fix="choose a pair of one detector with equal neck_channels, or remove inherit",
        )


def padding(recipe: Recipe, student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> Iterator[Fault]:
    """That images, padded as the student pads them, have sides that a model's neck cannot halve."""
    divisor = student["pad_divisor"]
    for role, facts in (("student", student), ("teacher", teacher)):
        if facts and divisor % (least := facts["least_divisor"]):
            yield Fault(
                f"the {role}'s neck takes images whose sides are multiples of {least}",
                f"{recipe.path}  student",
                f"it pads them to multiples of {divisor}",
                fix=f"student.overrides: {{model.data_preprocessor.pad_size_divisor: {least}}}",
            )


def _reasons(
    info: catalog.MethodInfo,
    settings: MethodSettings,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
) -> Iterator[tuple[str, str]]:
    """(reason, what was found) for everything that does not fit; what is missing hides what differs."""
    needs, equal = info.needs_for(settings.options)
    if settings.maps == "memory" and "feats" in needs:
        needs = (*needs, "memory")
    given = {"student": student["provides"], "teacher": [*teacher["provides"], *STUDENT_ONLY]}
    if not needs:
        yield "with all of its parts turned off it compares nothing", str(settings.options)
    for role, facts in (("student", student), ("teacher", teacher)):
        if missing := [name for name in needs if name not in given[role]]:
            yield f"it needs {' and '.join(missing)}", f"the {role}, {facts['detector']}, has none"
            return
    if info.prepares and settings.maps != "neck":
        yield "what it learns beforehand is learned on neck maps", f"maps: {settings.maps}"
    if info.prepares and not teacher["trains"]:
        yield "it learns from the teacher's own loss first", f"that of {teacher['detector']} needs masks"
    for name in equal:
        mine, theirs = student[FACTS[name]], teacher[FACTS[name]]
        if mine != theirs:
            yield f"it needs equal {name}", _difference(name, student, teacher)
    yield from _level_reasons(settings, student, teacher, reads_neck="feats" in needs)


def _difference(name: str, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """The differing fact of both sides; what is a hash is told by what it was made from."""
    made_from = {
        "priors": ("detector", "strides", "anchors"),
        "head": ("detector", "channels", "tower_depth", "num_classes"),
    }
    shown = made_from.get(name, (FACTS[name],))
    if name == "priors" and "queries" in (*student["provides"], *teacher["provides"]):
        # what a DETR's queries begin as is no hash
        shown = ("detector", "priors")

    def told(facts: Mapping[str, Any]) -> str:
        return " ".join(f"{key} {facts[key]}" for key in shown)

    return f"student {told(student)}; teacher {told(teacher)}"


def _level_reasons(
    settings: MethodSettings, student: Mapping[str, Any], teacher: Mapping[str, Any], *, reads_neck: bool
) -> Iterator[tuple[str, str]]:
    """The same for the levels of the neck."""
    if not reads_neck:
        if settings.levels or settings.match != "stride" or settings.maps != "neck":
            keys = "levels, match or maps"
            yield "it reads no neck maps, so levels, match and maps have no effect", keys
        return
    wanted = settings.levels or student["strides"]
    missing = [stride for stride in wanted if stride not in student["strides"]]
    if missing:
        yield "levels names strides that the student lacks", f"{missing} of {list(student['strides'])}"
    elif settings.match == "stride" and not set(wanted) & set(teacher["strides"]):
        yield "no level of the two has the same stride", _difference("strides", student, teacher)
