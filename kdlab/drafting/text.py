"""The text of a recipe, commented."""

from __future__ import annotations

import json
import math
import re
import shlex
from typing import Any

import yaml

from kdlab.drafting.choices import ARMS, SEEDS, Choice
from kdlab.errors import visible


def recipe(file: str, about: str, dataset: dict[str, Any], choice: Choice, init: str, split: str) -> str:
    """The YAML of a recipe.

    Args:
        file: as the command names it.
        about: what the data are, on one line.
        dataset: its section, without the scale.
        choice: sizes and schedule.
        init: of the backbones.
        split: how the images were divided.
    """
    why = choice.why
    shared = {"strides": list(choice.strides), "init": init}
    teacher, student = (
        _line({"detector": "gfl", **model, **shared})[1:-1] for model in (choice.teacher, choice.student)
    )
    own = choice.teacher_epochs
    return "\n".join(
        [
            f"# {_comment(about)}",
            f"# {_comment(shlex.join(['kdlab', 'run', file]))}      {_cost(choice)}".rstrip(),
            f"# split: {split}",
            "dataset:",
            *(f"  {key}: {_plain(value)}" for key, value in dataset.items()),
            f"  scale: {list(choice.scale)}   # {why['scale']}",
            f"# strides: {why['strides']}",
            f"teacher:   # {why['pair']}",
            f"  {{{teacher},",
            f"   schedule: {{epochs: {own}, eval_every: {own}}}}}",
            f"student:\n  {{{student}}}",
            "schedule:",
            f"  preset: custom\n  epochs: {choice.epochs}   # {why['epochs']}",
            f"  batch_size: {choice.batch}   # {why['batch_size']}",
            "  lr: 1e-3\n  optimizer: adamw\n  decay: cosine\n  warmup_iters: 50\n  clip_grad: 35",
            f"  eval_every: {max(1, choice.epochs // 4)}",
            "arms:" + (f"   # {why['arms']}" if "arms" in why else ""),
            *(f"  {arm}: {ARMS[arm]}" for arm in choice.arms),
            f"seeds: {list(range(SEEDS))}",
            "",
        ]
    )


def _cost(choice: Choice) -> str:
    if choice.minutes is None:
        return ""
    minutes = math.ceil(choice.minutes)
    return f"about {minutes} minute{'s' * (minutes != 1)} on this machine"


def _line(section: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_plain(value)}" for key, value in section.items()) + "}"


def _plain(value: Any) -> str:
    """A value as YAML has it on one line; text in quotes only where it needs them."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"\w[\w./-]*", value) and _is_text(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_text(word: str) -> bool:
    """Whether every reader of YAML takes a word for text, not for a number, a date, a truth or nothing."""
    try:
        float(word)
    except ValueError:
        return bool(yaml.safe_load(word) == word)
    return False


def _comment(text: str) -> str:
    """A text that may hold the name of any file, on one line of a comment."""
    return visible(" ".join(text.splitlines()))
