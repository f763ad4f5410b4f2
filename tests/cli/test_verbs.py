from __future__ import annotations

import doctest
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdlab import catalog, session
from kdlab.cli import app
from kdlab.devices import Machine
from kdlab.jobs.events import EventLog, JobStarted
from kdlab.jobs.files import write_json
from kdlab.jobs.job import Job, Resources
from kdlab.jobs.lease import Lease
from kdlab.jobs.paths import Runs
from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.result import Evaluation
from kdlab.planning import build as planning
from kdlab.planning import pace
from kdlab.recipe.settings import Recipe
from kdlab.running.executors import local
from tests.stubs.jobs import make, method
from tests.stubs.stub_job import COMMAND, make_result, prepared

NAME = "digits/quickstart"
TEACHER = "teacher-9c1e22ab"


class Bench:
    """A folder in which `kdlab` plans the quickstart with stub jobs; what is set here shapes the plan."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.runs = Runs(folder / "runs")
        self.results = folder / "results" / "digits"
        self.capfd = capfd
        self.cost_s: float | None = None
        self.measured = False
        self.cost_source = "measured, n=3"
        self.gpus = 0
        self.ends: dict[str, str] = {}
        self.why = "new"
        self.notes: tuple[str, ...] = ()

    def job(self, arm: str, seed: int = 0, methods: Sequence[str] = ()) -> Job:
        teacher = arm == "teacher"
        return make(
            TEACHER if teacher else f"student-{arm.replace('+', '')}{seed}",
            arm,
            seed,
            stub={"end": self.ends.get(arm, "finish")},
            methods={name: method(name.partition("@")[0]) for name in methods},
            parents=(TEACHER,) if methods else (),
            resources=Resources(gpus=self.gpus),
        )

    def priced(self, plan: Plan, *_: Any) -> Plan:
        self.measured = True
        return plan

    def prepare(
        self,
        recipe: Recipe,
        runs: Runs,
        machine: Machine,
        progress: Callable[[str], None] = print,
    ) -> Plan:
        progress("data set digits")
        arms = [(arm, seed, methods) for seed in recipe.seeds for arm, methods in recipe.arms.items()]
        jobs = [self.job("teacher"), *(self.job(arm, seed, list(methods)) for arm, seed, methods in arms)]
        return Plan(
            id="7f3a0001",
            recipe=recipe.to_dict(),
            jobs=tuple(self.planned(job) for job in jobs),
            device=machine.device,
            dataset={},
            notes=self.notes,
        )

    def planned(self, job: Job) -> PlannedJob:
        if self.runs.job(job.id).result.exists():
            return PlannedJob(job, True, "reused", 0.0, "done")
        source = "unknown" if self.cost_s is None else self.cost_source
        return PlannedJob(job, False, self.why, self.cost_s, source)

    def finish(self, arm: str, seed: int = 0, ap: float = 12.5) -> None:
        job = self.job(arm, seed)
        self.runs.job(job.id).folder.mkdir(parents=True)
        write_json(self.runs.job(job.id).job, job.to_dict())
        replace(make_result(job), last=Evaluation({"AP": ap})).write(self.runs.job(job.id))

    def __call__(self, line: str) -> tuple[int, str, str]:
        """Run a command line; exit code, stdout, stderr."""
        code = app.main(shlex.split(line))
        out, err = self.capfd.readouterr()
        return code, out, err


@pytest.fixture
def kdlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], quick_stubs: None
) -> Bench:
    bench = Bench(tmp_path, capfd)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(planning, "prepare", bench.prepare)
    monkeypatch.setattr(pace, "priced", bench.priced)
    monkeypatch.setattr(local.Local.__init__, "__defaults__", (None, COMMAND))
    monkeypatch.setattr(session, "followers", lambda *_: [])
    return bench


class TestPlan:
    def test_shows_each_arm_with_its_cost_and_its_reason(self, kdlab: Bench) -> None:
        kdlab.finish("teacher", ap=38.94)
        kdlab.cost_s = 90.0
        kdlab.why, kdlab.notes = "new: schedule.lr differs from student-1a2b3c4d", ("levels do not meet",)
        code, out, err = kdlab(f"plan {NAME}")
        assert code == 0
        assert out.splitlines() == [
            "plan 7f3a  digits/quickstart  5 jobs, 1 reused, ~3m00s on 2 cores",
            "  = teacher   gfl r18          reused  teacher-9c1e22ab (AP 38.9)",
            *(
                f"  + {arm:<8}  gfl r18  seed 0  ~1m30s  measured, n=3, "
                "schedule.lr differs from student-1a2b3c4d"
                for arm in ("baseline", "rm", "pfi", "rm+pfi")
            ),
            "  note: levels do not meet",
        ]
        assert err.splitlines()[-1] == f"next: kdlab run {NAME}"

    def test_seeds_of_an_arm_share_a_line(self, kdlab: Bench) -> None:
        kdlab.finish("baseline", seed=0)
        kdlab.cost_s = 90.0
        _, out, _ = kdlab(f"plan {NAME} --set seeds=[0,1,2]")
        assert "  = baseline  gfl r18  seed 0       reused       student-baseline0 (AP 12.5)" in out
        assert "  + baseline  gfl r18  seeds 1 2    ~1m30s each  measured, n=3" in out

    def test_verbose_gives_every_job_a_line(self, kdlab: Bench) -> None:
        _, out, _ = kdlab(f"plan {NAME} -v --set seeds=[0,1,2]")
        assert sum(line.startswith("  + student-") for line in out.splitlines()) == 12

    def test_an_unknown_cost_is_called_unknown(self, kdlab: Bench) -> None:
        assert "5 jobs, cost unknown on 2 cores" in kdlab(f"plan {NAME}")[1]

    @pytest.mark.parametrize(
        ("verb", "measured"), [("plan", True), ("run --dry-run", True), ("bench --dry-run", False)]
    )
    def test_steps_are_measured_for_plans_whose_cost_is_told(
        self, verb: str, measured: bool, kdlab: Bench
    ) -> None:
        kdlab(f"{verb} {NAME}")
        assert kdlab.measured is measured

    def test_no_step_is_measured_for_jobs_of_a_cluster(self, kdlab: Bench) -> None:
        kdlab(f"plan {NAME} --executor slurm")
        assert not kdlab.measured

    def test_a_job_with_a_checkpoint_says_that_it_goes_on(self, kdlab: Bench) -> None:
        folder = kdlab.runs.job("student-rm0").checkpoints
        folder.mkdir(parents=True)
        (folder / "iter_3.pth").touch()
        (line,) = [line for line in kdlab(f"plan {NAME}")[1].splitlines() if "+ rm " in line]
        assert line.endswith("goes on from its checkpoint")

    def test_gpu_work_is_counted_in_gpu_hours(self, kdlab: Bench) -> None:
        kdlab.cost_s, kdlab.gpus = 5.2 * 3600, 1
        _, out, _ = kdlab(f"plan {NAME}")
        assert "5 jobs, ~26 GPU-h, " in out
        assert "~5.2 GPU-h" in out

    def test_json_is_the_plan(self, kdlab: Bench) -> None:
        _, out, _ = kdlab(f"plan {NAME} --json")
        assert Plan.from_dict(json.loads(out)).id == "7f3a0001"
        assert json.loads(out)["schema"] == 1

    def test_next_repeats_the_overrides(self, kdlab: Bench) -> None:
        _, _, err = kdlab(f"plan {NAME} --set 'seeds=[0, 1]'")
        assert err.splitlines()[-1] == f"next: kdlab run {NAME} --set 'seeds=[0, 1]'"

    def test_gpus_must_be_numbers(self, kdlab: Bench) -> None:
        code, _, err = kdlab(f"plan {NAME} --gpus first")
        assert code == 2
        assert "got    first" in err


class TestRun:
    def test_ends_in_the_table_and_its_files(self, kdlab: Bench) -> None:
        code, out, err = kdlab(f"run {NAME}")
        assert code == 0
        lines = out.splitlines()
        assert lines[1].split()[:3] == ["arm", "AP", "dAP"]
        assert [line.split()[0] for line in lines[2:7]] == ["teacher", "baseline", "rm", "pfi", "rm+pfi"]
        assert "plan 7f3a" in err
        assert "student-rm0  rm seed 0  done: AP 12.5" in err
        assert {path.name for path in kdlab.results.iterdir()} == {"quickstart.md", "quickstart.csv"}

    def test_fewer_than_three_seeds_name_the_command_for_three(self, kdlab: Bench) -> None:
        _, _, err = kdlab(f"run {NAME} --set seeds=[1] -y")
        assert err.splitlines()[-1] == f"next: kdlab run {NAME} -y --set 'seeds=[1,0,2]'"

    def test_a_finished_plan_runs_nothing_again(self, kdlab: Bench) -> None:
        _, first, _ = kdlab(f"run {NAME}")
        code, again, err = kdlab(f"run {NAME}")
        assert (code, again) == (0, first)
        assert "5 jobs, all reused" in err
        assert "started" not in err

    def test_a_failed_job_gives_1_and_a_box(self, kdlab: Bench) -> None:
        kdlab.ends = {"rm": "fail"}
        code, out, err = kdlab(f"run {NAME}")
        assert code == 1
        assert "rm: n=0 of 1, seed 0 failed" in out
        box = err[err.index("error: rm seed 0 (student-rm0)  the loss is not finite") :].splitlines()
        assert box[1:3] == ["  got    nan", "  when   iteration 2, after 0s"]
        assert box[3] == "  fix    lower schedule.lr"
        assert box[4] == "  log    runs/jobs/student-rm0/log.txt, its end:"
        assert any(line.startswith("  |  ") for line in box[5:])
        assert box[-2] == "  more   kdlab logs student-rm0"
        assert box[-1] == f"retry: kdlab run {NAME}"
        assert not kdlab.results.exists()

    def test_a_lost_teacher_names_what_was_skipped(self, kdlab: Bench) -> None:
        kdlab.ends = {"teacher": "fail"}
        code, _, err = kdlab(f"run {NAME}")
        assert code == 1
        assert "skipped: rm seed 0 (student-rm0): it needs teacher" in err

    def test_one_cause_in_many_jobs_is_told_once(self, kdlab: Bench) -> None:
        kdlab.ends = {"rm": "fail", "pfi": "fail"}
        _, _, err = kdlab(f"run {NAME}")
        assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1
        assert re.search(r"^  also   (rm|pfi) seed 0 \(student-(rm|pfi)0\)$", err, re.MULTILINE)

    def test_dry_run_runs_nothing(self, kdlab: Bench) -> None:
        code, out, err = kdlab(f"run {NAME} --dry-run")
        assert code == 0
        assert out.startswith("plan 7f3a")
        assert not kdlab.runs.folder.exists()
        assert err.splitlines()[-1] == f"next: kdlab run {NAME}"

    def test_json_is_an_event_a_line_and_then_the_table(self, kdlab: Bench) -> None:
        code, out, err = kdlab(f"run {NAME} --json")
        *events, table = map(json.loads, out.splitlines())
        assert code == 0
        assert {event["event"] for event in events} >= {"JobQueued", "JobStarted", "JobFinished"}
        assert {line["schema"] for line in [*events, table]} == {1}
        assert [row["arm"]["text"] for row in table["rows"]][:2] == ["teacher", "baseline"]
        assert err == ""

    def test_quiet_leaves_the_table(self, kdlab: Bench) -> None:
        _, out, err = kdlab(f"run {NAME} -q")
        assert "baseline" in out
        assert err == ""

    def test_fresh_moves_the_old_jobs_aside(self, kdlab: Bench) -> None:
        kdlab.finish("teacher", ap=99.0)
        code, out, err = kdlab(f"run {NAME} --fresh")
        assert code == 0
        assert "moved 1 job folders" in err
        assert "99.0" not in out
        assert [path.parent.name for path in kdlab.runs.folder.glob("old/*/*/result.json")] == [TEACHER]

    def test_fresh_moves_what_was_found_of_the_old_weights_too(self, kdlab: Bench) -> None:
        kdlab.finish("teacher", ap=99.0)
        for name, parents in (
            ("diagnose-1", (TEACHER, "student-1")),
            ("diagnose-2", ("teacher-2", "student-2")),
        ):
            prepared(kdlab.runs, make(name, parents=parents))
        prepared(kdlab.runs, make("diagnose-3")).job.write_text("{")
        _, _, err = kdlab(f"run {NAME} --fresh")
        assert "moved 2 job folders" in err
        left = {path.name for path in kdlab.runs.folder.glob("jobs/diagnose-*")}
        assert left == {"diagnose-2", "diagnose-3"}

    def test_fresh_on_trial_moves_nothing(self, kdlab: Bench) -> None:
        kdlab.finish("teacher")
        _, out, _ = kdlab(f"run {NAME} --fresh --dry-run")
        assert "+ teacher" in out
        assert "measured, n=1" in out
        assert kdlab.runs.job(TEACHER).result.exists()

    def test_fresh_leaves_running_jobs_alone(self, kdlab: Bench) -> None:
        paths = kdlab.runs.job(TEACHER)
        paths.folder.mkdir(parents=True)
        with Lease.acquire(paths):
            code, _, err = kdlab(f"run {NAME} --fresh")
        assert code == 2
        assert f"got    {TEACHER}" in err

    @pytest.mark.parametrize(
        ("cost_s", "why"), [(3 * 3600.0, "15 GPU-hours"), (None, "on the GPU is not known")]
    )
    def test_an_expensive_plan_is_refused_where_nobody_can_be_asked(
        self, cost_s: float | None, why: str, kdlab: Bench
    ) -> None:
        kdlab.cost_s, kdlab.gpus = cost_s, 1
        code, _, err = kdlab(f"run {NAME}")
        assert code == 2
        assert why in err
        assert err.splitlines()[-1] == f"  fix    kdlab run {NAME} -y"
        assert not kdlab.runs.folder.exists()

    def test_yes_is_not_asked(self, kdlab: Bench) -> None:
        kdlab.cost_s, kdlab.gpus = 3 * 3600.0, 1
        code, _, err = kdlab(f"run {NAME} -y")
        assert "nobody can be asked" not in err
        assert code == 3, "there are no GPUs here"

    def test_a_changed_recipe_leaves_the_recipe_s_own_results_alone(self, kdlab: Bench) -> None:
        kdlab(f"run {NAME} --set schedule.epochs=1")
        names = {path.name for path in kdlab.results.iterdir()}
        assert names == {"quickstart-7f3a0001.md", "quickstart-7f3a0001.csv"}

    def test_results_that_cannot_be_written_lose_no_table(self, kdlab: Bench) -> None:
        kdlab.results.parent.touch()
        code, out, err = kdlab(f"run {NAME}")
        assert code == 0
        assert "baseline" in out
        assert "results/ cannot be written" in err

    def test_an_unknown_executor_is_answered_before_planning(self, kdlab: Bench) -> None:
        code, _, err = kdlab(f"run {NAME} --executor locl")
        assert code == 2
        assert "did you mean local?" in err
        assert "data set" not in err


class TestReport:
    def test_without_a_plan_names_the_quickstart(self, kdlab: Bench) -> None:
        code, out, err = kdlab("report --table")
        assert (code, out) == (2, "")
        assert "fix    kdlab run digits/quickstart" in err

    def test_shows_the_newest_plan_and_names_it(self, kdlab: Bench) -> None:
        _, table, _ = kdlab(f"run {NAME}")
        code, out, err = kdlab("report --table")
        assert (code, out) == (0, table)
        assert err.startswith("plan 7f3a0001 of digits/quickstart, the newest in runs\n")

    def test_several_plans_give_several_tables(self, kdlab: Bench) -> None:
        kdlab(f"run {NAME}")
        _, out, _ = kdlab(f"report 7f3a {NAME} --json")
        assert [table["footnotes"][-2:] for table in json.loads(out)["tables"]] == 2 * [
            ["plan 7f3a0001 of digits/quickstart", "made again by: kdlab run digits/quickstart"]
        ]

    def test_writes_on_request_also_what_is_incomplete(self, kdlab: Bench) -> None:
        kdlab.ends = {"rm": "fail"}
        kdlab(f"run {NAME}")
        kdlab("report --write")
        assert "seed 0 failed" in (kdlab.results / "quickstart.md").read_text()

    def test_an_unknown_plan_is_a_usage_error(self, kdlab: Bench) -> None:
        assert kdlab("report nothing")[0] == 2


class TestLs:
    def test_without_a_word_shows_recipes_and_counts(self, kdlab: Bench) -> None:
        code, out, err = kdlab("ls")
        assert code == 0
        first, *others = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
        assert first == "recipe"
        assert others == list(catalog.recipes())
        assert f"{len(catalog.methods())} methods" in err

    def test_recipes_that_commands_derived_come_after_those_of_the_catalog(self, kdlab: Bench) -> None:
        for name in ("tune/digits/gfl-3fa2c1", "ablate/x"):
            path = kdlab.runs.folder / "recipes" / f"{name}.yaml"
            path.parent.mkdir(parents=True)
            path.write_text(f"# About {name}\nseeds: [0]\n")
        _, out, _ = kdlab("ls recipes --json")
        *of_catalog, first, second = json.loads(out)["recipes"]
        assert [one["name"] for one in of_catalog] == list(catalog.recipes())
        assert (first["name"], first["about"], first["pair"]) == ("ablate/x", "About ablate/x", None)
        assert second["name"] == "tune/digits/gfl-3fa2c1"

    def test_recipes_are_told_by_their_pair_dataset_methods_seeds_and_what_they_took(
        self, kdlab: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        kdlab(f"run {NAME} --set seeds=[0,1]")
        _, out, _ = kdlab("ls recipes")
        (line,) = [line.split() for line in out.splitlines() if line.startswith(NAME)]
        # five stubs of a second each, and four
        assert " ".join(line) == f"{NAME} gfl r18/16 -> r18/8 digits rm, pfi 1 9s"

    def test_a_recipe_that_is_not_whole_takes_no_time(self, kdlab: Bench) -> None:
        kdlab.ends = {"rm": "fail"}
        kdlab(f"run {NAME}")
        found = {one["name"]: one for one in json.loads(kdlab("ls recipes --json")[1])["recipes"]}
        assert found[NAME]["cost_s"] is None
        assert found[NAME]["methods"] == ["rm", "pfi"]

    @pytest.mark.parametrize("what", ["methods", "detectors", "backbones", "datasets"])
    def test_lists_everything_in_the_catalog(self, what: str, kdlab: Bench) -> None:
        _, out, _ = kdlab(f"ls {what}")
        assert [line.split()[0] for line in out.splitlines()] == list(getattr(catalog, what)())

    def test_json_holds_one_list(self, kdlab: Bench) -> None:
        _, out, _ = kdlab("ls methods --json")
        found = json.loads(out)
        assert found.keys() == {"schema", "methods"}
        assert {method["name"] for method in found["methods"]} == set(catalog.methods())

    def test_runs_show_what_became_of_the_jobs(self, kdlab: Bench) -> None:
        kdlab.ends = {"rm": "fail"}
        kdlab(f"run {NAME}")
        assert "run  digits/quickstart  done 4, failed 1" in kdlab("ls runs")[1]

    def test_a_job_at_work_is_running_and_a_left_one_interrupted(self, kdlab: Bench) -> None:
        kdlab(f"run {NAME} --json")
        for arm in ("rm0", "pfi0"):
            paths = kdlab.runs.job(f"student-{arm}")
            paths.result.unlink()
            log = EventLog(paths.events, paths.folder.name, 2)
            log.write(JobStarted, device="cpu", epochs=1, iterations=9)
            log.close()
        with Lease.acquire(kdlab.runs.job("student-rm0")):
            assert "done 3, running 1, interrupted 1" in kdlab("ls runs")[1]

    def test_no_runs_are_said_on_stderr(self, kdlab: Bench) -> None:
        _, out, err = kdlab("ls runs")
        assert out == ""
        assert err.startswith("no runs yet")
        assert err.endswith("next: kdlab run digits/quickstart\n")

    def test_an_unknown_list_is_answered_with_the_nearest(self, kdlab: Bench) -> None:
        code, _, err = kdlab("ls method")
        assert code == 2
        assert "did you mean methods?" in err


def examples(verb: str, kdlab: Bench) -> list[tuple[str, str]]:
    """The commands that a verb's --help shows, and what it says that they print."""
    _, text, _ = kdlab(f"{verb} --help")
    block = text.partition("Examples:\n")[2].partition("\n\n")[0]
    lines = [line.removeprefix("    ") for line in block.splitlines()]
    starts = [place for place, line in enumerate(lines) if line.startswith("$ kdlab ")]
    ends = [*starts[1:], len(lines)]
    return [
        (lines[start].removeprefix("$ kdlab "), "\n".join(lines[start + 1 : end]) + "\n")
        for start, end in zip(starts, ends, strict=True)
    ]


@pytest.mark.parametrize("verb", sorted(app.verbs()))
def test_help_shows_two_examples_with_their_output(verb: str, kdlab: Bench) -> None:
    found = examples(verb, kdlab)
    assert len(found) == 2
    assert all(line.split()[0] == verb and said.strip() for line, said in found)


def without_values(text: str) -> str:
    """`text` with ids, times and numbers masked: they differ from machine to machine.

    The teacher of the quickstart is a file; here it is trained.
    """
    text = re.sub(r"\bevaluate-", "teacher-", text)
    text = re.sub(r"\b(plan |teacher-|student-)[0-9a-z]+\b", r"\1ID", text)
    text = re.sub(r"~[\dhms]+\b", "~T", text)
    return re.sub(r"[+-]?\b\d+(\.\d+)?\b", "N", text)


@pytest.mark.parametrize("verb", ["ablate", "ls", "plan", "run", "report", "show", "status", "logs", "stop"])
def test_examples_print_what_the_help_says(verb: str, kdlab: Bench) -> None:
    if verb in ("report", "status", "logs", "stop"):
        kdlab(f"run {NAME}")
    kdlab.cost_s, kdlab.cost_source = 52.0, "by a few steps"
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for line, said in examples(verb, kdlab):
        code, out, _ = kdlab(line)
        assert code == 0
        assert checker.check_output(*map(without_values, (said, out)), flags), f"kdlab {line} printed\n{out}"
