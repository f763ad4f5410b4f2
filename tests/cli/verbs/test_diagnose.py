"""What kdlab diagnose plans, prints, writes and refuses, on students that finished by hand."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdlab import session
from kdlab.cli import app
from kdlab.jobs.job import Job
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.planning import build as planning
from kdlab.planning.jobs import diagnosing
from kdlab.running.executors import local
from tests.reporting.conftest import Workbench
from tests.reporting.test_diagnosis import BASE, BETTER, diagnosed, rows
from tests.stubs.stub_job import COMMAND

Verb = Callable[[str], tuple[int, str, str]]
NAME = "digits/quickstart"


class World(Workbench):
    """A plan of a teacher, a baseline and rm, of which some have finished and some were diagnosed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "runs")
        images = folder / "images"
        (images / "a").mkdir(parents=True)
        for name in ("one", "two", "empty"):
            Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(images / "a" / f"{name}.png")
        self.jobs = {arm: self._reading(self.job(arm), images) for arm in ("teacher", "baseline", "rm")}

    @staticmethod
    def _reading(job: Job, images: Path) -> Job:
        files = job.inputs.dataset
        split = replace(files.val, images=images)
        own = replace(files, val=split, classes=("cat", "dog", "eel"))
        return replace(job, inputs=replace(job.inputs, dataset=own))

    def prepare(self, recipe: Any, runs: Any, machine: Any, progress: Any = print) -> Plan:
        jobs = tuple(PlannedJob(job, False, "new") for job in self.jobs.values())
        told = {**recipe.to_dict(), "arms": {"baseline": {}, "rm": {"rm": {}}}}
        return Plan("7f3a0001", told, jobs, machine.device, {})

    def train(self, *arms: str) -> None:  # type: ignore[override]
        for arm in arms:
            self.finish(self.jobs[arm])
            folder = self.runs.job(self.jobs[arm].id)
            folder.job.write_text(json.dumps(self.jobs[arm].to_dict()))

    def compare(self, *arms: str, files: dict[str, str] = {}) -> None:  # noqa: B006 - never changed
        """Finish the diagnosis of these students; `files` are images by another name."""
        for arm in arms:
            job = diagnosing(self.jobs[arm], self.jobs["teacher"])
            own = rows(BETTER if arm == "rm" else BASE)
            own = replace(own, files=np.array([files.get(name, name) for name in own.files.tolist()]))
            told = diagnosed(own).result.diagnosis | {
                "student": self.jobs[arm].id, "teacher": self.jobs["teacher"].id
            }  # fmt: skip
            self.finish(job, diagnosis=told)
            own.write(self.runs.job(job.id).diagnosis)
            self.runs.job(job.id).job.write_text(json.dumps(job.to_dict()))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_stubs: None) -> World:
    monkeypatch.chdir(tmp_path)
    for name in ("KDLAB_RUNS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(local.Local.__init__, "__defaults__", (None, COMMAND))
    monkeypatch.setattr(session, "followers", lambda *_: [])
    made = World(tmp_path)
    monkeypatch.setattr(planning, "prepare", made.prepare)
    return made


@pytest.fixture
def kdlab(world: World, capfd: pytest.CaptureFixture[str]) -> Verb:
    def run(line: str) -> tuple[int, str, str]:
        code = app.main(shlex.split(line))
        return code, *capfd.readouterr()

    return run


def test_two_tables_say_how_far_arms_agree_and_what_gained(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline", "rm")
    code, out, err = kdlab(f"diagnose {NAME} --images 0")
    assert code == 0
    agreement, gains = out.split("\n\n")
    assert "agreement with the teacher" in agreement
    assert "where the gain comes from" in gains
    assert "class: cat" in gains
    # nothing had to run
    assert "started" not in err
    assert err.splitlines()[-1] == f"next: kdlab report --cols AP,dAP,tau,top-1 {NAME}"


def test_tables_and_figures_are_written(world: World, kdlab: Verb, tmp_path: Path) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline", "rm")
    kdlab(f"diagnose {NAME} --images 1")
    names = {path.name for path in (tmp_path / "results/digits").iterdir()}
    stems = {name.removeprefix("quickstart").partition("-diagnosis")[2] for name in names}
    assert stems == {
        *(f"{part}.{end}" for part in ("", "-gains", "-recall") for end in ("md", "csv")),
        *(f"-a-one-{part}.{end}" for part in ("boxes", "maps") for end in ("png", "pdf", "csv")),
    }


def test_images_of_which_only_the_folder_differs_have_figures_of_their_own(
    world: World, kdlab: Verb, tmp_path: Path
) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline", "rm", files={"a/two.png": "a-one.png"})
    Image.open(tmp_path / "images/a/two.png").save(tmp_path / "images/a-one.png")
    kdlab(f"diagnose {NAME} --images a/one.png,a-one.png")
    drawn = (tmp_path / "results/digits").glob("*-boxes.png")
    ends = {path.name.partition("-diagnosis-")[2] for path in drawn}
    assert ends == {"a-one-0-boxes.png", "a-one-1-boxes.png"}


def test_an_image_that_cannot_be_read_is_told_and_not_drawn(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline", "rm")
    (Path("images") / "a" / "two.png").write_bytes(b"")
    code, _, err = kdlab(f"diagnose {NAME} --images two,one")
    assert code == 0
    assert "not drawn, for it cannot be read: a/two.png" in err
    assert "-diagnosis-a-one-boxes.png" in err


def test_an_unknown_image_is_refused(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline")
    world.compare("baseline")
    code, _, err = kdlab(f"diagnose {NAME} --images three")
    assert code == 2
    assert "no validation image is called three" in err


def test_json_is_one_object_with_all_tables(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline", "rm")
    code, out, err = kdlab(f"diagnose {NAME} --images 0 --json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    titles = [table["title"].rpartition(": ")[2] for table in told["tables"]]
    assert titles == ["agreement with the teacher", "where the gain comes from", "where recall comes from"]
    assert told["tables"][0]["rows"][2]["feature_8"]["value"] == 3.4
    assert all(Path(name).is_file() for name in told["files"])


def test_unfinished_students_are_named_and_left_out(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline")
    world.compare("baseline")
    code, out, err = kdlab(f"diagnose {NAME} --images 0")
    assert code == 0
    assert "not finished, so left out: rm seed 0" in err
    assert "where the gain comes from" not in out


def test_nothing_finished_is_an_error_with_the_command_that_trains(world: World, kdlab: Verb) -> None:
    code, _, err = kdlab(f"diagnose {NAME}")
    assert code == 2
    assert "nothing to diagnose: no student" in err
    assert f"kdlab run {NAME}" in err


def test_a_dry_run_shows_the_jobs_that_would_compare(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline")
    code, out, _ = kdlab(f"diagnose {NAME} --dry-run")
    assert code == 0
    assert "  = diagnose baseline seed 0" in out
    assert "  + diagnose rm seed 0" in out
    assert not list(world.runs.plans.glob("*"))


def test_missing_comparisons_run_as_jobs_and_their_plan_is_no_comparison(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline")
    code, _, err = kdlab(f"diagnose {NAME} --images 0")
    # the stub in place of the job leaves a result without numbers
    assert code == 0
    assert "diagnose rm seed 0" in err
    (file,) = world.runs.plans.glob("*.json")
    plan = Plan.read(file)
    assert not plan.compares
    assert [planned.job.kind for planned in plan.jobs].count("diagnose") == 2
    code, _, err = kdlab("report")
    assert (code, "nothing to compare was run here yet" in err) == (2, True)
    code, _, err = kdlab(f"report {plan.id}")
    assert code == 2
    assert f"diagnoses plan {plan.recipe['diagnoses']} and compares no arms" in err
    assert kdlab("status")[1].startswith(f"plan {plan.id[:4]}")


def test_results_without_numbers_are_told(world: World, kdlab: Verb) -> None:
    world.train("teacher", "baseline", "rm")
    code, _, err = kdlab(f"diagnose {NAME}")
    assert code == 3
    assert "the diagnoses hold no numbers" in err


@pytest.mark.parametrize("width", [80, 100, 200])
def test_tables_keep_to_the_width(
    width: int, world: World, kdlab: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.train("teacher", "baseline", "rm")
    world.compare("baseline", "rm")
    monkeypatch.setenv("COLUMNS", str(width))
    out = kdlab(f"diagnose {NAME} --images 0")[1]
    assert max(map(len, out.splitlines())) <= width
    # of three rankings the two others go first
    assert all(word in out for word in ("tau,", "top-1,", "other,", "P~F,"))
