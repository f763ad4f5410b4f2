from __future__ import annotations

import pytest

from kdlab.cli.screen import pick
from kdlab.cli.screen.options import job_names, plan_names
from kdlab.errors import UsageError
from tests.cli.conftest import TEACHER, Lab
from tests.stubs.jobs import make
from tests.stubs.stub_job import prepared

OTHER = "student-0ld00000"


def chosen(lab: Lab, *words: str) -> list[str]:
    return pick.chosen(lab.runs, words)[1]


@pytest.fixture(autouse=True)
def saved(lab: Lab) -> None:
    lab.save()
    prepared(lab.runs, make(OTHER, "gone"))


@pytest.mark.parametrize(
    ("word", "name"),
    [
        (TEACHER, TEACHER),
        ("teach", TEACHER),
        ("student-aa", "student-aa000000"),
        ("baseline seed 1", "student-b0000001"),
        ("rm", "student-aa000000"),
        ("student-0", OTHER),
    ],
)
def test_a_job_is_named_by_its_id_a_beginning_or_a_label(word: str, name: str, lab: Lab) -> None:
    assert chosen(lab, word) == [name]


@pytest.mark.parametrize("word", ["rm[rank=loc,weight=1.5]", "rm[rank=loc,weight=1.5] seed 0"])
def test_an_arm_named_by_its_options_is_meant_as_a_whole(word: str, lab: Lab) -> None:
    lab.jobs["loc"] = lab.job("student-cc000000", "rm[rank=loc,weight=1.5]", parents=(TEACHER,))
    lab.save()
    assert chosen(lab, word) == ["student-cc000000"]


@pytest.mark.parametrize("word", ["baseline", "student-b"])
def test_what_fits_several_jobs_names_them(word: str, lab: Lab) -> None:
    with pytest.raises(UsageError, match="fits 2 jobs") as error:
        chosen(lab, word)
    known = "student-b0000000 (baseline seed 0), student-b0000001 (baseline seed 1)"
    assert error.value.faults[0].known == known


def test_what_fits_nothing_is_answered_with_the_known_and_the_nearest(lab: Lab) -> None:
    with pytest.raises(UsageError, match="there is no job") as error:
        chosen(lab, "student-aa000001")
    assert error.value.faults[0].fix == "did you mean student-aa000000?"
    assert TEACHER in error.value.faults[0].known


def test_a_word_that_is_like_no_job_leads_to_the_status(lab: Lab) -> None:
    with pytest.raises(UsageError) as error:
        chosen(lab, "xyz")
    assert error.value.faults[0].fix == "kdlab status"


def test_a_job_of_another_plan_is_added_to_the_newest(lab: Lab) -> None:
    plan, names = pick.chosen(lab.runs, [OTHER, "rm"])
    assert names == [OTHER, "student-aa000000"]
    assert [planned.job.id for planned in plan.jobs][:2] == [OTHER, TEACHER]


def test_a_shell_completes_ids_and_labels_of_the_newest_plan() -> None:
    assert job_names("student-b0000001") == [("student-b0000001", "baseline seed 1")]
    assert job_names("teacher") == [(TEACHER, "teacher"), ("teacher", TEACHER)]
    assert job_names("rm") == [], "bash would not quote the blanks"


def test_a_shell_completes_plans_and_their_recipes() -> None:
    assert plan_names("") == ["digits/quickstart", "7f3a0001"]
    assert plan_names("7") == ["7f3a0001"]


def test_nothing_is_completed_where_nothing_was_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDLAB_RUNS", "elsewhere")
    assert job_names("") == plan_names("") == []
