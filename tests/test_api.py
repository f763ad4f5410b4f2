"""kdlab from Python, over jobs that are stubs at work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from matplotlib.figure import Figure

import kdlab
from kdlab import api, prepared, session
from kdlab.errors import JobError, UsageError
from kdlab.jobs.events import JobWaiting
from kdlab.planning import build, pace
from kdlab.running.executors import local
from tests.cli.test_verbs import Bench
from tests.stubs.stub_job import COMMAND

NAME = "digits/quickstart"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    made = Bench(tmp_path, capfd)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(build, "prepare", made.prepare)
    monkeypatch.setattr(pace, "priced", made.priced)
    monkeypatch.setattr(local.Local.__init__, "__defaults__", (None, COMMAND))
    monkeypatch.setattr(session, "followers", lambda *_: [])
    return made


def test_a_plan_in_smaller_parts_is_for_the_same_executor_and_gpus(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    first = kdlab.plan(NAME, executor="inline", gpus=[])

    def prepare(*told: Any) -> Any:
        asked.append(told)
        return first.prepared

    monkeypatch.setattr(prepared, "prepare", prepare)
    monkeypatch.setattr(prepared, "smaller", lambda made: True)
    ended = session.Outcome({}, complete=False, stopped_by=None)
    monkeypatch.setattr(session, "drive", lambda *_, **__: ended)
    with pytest.raises(JobError):
        kdlab.run(first)
    assert asked == [(kdlab.load(NAME), "inline", [])]


def test_mlflow_is_as_patient_after_a_run_as_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(*_: Any, **__: Any) -> session.Outcome:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"
        return session.Outcome({}, complete=True, stopped_by=None)

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setattr(session, "drive", drive)
    kdlab.run(NAME, progress=False)
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_load_takes_overrides_as_the_command_line_does() -> None:
    assert kdlab.load(NAME, "seeds=[3,4]", "arms.rm.rm.weight=2").seeds == (3, 4)
    with pytest.raises(UsageError, match="sedes is not a section"):
        kdlab.load(NAME, "sedes=[3]")


def test_a_plan_is_a_row_a_job(bench: Bench) -> None:
    bench.finish("teacher")
    planned = kdlab.plan(NAME, "seeds=[0,1]")
    frame = planned.to_frame()
    assert [*frame["arm"]] == ["teacher", *2 * ["baseline", "rm", "pfi", "rm+pfi"]]
    assert [*frame["done"]] == [True] + 8 * [False]
    assert [*frame["seed"].dropna()] == 4 * [0] + 4 * [1]
    assert repr(planned) == "plan 7f3a0001 of digits/quickstart: 9 jobs, 1 done"
    assert "<table" in planned._repr_html_()


def test_a_recipe_that_is_loaded_takes_no_more_overrides(bench: Bench) -> None:
    recipe = kdlab.load(NAME, "seeds=[0,1]")
    assert len(kdlab.plan(recipe).plan.jobs) == 9
    with pytest.raises(TypeError, match="load"):
        kdlab.plan(recipe, "seeds=[0]")


def test_a_run_ends_in_its_report_and_says_what_ended(bench: Bench) -> None:
    done = kdlab.run(NAME)
    lines = [line.split("\r")[-1].rstrip() for line in bench.capfd.readouterr().out.splitlines()]
    assert {"teacher: done, AP 12.5", "rm seed 0: done, AP 12.5"} <= {*lines}
    assert lines[-1] == "[####################] 5 of 5"
    frame = done.to_frame()
    assert [*frame["arm"]] == ["teacher", "baseline", "rm", "pfi", "rm+pfi"]
    assert [*done.to_frame(["dAP"]).columns] == ["arm", "dAP"]
    assert any(note.startswith("made again by: kdlab run ") for note in frame.attrs["footnotes"])
    figures = done.figures()
    assert figures
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert "| baseline" in repr(done)
    assert "<td>baseline</td>" in done._repr_html_()
    with pytest.raises(UsageError, match="no such column"):
        done.to_frame(["gain"])


def test_what_was_run_is_reused_and_nothing_need_be_printed(bench: Bench) -> None:
    kdlab.run(NAME, progress=False)
    assert bench.capfd.readouterr().out == ""
    planned = kdlab.plan(NAME)
    assert planned.to_frame()["done"].all()
    kdlab.run(planned)
    assert "pfi seed 0: reused" in bench.capfd.readouterr().out


def test_in_a_notebook_one_output_of_the_cell_is_renewed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    shell = ModuleType("IPython")
    shell.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    page = ModuleType("IPython.display")
    page.display = lambda text, display_id: handle  # type: ignore[attr-defined]
    page.Pretty = str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    formats: list[Any] = []
    tools = ModuleType("IPython.core.pylabtools")
    tools.select_figure_formats = lambda shell, kinds: formats.append(kinds)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.core", ModuleType("IPython.core"))
    monkeypatch.setitem(sys.modules, "IPython.core.pylabtools", tools)
    done = kdlab.run(NAME)
    assert bench.capfd.readouterr().out == ""
    *ended, bar = shown[-1].splitlines()
    assert (len(ended), bar) == (5, "[####################] 5 of 5")
    done.figures()
    assert formats == [{"png"}]


def test_a_long_reason_to_wait_is_cut_to_a_line(bench: Bench) -> None:
    lines = api._Lines(kdlab.plan(NAME).plan)
    lines(JobWaiting(job="student-rm0", why="1 core: core 0 held by " + 20 * "somebody else, "))
    assert len(bench.capfd.readouterr().out.strip()) == api.WIDTH


def test_report_takes_a_recipe_a_plan_or_the_newest(bench: Bench) -> None:
    with pytest.raises(UsageError):
        kdlab.report(NAME)
    kdlab.run(NAME, progress=False)
    frames = [kdlab.report(what).to_frame() for what in (None, NAME, "7f3a", kdlab.plan(NAME))]
    assert all(frame.equals(frames[0]) for frame in frames)


def test_jobs_that_fail_are_told_once_a_cause_and_the_others_are_kept(bench: Bench) -> None:
    bench.ends = {"rm": "fail", "pfi": "fail"}
    with pytest.raises(JobError) as caught:
        kdlab.run(NAME, progress=False)
    (fault,) = caught.value.faults
    assert "rm seed 0 (student-rm0)" in fault.where
    assert "pfi seed 0 (student-pfi0)" in fault.where
    assert kdlab.report(NAME).to_frame()["n"].sum() == 3


def test_an_interrupt_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = session.drive

    def interrupted(*words: Any, **options: Any) -> session.Outcome:
        return session.replace(drive(*words, **options), complete=False, stopped_by=session.signal.SIGINT)

    monkeypatch.setattr(session, "drive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kdlab.run(NAME, progress=False)


def test_names_that_are_not_there_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="module 'kdlab' has no attribute 'lod'"):
        kdlab.lod  # noqa: B018
