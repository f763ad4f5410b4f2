"""What a search has found -> the recipe that measures it, beside the baseline and what papers say."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdlab import catalog
from kdlab.jobs.spec import MethodSettings
from kdlab.recipe.ablation import BASELINE
from kdlab.recipe.document import Document
from kdlab.recipe.settings import Recipe
from kdlab.recipe.yaml_writer import dump
from kdlab.tuning.space import WEIGHT, methods_with

FOLDER = "tune"


@dataclass(frozen=True)
class Tuned:
    """A recipe that a search has written.

    Args:
        name: under which it is found: "tune/digits/gfl-3fa2c1".
        text: its YAML.
        arms: that it trains.
        difference: of the arm, the line as the recipe has it and the line that was found.
    """

    name: str
    text: str
    arms: tuple[str, ...]
    difference: tuple[str, ...]


def tuned(
    document: Document,
    recipe: Recipe,
    arm: str,
    values: Mapping[str, Any],
    published: Mapping[str, Any],
    name: str,
    command: str,
    word: str = "published",
) -> Tuned:
    """The recipe that compares what was found with what papers say, and with what the recipe said before.

    Of arms that are the same it holds the first only: what was found can be what papers say.

    Args:
        document: the recipe that was tuned, with its overrides.
        recipe: the same, resolved.
        arm: whose methods were tuned.
        values: what was found, by dimension; those of the student change it for all arms.
        published: what papers say of the same.
        name: of the study.
        command: what a person typed.
        word: what is published is called in the name of its arm.
    """
    raw = document.data["arms"][arm]
    own = {key: value for key, value in values.items() if not key.startswith("student.")}
    found = _arm(raw, recipe.arms[arm], own)
    arms: dict[str, Any] = {BASELINE: {}, arm: raw}
    known = [dict(recipe.arms[arm])]
    for called, chosen in ((word, published), ("tuned", own)):
        if (methods := methods_with(recipe.arms[arm], chosen)) not in known:
            known.append(methods)
            arms[f"{arm}[{called}]"] = _arm(raw, recipe.arms[arm], chosen)
    student = {key.removeprefix("student."): value for key, value in values.items() if key not in own}
    data = {key: value for key, value in document.data.items() if key != "tune"}
    data |= {"arms": arms, "student": {**data["student"], **student}}
    full = f"{FOLDER}/{name}"
    head = [
        f"{catalog.first_comment(document.text) or recipe.name}; tuned",
        f"{command}",
        f"kdlab run {full}",
    ]
    text = "".join(f"# {line}\n" for line in head) + dump(data, lines=("methods", "arms"))
    return Tuned(
        full, text, tuple(arms), _difference(arm, raw, found, document.data["student"], data["student"])
    )


def _arm(
    raw: Mapping[str, Any], methods: Mapping[str, MethodSettings], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The arm as a recipe writes it with other values; what these make idle is put back to its default."""
    changed = methods_with(methods, values)
    found = dict(raw)
    for instance, method in changed.items():
        options = {
            key: value for key, value in method.options.items() if value != methods[instance].options[key]
        }
        # other options can have another weight of their own
        differs = method.weight != methods[instance].weight or options
        weight = {WEIGHT: method.weight} if differs else {}
        found[instance] = {**raw[instance], **weight, **options}
    return found


def _difference(arm: str, raw: Any, found: Any, student: Any, changed: Any) -> tuple[str, ...]:
    """The lines of YAML that differ, those of the recipe marked by a minus."""

    def lines(of_student: Any, of_arm: Any) -> list[str]:
        return dump({"student": of_student, "arms": {arm: of_arm}}, lines=("arms",)).splitlines()

    differing = difflib.unified_diff(lines(student, raw), lines(changed, found), n=0, lineterm="")
    return tuple(line for line in differing if not line.startswith(("---", "+++", "@@")))
