"""Ids last: a default that moves needs a version, and a key that does nothing by default changes no id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdlab import catalog
from kdlab.errors import UsageError
from kdlab.jobs.augment import STEPS
from kdlab.jobs.spec import VERSIONS, ImageSettings, MethodSettings, ModelSettings, Schedule, Share
from tests.planning.test_build import build, finished, ids
from tests.stubs.jobs import changed as changed_spec

ROOT = Path(__file__).parents[2]

FILE = Path(__file__).parent / "defaults.json"
WRITE = "KDLAB_WRITE_GOLDEN"
SECTIONS: dict[str, Any] = {
    **{"images": ImageSettings, "model": ModelSettings, "schedule": Schedule, "method": MethodSettings},
    "gradient_share": Share,
    **{f"augment.{name}": step for name, step in STEPS.items()},
}


def defaults() -> dict[str, dict[str, Any]]:
    """By component its version and the defaults that ids leave out."""
    found: dict[str, dict[str, Any]] = {"loop": {"version": VERSIONS["loop"]}}
    for name, section in SECTIONS.items():
        for key, field in section.model_fields.items():
            if not field.is_required():
                found["loop"][f"{name}.{key}"] = field.default
    for key, info in catalog.methods().items():
        options = {name: option.default for name, option in info.options.items()}
        found[f"methods/{key}"] = {"version": info.version, **options}
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(found))
    return plain


def changed(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Keys whose default is another one under the same version; new keys are none."""
    if now["version"] != before["version"]:
        return []
    return [key for key, value in before.items() if now.get(key, value) != value]


def test_no_default_moves_without_a_new_version() -> None:
    before = json.loads(FILE.read_text())
    moved = {name: changed(now, before[name]) for name, now in defaults().items() if name in before}
    assert {name: keys for name, keys in moved.items() if keys} == {}, "raise its VERSION, then write"
    if os.environ.get(WRITE):
        FILE.write_text(json.dumps(defaults(), indent=1) + "\n")
    assert json.loads(FILE.read_text()) == defaults(), f"write {FILE.name} anew with {WRITE}=1"


def test_a_moved_default_is_found_unless_the_version_moved_too() -> None:
    before = {"version": 1, "rank": "both"}
    assert changed({"version": 1, "rank": "cls"}, before) == ["rank"]
    assert changed({"version": 2, "rank": "cls"}, before) == []
    assert changed({"version": 1, "rank": "both", "new": 1}, before) == []


# --- ids under a changed source ---

IDS = """
import json
from tests.planning.test_build import build, ids
print(json.dumps(ids(build("arms={baseline: {}, rm: {rm: {}}, pfi: {pfi: {}}}"))))
"""


@pytest.fixture(scope="module")
def ids_after(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Ids of the same recipe after edits of kdlab: (file, a line of it, the line to put in front)."""
    root: Path = tmp_path_factory.mktemp("sources")
    for folder in ("recipes", "tests"):
        (root / folder).symlink_to(ROOT / folder)

    @cache
    def ids_after(*edits: tuple[str, str, str]) -> dict[str, str]:
        shutil.rmtree(root / "kdlab", ignore_errors=True)
        shutil.copytree(ROOT / "kdlab", root / "kdlab", ignore=shutil.ignore_patterns("__pycache__"))
        for file, before, line in edits:
            path = root / "kdlab" / file
            text = path.read_text()
            assert text.count(before) == 1, before
            path.write_text(text.replace(before, f"{line}\n{before}"))
        environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", IDS]
        done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    return ids_after


KNOB = "    knob: float | None = None"
NO_OPS = {
    "the schedule": ("jobs/spec.py", "    keep_best: bool = False\n", KNOB),
    "a model": ("jobs/spec.py", "    overrides: dict[str, Any] = {}\n", KNOB),
    "the dataset": ("jobs/spec.py", '    broken_images: Literal["stop", "skip"] = "stop"\n', KNOB),
    "all methods": ("jobs/spec.py", '    match: Literal["stride", "index"] = "stride"\n', KNOB),
    "a method": ("methods/rm.py", "        quality: bool = False,\n", "        knob: float | None = None,"),
}


def test_keys_that_do_nothing_by_default_change_no_id(ids_after: Callable[..., dict[str, str]]) -> None:
    assert ids_after(*NO_OPS.values()) == ids_after()


def test_a_new_version_changes_the_ids_of_what_uses_it_and_no_other(
    ids_after: Callable[..., dict[str, str]],
) -> None:
    def renamed(*files: str, before: str = "from __future__ import annotations\n") -> set[str]:
        now = ids_after(*((file, before, "VERSION = 2") for file in files))
        return {label for label, job_id in ids_after().items() if now[label] != job_id}

    students = {"baseline seed 0", "rm seed 0", "pfi seed 0"}
    assert renamed("methods/rm.py") == {"rm seed 0"}
    assert renamed("detectors/gfl.py") == {"teacher", *students}
    assert renamed("backbones/resnet.py") == {"teacher", *students}
    assert renamed("datasets/digits.py", before="def prepare(\n") == {"teacher", *students}
    assert renamed("methods/cwd.py", "detectors/fcos.py", "backbones/swin.py") == set()


@pytest.mark.parametrize("name", VERSIONS)
def test_a_new_version_of_what_all_jobs_share_changes_all_ids(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = ids(build())
    monkeypatch.setitem(VERSIONS, name, VERSIONS[name] + 1)
    assert not set(before.values()) & set(ids(build()).values())


def test_a_new_key_of_the_teacher_reaches_the_students_that_learn_from_it() -> None:
    students = {
        planned.job.arm: planned.job.spec
        for planned in build("teacher.overrides={model.bbox_head.reg_max: 8}").jobs
    }
    assert students["rm"].teacher.overrides == students["teacher"].model.overrides
    assert students["rm"].teacher.overrides
    assert students["baseline"].teacher is None


def test_a_finished_job_with_other_settings_under_the_same_id_is_refused() -> None:
    job = build().jobs[1].job
    other = replace(job, spec=changed_spec(job, seed=5))
    with pytest.raises(UsageError, match="was made with other settings than its id says: seed"):
        build(past={job.id: finished(other)})
