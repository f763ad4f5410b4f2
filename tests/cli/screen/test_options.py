"""What a shell completes."""

from __future__ import annotations

import os

import pytest

from kdlab.cli import app
from kdlab.cli.screen.options import job_names, plan_names
from tests.cli.conftest import TEACHER, Lab


def test_ids_and_labels_of_the_newest_plan(lab: Lab) -> None:
    lab.save()
    assert job_names("student-b0000001") == [("student-b0000001", "baseline seed 1")]
    assert job_names("teacher") == [(TEACHER, "teacher"), ("teacher", TEACHER)]
    assert job_names("rm") == [], "bash would not quote the blanks"


def test_plans_and_their_recipes(lab: Lab) -> None:
    lab.save()
    assert plan_names("") == ["digits/quickstart", "7f3a0001"]
    assert plan_names("7") == ["7f3a0001"]


def test_nothing_where_nothing_was_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLAB_RUNS", "elsewhere")
    assert job_names("") == plan_names("") == []


def test_nothing_where_the_plans_cannot_be_read(lab: Lab) -> None:
    lab.save().path(lab.runs).write_text("{")
    assert job_names("") == plan_names("") == []


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("ls ", {"recipes", "methods", "runs"}),
        ("ls methods p", {"pfi", "pgd", "pkd"}),
        ("ls recipes p", set()),
        ("run digits/q", {"digits/quickstart"}),
        ("run digits/quickstart --executor ", {"local", "inline", "slurm", "ray"}),
        ("run digits/quickstart --set schedule.e", {"schedule.epochs=", "schedule.eval_every="}),
        ("tune digits/quickstart --set methods.pfi.w", {"methods.pfi.weight="}),
        ("plan digits/quickstart --set see", {"seeds="}),
        ("export r", {"rm"}),
        ("export student-aa", {"student-aa000000"}),
        ("logs student-aa", {"student-aa000000"}),
    ],
)
def test_a_shell_is_offered_what_fits(
    line: str, wanted: set[str], lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lab.save()
    told = {"_KDLAB_COMPLETE": "complete_bash", "COMP_WORDS": f"kdlab {line}"}
    words = len(line.split()) + line.endswith(" ")
    for name, value in (told | {"COMP_CWORD": str(words)}).items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(SystemExit):
        app.main([])
    offered = set(capfd.readouterr().out.split())
    assert wanted <= offered
    assert bool(offered) == bool(wanted)
