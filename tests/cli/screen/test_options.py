"""What a shell completes."""

from __future__ import annotations

import pytest

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
