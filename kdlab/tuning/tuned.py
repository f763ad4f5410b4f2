"""Recipe that measures what a search has found, next to the baseline and what papers say."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdlab import catalog
from kdlab.jobs.spec import MethodSettings
from kdlab.jobs.study import STUDENT, WEIGHT, Dimension
from kdlab.recipe.ablation import BASELINE
from kdlab.recipe.document import Document
from kdlab.recipe.settings import Recipe
from kdlab.recipe.yaml_writer import dump
from kdlab.tuning.space import methods_with, published

FOLDER = "tune"


@dataclass(frozen=True)
class Tuned:
    """A recipe that a search has written.

    Args:
        name: under which it is found: "tune/digits/gfl-3fa2c1".
        text: its YAML.
        arms: that it trains.
        difference: lines of YAML as the recipe has them, after a minus, and as they were found, after a plus.
    """

    name: str
    text: str
    arms: tuple[str, ...]
    difference: tuple[str, ...]


def tuned(
    document: Document,
    recipe: Recipe,
    arm: str,
    space: Sequence[Dimension],
    params: Mapping[str, Any],
    name: str,
    command: str,
) -> Tuned:
    """The recipe that compares what was found with what papers say, and with what the recipe said before.

    Of arms that are the same it holds the first only: what was found can be what papers say.

    Args:
        document: the recipe that was tuned, with its overrides; `recipe` is the same, resolved.
        arm: whose methods were tuned, over the dimensions of `space`.
        params: what was found, by dimension; those of the student change it for all arms.
        name: of the study.
        command: what a person typed.
    """
    raw, before = document.data["arms"][arm], recipe.arms[arm]
    of_student = {key: value for key, value in params.items() if key.startswith(f"{STUDENT}.")}
    own = {key: value for key, value in params.items() if key not in of_student}
    arms, known = {BASELINE: {}, arm: raw}, [dict(before)]
    for called, chosen in (published(recipe, arm, space), ("tuned", own)):
        methods = methods_with(recipe, arm, chosen)
        if methods not in known:
            known.append(methods)
            arms[f"{arm}[{called}]"] = _arm(raw, before, methods)
    student = {key.removeprefix(f"{STUDENT}."): value for key, value in of_student.items()}
    data = {key: value for key, value in document.data.items() if key != "tune"}
    data |= {"arms": arms, "student": {**data["student"], **student}}
    head = [
        f"{catalog.first_comment(document.text) or recipe.name}; tuned",
        command,
        f"kdlab run {shlex.quote(f'{FOLDER}/{name}')}",
        f"searched: {'; '.join(f'{one.name} {one.range}' for one in space)}",
    ]
    text = "".join(f"# {line}\n" for line in head) + dump(data, lines=("methods", "arms"))
    old = {"student": document.data["student"], "arms": {arm: raw}}
    new = {"student": data["student"], "arms": {arm: _arm(raw, before, methods_with(recipe, arm, own))}}
    was, now = (dump(one, lines=("arms",)).splitlines() for one in (old, new))
    differing = difflib.unified_diff(was, now, n=0, lineterm="")
    difference = tuple(line for line in differing if not line.startswith(("---", "+++", "@@")))
    return Tuned(f"{FOLDER}/{name}", text, tuple(arms), difference)


def _arm(
    raw: Mapping[str, Any], before: Mapping[str, MethodSettings], after: Mapping[str, MethodSettings]
) -> dict[str, Any]:
    """An arm as a recipe writes it with other values; what these make idle is put back to its default."""
    found = dict(raw)
    for instance, method in after.items():
        old = before[instance]
        options = {key: value for key, value in method.options.items() if value != old.options[key]}
        # other options can have another weight of their own
        differs = method.weight != old.weight or options
        weight = {WEIGHT: method.weight} if differs else {}
        found[instance] = {**raw[instance], **weight, **options}
    return found
