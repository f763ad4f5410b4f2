"""Files that are none: a folder, a named pipe, a link to itself in a file's place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kdlab.errors import MachineError
from kdlab.jobs import store
from kdlab.jobs.files import read_if_whole
from kdlab.jobs.paths import Runs
from kdlab.jobs.result import Evaluation, JobResult
from tests.stubs.stub_job import make_job, make_plan, make_result, prepared

STRANGE: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "pipe": lambda path: os.mkfifo(path),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_result_and_plan_are_told_as_damaged_at_once(tmp_path: Path, kind: str) -> None:
    runs, job = Runs(tmp_path), make_job()
    paths = prepared(runs, job)
    STRANGE[kind](paths.result)
    with pytest.raises(MachineError, match="a result is damaged"):
        JobResult.read(paths)
    runs.plans.mkdir()
    STRANGE[kind](runs.plans / "7f3a.json")
    with pytest.raises(MachineError, match="a plan's file is damaged"):
        list(store.plans(runs))
    assert read_if_whole(paths.result, Evaluation) is None


@pytest.mark.parametrize("ap", ['"12.5"', "99999", "-5", "1e400", "null"])
def test_result_with_an_ap_that_cannot_be_is_damaged(tmp_path: Path, ap: str) -> None:
    paths = prepared(Runs(tmp_path), make_job())
    make_result(make_job()).write(paths)
    paths.result.write_text(paths.result.read_text().replace('"AP": 12.5', f'"AP": {ap}'))
    with pytest.raises(MachineError, match="a result is damaged"):
        JobResult.read(paths)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"jobs": [', '"jobs": {}, "other": ['), ('"name": "stub"', '"name": "stub", "arms": ["x"]')],
)
def test_plan_of_another_form_is_damaged(tmp_path: Path, old: str, new: str) -> None:
    path = make_plan(make_job()).save(Runs(tmp_path))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MachineError, match="a plan's file is damaged"):
        list(store.plans(Runs(tmp_path)))
