"""Any recipe is planned or refused with a message: no crash, no traceback, no wait.

`KDLAB_FUZZ_EXAMPLES` is how many recipes are made of each kind.
"""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlab.cli import app
from kdlab.planning import facts as facts_of
from tests.planning.test_build import FACTS

EXAMPLES = int(os.environ.get("KDLAB_FUZZ_EXAMPLES", "20"))
LIMIT_S = 5.0
GOOD: dict[str, Any] = {
    "dataset": {"name": "digits", "image_px": 64, "train_images": 100, "val_images": 20, "flip": 0.5},
    "teacher": {
        "detector": "gfl", "backbone": "resnet18", "width": 24, "neck_channels": 32, "head_convs": 1,
        "strides": [8, 16, 32], "schedule": {"epochs": 2, "eval_every": 1, "threads": 1},
        "overrides": {"model.bbox_head.reg_max": 16},
    },
    "student": {
        "detector": "gfl", "backbone": "resnet18", "width": 8, "neck_channels": 32, "head_convs": 1,
        "strides": [8, 16, 32], "init": "random",
    },
    "schedule": {
        "preset": "custom", "epochs": 2, "batch_size": 8, "lr": 3e-3, "optimizer": "adamw",
        "decay": "cosine", "warmup_iters": 50, "clip_grad": 35, "precision": "fp32",
    },
    "methods": {"rm": {"weight": 2, "score": "logit"}, "cwd@neck": {"weight": 10, "temperature": 2}},
    "arms": {"baseline": {}, "rm": {"rm": {}}, "both": {"rm": {}, "cwd@neck": {}, "inherit": True}},
    "seeds": [0, 1],
    "resources": {"workers": 1, "checkpoint_minutes": 5, "share": 1, "trackers": []},
    "tune": {"trials": 3, "over": ["rm.weight"], "space": {"rm.weight": [1, 10]}, "pruner": "none"},
}  # fmt: skip

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 1e-300, 1e300, 2**31, 2**63, 10**400, True])
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "1", "nan", "null", "../x", "/dev/zero", "a.b", "@", "rm", "http://[", "\x1b[2J"]
    ),
)
NASTY = [b"[" * 3000, b"- " * 500, b"&a *a", b"!!python/object:x ", b"? "]
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.dates(), st.binary(max_size=4))
KEYS = st.one_of(TEXTS, st.integers(-2, 2), st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All keys and indices of nested data, as paths."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """Good data with one to four faults, or none, in it."""
    data = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 4))):
        *above, last = draw(st.sampled_from(list(places(data))))
        node = data
        for key in above:
            node = node[key]
        match draw(st.sampled_from(["value", "value", "scalar", "gone", "extra", "renamed"])):
            case "value":
                node[last] = draw(VALUES)
            case "scalar":
                node[last] = draw(SCALARS)
            case "gone":
                del node[last]
            case "extra" if isinstance(node, dict):
                node[draw(KEYS)] = draw(VALUES)
            case "renamed" if isinstance(node, dict):
                node[f"{last}s"] = node.pop(last)
        if not data:
            break
    return data


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The text of the good recipe, cut, or with bytes put in or changed."""
    text = yaml.safe_dump(GOOD, sort_keys=False).encode()
    at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 8))
    added = draw(st.one_of(st.binary(max_size=6), st.sampled_from(NASTY)))
    return text[:at] + added + (text[at + length :] if draw(st.booleans()) else b"")


def check(folder: Path, content: bytes) -> int:
    """Plan the recipe; its exit code, once what was said has been looked at."""
    (folder / "r.yaml").write_bytes(content)
    out, err, began = StringIO(), StringIO(), time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        code = app.main(["plan", str(folder / "r.yaml")])
    told = err.getvalue()
    assert code in (0, 2, 3), f"{content!r}\n{told}"
    assert "Traceback" not in out.getvalue() + told
    assert "\x1b" not in out.getvalue() + told
    assert time.process_time() - began < LIMIT_S, content
    if code == 2:
        assert re.search(r"^(error: | +)r\.yaml(:\d+)? ", told, re.MULTILINE), f"{content!r}\n{told}"
    return code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    student, teacher = ({**facts, "neck_and_head": {"w": [8, 8]}} for facts in (FACTS.student, FACTS.teacher))
    facts = replace(FACTS, student=student, teacher=teacher)
    monkeypatch.setattr(facts_of, "gather", lambda *_: facts)
    monkeypatch.setenv("KDLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


many = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_the_good_recipe_is_planned(folder: Path) -> None:
    assert check(folder, yaml.safe_dump(GOOD).encode()) == 0


@many
@given(data=changed(GOOD))
def test_changed_recipe_is_planned_or_refused(folder: Path, data: dict[str, Any]) -> None:
    check(folder, yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))


@many
@given(content=damaged())
def test_damaged_text_is_planned_or_refused(folder: Path, content: bytes) -> None:
    check(folder, content)
