from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import MachineError, UsageError
from kdlab.jobs import store
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job, read_job
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.result import JobResult
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result, prepared

TEACHER = "teacher-9c1e22ab"
OTHER = "student-0ld00000"
LOC = "rm[rank=loc,weight=1.5]"
JOBS = (
    make(TEACHER, "teacher"),
    make("student-b0000000", "baseline"),
    make("student-b0000001", "baseline", 1),
    make("student-aa000000", "rm", parents=(TEACHER,)),
    make("student-cc000000", LOC, parents=(TEACHER,)),
)


def save(runs: Runs, plan_id: str, recipe: str, saved: float = 0.0, *jobs: Job, **more: Any) -> Plan:
    planned = tuple(PlannedJob(job, False, "new") for job in jobs)
    plan = Plan(plan_id, {"name": recipe, **more}, planned, "cpu", {})
    os.utime(plan.save(runs), (saved, saved))
    return plan


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


class TestJobs:
    @pytest.fixture(autouse=True)
    def saved(self, runs: Runs) -> None:
        save(runs, "7f3a0001", "digits/quickstart", 1000, *JOBS)
        prepared(runs, make(OTHER, "gone"))

    @pytest.mark.parametrize(
        ("word", "name"),
        [
            (TEACHER, TEACHER),
            ("teach", TEACHER),
            ("student-aa", "student-aa000000"),
            ("baseline seed 1", "student-b0000001"),
            ("rm", "student-aa000000"),
            ("student-0", OTHER),
            (LOC, "student-cc000000"),
            (f"{LOC} seed 0", "student-cc000000"),
        ],
    )
    def test_one_is_named_by_its_id_a_beginning_or_a_label(self, word: str, name: str, runs: Runs) -> None:
        assert store.job(runs, word).id == name

    @pytest.mark.parametrize("word", ["baseline", "student-b"])
    def test_what_fits_several_names_them(self, word: str, runs: Runs) -> None:
        with pytest.raises(UsageError, match="fits 2 jobs") as error:
            store.job(runs, word)
        known = "student-b0000000 (baseline seed 0), student-b0000001 (baseline seed 1)"
        assert error.value.faults[0].known == known
        assert [job.seed for job in store.jobs(runs, word)] == [0, 1]

    @pytest.mark.parametrize(
        ("word", "fix"),
        [
            ("student-aa000001", "did you mean student-aa000000?"),
            ("basline", "did you mean baseline?"),
            ("xyz", "kdlab status"),
            ("", "kdlab status"),
        ],
    )
    def test_what_fits_none_is_answered_with_the_known_and_the_nearest(
        self, word: str, fix: str, runs: Runs
    ) -> None:
        with pytest.raises(UsageError, match="there is no job") as error:
            store.job(runs, word)
        assert error.value.faults[0].fix == fix
        assert TEACHER in error.value.faults[0].known

    def test_weights_are_looked_for_in_the_newest_plan_that_compares_arms(self, runs: Runs) -> None:
        bench = make("bench-dd000000", "rm")
        prepared(runs, bench)
        save(runs, "bbbb0000", "digits/quickstart", 2000, bench, benches="7f3a0001")
        assert store.job(runs, "rm").id == "bench-dd000000"
        assert store.job(runs, "rm", comparing=True).id == "student-aa000000"
        assert store.job(runs, "bench-dd", comparing=True).id == "bench-dd000000"

    def test_one_of_another_plan_is_added_to_the_newest(self, runs: Runs) -> None:
        plan, names = store.chosen(runs, [OTHER, "rm"])
        assert names == [OTHER, "student-aa000000"]
        assert [planned.job.id for planned in plan.jobs][:2] == [OTHER, TEACHER]

    def test_results_are_found_by_ids_and_past_jobs_in_all_folders(self, runs: Runs) -> None:
        result = make_result(JOBS[0])
        result.write(prepared(runs, JOBS[0]))
        assert store.results(runs, [TEACHER, OTHER]) == {TEACHER: result}
        assert store.past_jobs(runs) == {TEACHER: store.PastJob(JOBS[0], result)}

    def test_damaged_folders_are_no_past_jobs(self, runs: Runs) -> None:
        runs.job(OTHER).result.write_text("{")
        assert store.past_jobs(runs) == {}

    def test_jobs_that_ran_out_of_memory_are_told_from_others_that_failed(self, runs: Runs) -> None:
        full = {"kind": "oom", "peak_gb": 23.0}
        write_json(prepared(runs, JOBS[0]).failure, full)
        write_json(runs.job(OTHER).failure, {"what": "out of luck"})
        assert store.shortages(runs) == {TEACHER: full}


def test_a_recipe_s_name_is_no_beginning_of_an_id(runs: Runs) -> None:
    save(runs, "7f3a0001", "digits/quickstart", 1000)
    save(runs, "aa110000", "7", 500)
    assert store.plan(runs, "7").id == "aa110000"
    assert store.plan(runs, "7f").id == "7f3a0001"


def test_where_nothing_was_run_a_first_run_is_named(runs: Runs) -> None:
    for ask in (
        lambda: store.job(runs, "rm"),
        lambda: store.plan(runs, None),
        lambda: store.chosen(runs, []),
    ):
        with pytest.raises(UsageError, match="kdlab run digits/quickstart"):
            ask()


class TestPlans:
    def test_newest_is_the_one_saved_last(self, runs: Runs) -> None:
        newest = save(runs, "aaaa0000", "digits/a", 2000, JOBS[0])
        older = save(runs, "bbbb0000", "digits/b", 1000)
        assert store.newest_plan(runs) == store.plan(runs, None) == newest
        assert list(store.plans(runs)) == [newest, older]

    @pytest.mark.parametrize(
        ("word", "found"), [("bbb", "bbbb0000"), ("aaaa1", "aaaa1111"), ("digits/a", "aaaa1111")]
    )
    def test_one_is_named_by_the_beginning_of_its_id_or_its_recipe(
        self, word: str, found: str, runs: Runs
    ) -> None:
        save(runs, "aaaa0000", "digits/a", 1000)
        save(runs, "aaaa1111", "digits/a", 3000)
        save(runs, "bbbb0000", "digits/b", 4000)
        assert store.plan(runs, word).id == found

    def test_one_is_named_by_the_file_of_its_recipe(self, runs: Runs, tmp_path: Path) -> None:
        for name in ("mine", "other"):
            (tmp_path / f"{name}.yaml").write_text("student: {}\n")
        save(runs, "aaaa0000", "mine", 1000, path=str(tmp_path / "mine.yaml"))
        save(runs, "bbbb0000", "digits/b", 2000)
        assert store.plan(runs, f"{tmp_path}/../{tmp_path.name}/mine.yaml").id == "aaaa0000"
        other = str(tmp_path / "other.yaml")
        with pytest.raises(UsageError, match="no plan") as error:
            store.plan(runs, other)
        assert error.value.faults[0].fix == f"kdlab run {other}"

    def test_what_begins_several_ids_names_the_plans_that_fit(self, runs: Runs) -> None:
        save(runs, "aaaa0000", "digits/a", 1000)
        save(runs, "aaaa1111", "digits/a", 2000)
        with pytest.raises(UsageError, match="aaaa1111, aaaa0000"):
            store.plan(runs, "aaaa")

    @pytest.mark.parametrize(
        ("word", "fix"),
        [
            ("digits/quikstart", "did you mean digits/quickstart?"),
            ("coco/x", "kdlab ls runs"),
            ("digits/gfl", "kdlab run digits/gfl"),
        ],
    )
    def test_what_fits_none_is_answered_with_the_nearest(self, word: str, fix: str, runs: Runs) -> None:
        save(runs, "aaaa0000", "digits/quickstart")
        with pytest.raises(UsageError, match="no plan") as error:
            store.plan(runs, word, recipes=["digits/gfl"])
        assert error.value.faults[0].fix == fix

    def test_searches_are_passed_over_where_arms_are_compared(self, runs: Runs) -> None:
        compared = save(runs, "00000001", "digits/gfl", 1)
        command = "kdlab tune digits/gfl --set tune.trials=40"
        search = save(runs, "00000002", "digits/gfl", 2, study="digits/gfl-3fa2c1", command=command)
        assert store.newest_plan(runs) == store.plan(runs, "00000002") == search
        assert store.newest_plan(runs, comparing=True) == compared
        assert store.plan(runs, "digits/gfl", comparing=True) == compared
        with pytest.raises(UsageError, match="is a search") as error:
            store.plan(runs, "00000002", comparing=True)
        assert error.value.faults[0].fix == command

    def test_search_alone_is_nothing_to_compare(self, runs: Runs) -> None:
        save(runs, "00000002", "digits/gfl", study="digits/gfl-3fa2c1")
        with pytest.raises(UsageError, match="nothing to compare"):
            store.newest_plan(runs, comparing=True)
        with pytest.raises(UsageError, match="no plan"):
            store.plan(runs, "digits/gfl", comparing=True)

    @pytest.mark.parametrize("text", ["{", "[]", '{"id": "aaaa0000"}'])
    def test_damaged_file_is_told(self, text: str, runs: Runs) -> None:
        save(runs, "aaaa0000", "digits/a").path(runs).write_text(text)
        with pytest.raises(MachineError, match="damaged"):
            store.plan(runs, "aaaa0000")


class TestOlderFolder:
    """A runs folder of kdlab 0.1."""

    @staticmethod
    def aged(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))

    def test_it_is_named_with_what_to_do(self, runs: Runs) -> None:
        self.aged(save(runs, "aaaa0000", "digits/a").path(runs))
        with pytest.raises(UsageError, match=r"kdlab 0\.1") as error:
            store.newest_plan(runs)
        assert str(runs.folder) in error.value.faults[0].what
        assert "KDLAB_RUNS" in error.value.faults[0].fix

    def test_whatever_is_read_of_it_tells_so(self, runs: Runs) -> None:
        paths = prepared(runs, JOBS[0])
        make_result(JOBS[0]).write(paths)
        self.aged(paths.result)
        for read in (lambda: JobResult.read(paths), lambda: store.past_jobs(runs)):
            with pytest.raises(UsageError, match=r"kdlab 0\.1"):
                read()
        self.aged(paths.job)
        with pytest.raises(UsageError, match=r"kdlab 0\.1"):
            read_job(paths)

    def test_plan_alone_keeps_new_jobs_from_it(self, runs: Runs) -> None:
        self.aged(save(runs, "aaaa0000", "digits/a").path(runs))
        with pytest.raises(UsageError, match=r"kdlab 0\.1"):
            store.past_jobs(runs)


def test_the_runs_folder_is_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    assert Runs.here().folder == Path("runs")
    monkeypatch.setenv("KDLAB_RUNS", "/elsewhere")
    assert Runs.here().folder == Path("/elsewhere")
