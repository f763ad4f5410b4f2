"""Planted secrets, and a grep over everything that verbs print, write and start."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import optuna
import pytest
import typer

from kdlab import session
from kdlab.cli import app
from kdlab.cli.verbs import ui
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan
from kdlab.planning import facts as facts_of
from kdlab.reporting import study_plots
from kdlab.running import scheduler
from kdlab.running.executors import base
from kdlab.tracking.base import Lacking, flat
from kdlab.tracking.mlflow import Mlflow
from kdlab.tuning import search, study
from tests.planning.test_build import FACTS
from tests.stubs.simulated import Simulated
from tests.tuning.test_tuner import LEARNED

SECRET = "S3CRET"
NAME = "digits/gfl"
STORAGE = f"postgresql://me:{SECRET}/{SECRET}@{SECRET}@db.lab/kd?password={SECRET}"
CHECKPOINT = f"https://me:{SECRET}@store.lab/x.pth?token={SECRET}"
SERVER = f"http://me:{SECRET}@tracker.lab:5000"
PLANTED = " ".join(
    f"--set {shlex.quote(one)}"
    for one in (
        f"tune.storage={STORAGE}",
        f"teacher.checkpoint={CHECKPOINT}",
        "teacher.schedule=null",
        "resources.trackers=[csv]",
    )
)


class Desk:
    """A folder in which verbs run on simulated GPUs, and everything that they print there or start."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.runs, self._capfd = folder, Runs(folder / "runs"), capfd
        self.printed: list[str] = []
        self.started: list[str] = []

    def __call__(self, line: str) -> int:
        code = app.main(shlex.split(line))
        self.printed += self._capfd.readouterr()
        return code

    def leaks(self) -> Iterator[str]:
        """Where the secret is in the open."""
        yield from (f"printed: {text}" for text in self.printed if SECRET in text)
        yield from (f"started: {text}" for text in self.started if SECRET in text)
        for path in filter(Path.is_file, self.folder.rglob("*")):
            private = stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
            if SECRET.encode() in path.read_bytes() and not (private and path.suffix == ".yaml"):
                yield str(path)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Desk:
    made = Desk(tmp_path, capfd)
    executor = Simulated(made.runs, 2, lambda job, epoch: 20.0 + epoch)
    monkeypatch.chdir(tmp_path)
    for name in ("KDLAB_RUNS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setattr(facts_of, "gather", lambda *_: replace(FACTS, device="cuda", gpu_gb=80.0))
    monkeypatch.setattr(search, "tuning_split", lambda *_: LEARNED)
    monkeypatch.setattr(search, "images_of", lambda *_: (800, 200))
    monkeypatch.setattr(base, "load", lambda *_: executor)
    monkeypatch.setattr(scheduler, "LOOK_S", 0.0)
    monkeypatch.setitem(scheduler.run.__kwdefaults__, "poll_s", 0.0)
    monkeypatch.setattr(study_plots, "write_plots", lambda *_: [])
    monkeypatch.setattr(os, "fsync", lambda file: None)
    kept = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(study, "_storage", lambda url: kept)

    def become(_path: str, argv: list[str]) -> NoReturn:
        made.started.append(shlex.join(argv))
        raise typer.Exit

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(ui, "find_spec", lambda name: name)
    return made


def test_a_run_and_its_tables_hold_no_secret(desk: Desk) -> None:
    assert desk(f"plan {NAME} {PLANTED}") == desk(f"plan {NAME} --json {PLANTED}") == 0
    assert desk(f"run {NAME} -y {PLANTED}") == 0
    for form in ("terminal", "md", "latex", "csv", "html", "json", "explain"):
        assert desk(f"report --write --format {form}") == 0
    desk("status --json")
    desk("ls runs")
    assert [*desk.leaks()] == []
    (path,) = desk.runs.plans.glob("*.json")
    assert "store.lab" in path.read_text(), "what is masked is still named"


def test_a_search_and_the_recipe_that_it_writes_hold_no_secret_in_the_open(desk: Desk) -> None:
    assert desk(f"tune {NAME} --trials 4 --dry-run --json {PLANTED}") == 0
    assert desk(f"tune {NAME} --trials 4 -y {PLANTED}") == 0
    assert desk(f"ablate {NAME} --loss rm --dry-run {PLANTED}") == 0
    assert desk(f"ablate {NAME} --loss rm -y {PLANTED}") == 0
    desk("status")
    assert [*desk.leaks()] == []
    assert [*desk.runs.folder.rglob("*.yaml")], "recipes were written, or nothing was tried"


def test_parameters_of_mlflow_hold_no_secret(desk: Desk) -> None:
    desk(f"run {NAME} -y {PLANTED}")
    plan = Plan.read(next(desk.runs.plans.glob("*.json")))
    told = [flat(plan.recipe, depth=2), *(flat(each.job.spec.model_dump(mode="json")) for each in plan.jobs)]
    assert SECRET not in str(told)


def test_servers_are_told_their_database_by_the_environment(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk(f"run {NAME} -y {PLANTED}")
    monkeypatch.setattr(session, "catch_up", lambda *_: (Lacking("mlflow", 5, "slow"),))
    monkeypatch.setattr(Mlflow, "experiment_id", lambda *_: "7")
    desk(f"ui optuna --storage {shlex.quote(STORAGE)}")
    desk("ui")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORAGE)
    desk("ui")
    assert len(desk.started) == 2
    assert STORAGE in (os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["KDLAB_UI_STORAGE"])
    assert [*desk.leaks()] == []


@pytest.mark.parametrize(
    "fault",
    [
        f"tune.storage=[{STORAGE}]",
        f"teacher.checkpoint={{a: '{CHECKPOINT}'}}",
        f"seeds='{'x' * 40} {CHECKPOINT}'",
        f"student.overrides={{model.backbone.url: '{CHECKPOINT}'}}",
    ],
)
def test_a_fault_of_a_secret_does_not_tell_it(desk: Desk, fault: str) -> None:
    for debug in ("", " --debug"):
        assert desk(f"plan {NAME} --set {shlex.quote(fault)}{debug}") in (2, 3)
    assert [*desk.leaks()] == []


def test_ids_do_not_hang_on_what_is_masked(desk: Desk) -> None:
    other = PLANTED.replace(SECRET, "another")
    desk(f"run {NAME} -y {PLANTED}")
    desk.printed.clear()
    desk(f"plan {NAME} {other}")
    told: Any = "".join(desk.printed)
    assert "all reused" in told
