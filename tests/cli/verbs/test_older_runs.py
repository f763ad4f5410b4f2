"""A runs folder of kdlab 0.1 is named by every verb that reads one, and never misread."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Lab

VERBS = (
    "plan digits/quickstart",
    "run digits/quickstart -y",
    "report",
    "report digits/quickstart",
    "report --errors digits/quickstart",
    "status",
    "status 7f3a",
    "ls runs",
    "logs teacher",
    "stop",
    "export teacher",
)


@pytest.mark.parametrize("line", VERBS)
def test_it_is_told_apart_and_what_to_do(line: str, lab: Lab) -> None:
    path = lab.save().path(lab.runs)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    code, out, err = lab(line)
    assert (code, out) == (2, "")
    assert err.startswith("error: runs/plans/7f3a0001.json  runs is a runs folder of kdlab 0.1")
    assert "fix    move it away: mv runs runs-old   or set KDLAB_RUNS to another folder" in err


@pytest.mark.parametrize("line", ["plan digits/quickstart", "report", "status", "ls runs"])
def test_its_jobs_tell_it_where_its_plans_do_not(line: str, lab: Lab) -> None:
    lab.save()
    for key in lab.jobs:
        lab.done(key)
        for path in (lab.paths(key).job, lab.paths(key).result):
            path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    code, out, err = lab(line)
    assert (code, out) == (2, "")
    assert "kdlab 0.1" in err
