"""`kdlab tune` on simulated GPUs: what it asks, shows, writes, and says of how to go on."""

from __future__ import annotations

import doctest
import json
import math
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError

from kdlab import session
from kdlab.cli import app
from kdlab.jobs.paths import Runs
from kdlab.planning import facts as facts_of
from kdlab.planning import pace
from kdlab.recipe import loader as recipes
from kdlab.reporting import study_plots
from kdlab.running import scheduler
from kdlab.running.driver import alone
from kdlab.running.executors import base
from kdlab.tuning import search
from kdlab.tuning.study import OptunaStudy
from tests.cli.test_verbs import examples, without_values
from tests.planning.test_build import FACTS
from tests.stubs.simulated import Simulated
from tests.tuning.test_tuner import LEARNED, likes_pfi_at_30, weights

NAME = "digits/gfl"
WRITE_PLOTS = study_plots.write_plots


class Bench:
    """A folder in which `kdlab` searches `digits/gfl` on simulated GPUs."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.runs, self._capfd = Runs(folder / "runs"), capfd
        self.executor = Simulated(self.runs, 2, likes_pfi_at_30)
        self.results = folder / "results" / "tune" / "digits"

    def __call__(self, line: str) -> tuple[int, str, str]:
        """Run a command line; exit code, stdout, stderr."""
        code = app.main(shlex.split(line))
        out, err = self._capfd.readouterr()
        return code, out, err

    def recipe(self) -> str:
        """The name of the one that was written."""
        folder = self.runs.folder / "recipes"
        (path,) = folder.rglob("*.yaml")
        return path.relative_to(folder).with_suffix("").as_posix()


@pytest.fixture
def kdlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    bench = Bench(tmp_path, capfd)
    facts = replace(FACTS, device="cuda", gpu_gb=80.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDLAB_RUNS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(facts_of, "gather", lambda *_: facts)
    monkeypatch.setattr(search, "tuning_split", lambda *_: LEARNED)
    monkeypatch.setattr(search, "images_of", lambda *_: (800, 200))
    monkeypatch.setattr(pace, "priced", lambda plan, *_: plan)
    monkeypatch.setattr(base, "load", lambda *_: bench.executor)
    monkeypatch.setattr(session, "followers", lambda *_: [])
    monkeypatch.setattr(scheduler, "LOOK_S", 0.0)
    monkeypatch.setitem(scheduler.run.__kwdefaults__, "poll_s", 0.0)
    # the slowest part by far
    monkeypatch.setattr(study_plots, "write_plots", lambda *_: [])
    monkeypatch.setattr(os, "fsync", lambda file: None)
    return bench


def test_dry_run_shows_what_would_be_searched_and_runs_nothing(kdlab: Bench) -> None:
    code, out, err = kdlab(f"tune {NAME} --trials 20 --dry-run")
    assert code == 0
    study, *ranges, cost = out.splitlines()
    assert study.startswith("study digits/gfl-")
    assert study.endswith("  20 trials of rm+pfi on 800 images, measured on 200 others")
    assert ranges == [
        "  rm.weight   0.0333 to 30, until its term is measured",
        "  pfi.weight  3.33 to 3000, until its term is measured",
    ]
    assert cost.startswith("at most 22 jobs, cost unknown")
    assert err.splitlines()[-1] == f"next: kdlab tune {NAME} --trials 20"
    assert not kdlab.runs.folder.exists()


def test_dry_run_shows_ranges_of_the_recipe_words_and_students(kdlab: Bench) -> None:
    changes = "--set tune.space={pfi.weight:[1,100]} --set tune.student={width:[8,16]}"
    _, out, _ = kdlab(f"tune {NAME} --over pfi.weight,pfi.detach_weight {changes} --dry-run")
    assert [line.split(maxsplit=1) for line in out.splitlines()[1:4]] == [
        ["pfi.weight", "1 to 100"],
        ["pfi.detach_weight", "false, true"],
        ["student.width", "8, 16"],
    ]


def test_dry_run_as_json_is_one_object(kdlab: Bench) -> None:
    code, out, err = kdlab(f"tune {NAME} --trials 5 --dry-run --json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["schema"], told["arm"], told["trials"], told["images"]) == (1, "rm+pfi", 5, [800, 200])
    assert [one["name"] for one in told["space"]] == ["rm.weight", "pfi.weight"]
    assert len(told["plan"]["jobs"]) == 7


def test_two_objectives_say_that_nothing_is_ended_early(kdlab: Bench) -> None:
    said = "no trial is ended early, for Optuna prunes by one objective only"
    two = "--objectives AP,latency --set tune.student={width:[8,16]}"
    assert said in kdlab(f"tune {NAME} {two} --dry-run")[1]
    assert said not in kdlab(f"tune {NAME} --dry-run")[1]


def test_so_few_trials_that_all_are_references_search_nothing_and_it_is_said(kdlab: Bench) -> None:
    said = "note: nothing will be searched: the first 2 trials are references (no method; defaults)"
    _, out, _ = kdlab(f"tune {NAME} --trials 2 --dry-run")
    assert f"{said}; --trials 12 tries ten values besides" in out.splitlines()
    assert "nothing will be searched" not in kdlab(f"tune {NAME} --trials 3 --dry-run")[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--over pfi.wieght", "did you mean weight?"),
        ("--over mgd.weight", "no arm has all that is to be tuned"),
        ("--objectives latency", "must be one AP, or that and latency"),
        ("--set tune.arm=nothing", "tune.arm is not an arm of the recipe"),
        ("--set tune.seed=1", "tune.seed is among seeds"),
        ("--over rm.quality", "rm cannot serve this pair"),
        ("--executor locl", "did you mean local?"),
    ],
)
def test_what_cannot_be_searched_is_a_usage_error(kdlab: Bench, options: str, said: str) -> None:
    code, out, err = kdlab(f"tune {NAME} {options} -y")
    assert (code, out) == (2, "")
    assert said in err
    assert not kdlab.executor.started


def test_unknown_cost_on_a_gpu_is_asked_about(kdlab: Bench) -> None:
    code, _, err = kdlab(f"tune {NAME} --trials 3")
    assert code == 2
    assert "on the GPU is not known" in err
    assert err.splitlines()[-1] == f"  fix    kdlab tune {NAME} --trials 3 -y"


def test_trials_to_come_cost_something_though_earlier_ones_are_done(kdlab: Bench) -> None:
    assert kdlab(f"tune {NAME} --trials 4 -y --set tune.pruner=none")[0] == 0
    _, out, _ = kdlab(f"tune {NAME} --trials 10 --dry-run --set tune.pruner=none")
    assert out.splitlines()[0].endswith("; 4 have begun")
    (price,) = [line for line in out.splitlines() if line.startswith("at most")]
    assert price.startswith("at most 8 jobs, 2 reused, ~")


def test_dry_run_of_a_finished_search_has_nothing_left_to_run(kdlab: Bench) -> None:
    kdlab(f"tune {NAME} --trials 3 -y")
    _, out, _ = kdlab(f"tune {NAME} --trials 3 --dry-run --json")
    told = json.loads(out)
    assert (told["trials"], told["begun"]) == (3, 3)
    assert all(job["done"] for job in told["plan"]["jobs"])


def test_dry_run_with_a_budget_counts_the_trials_that_it_pays_for(kdlab: Bench) -> None:
    kdlab(f"tune {NAME} --trials 4 -y --set tune.pruner=none")
    trial_h = (
        search.prepare(NAME, ["tune.pruner=none"], kdlab.runs, kdlab.executor.machine).trial.cost_s / 3600
    )
    line = f"tune {NAME} --trials 10 --budget {1.5 * trial_h} --dry-run --set tune.pruner=none"
    assert "at most 4 jobs, 2 reused" in kdlab(line)[1]


def test_search_ends_in_its_table_its_files_and_the_recipe(
    kdlab: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_plots, "write_plots", WRITE_PLOTS)
    code, out, err = kdlab(f"tune {NAME} --trials 8 -y")
    assert code == 0
    assert out.splitlines()[0].endswith(": 8 trials by AP")
    rows = {line.split()[0]: line for line in out.splitlines()[2:10]}
    assert rows.keys() == set("01234567")
    assert "no method" in rows["0"]
    assert "defaults" in rows["1"]
    name = kdlab.recipe()
    assert err.splitlines()[-1].startswith(f"next: kdlab run {name} ")
    assert "-  rm+pfi: {rm: {}, pfi: {}}" in err
    # where the weights were searched, once their terms are measured
    ranges = "rm.weight 0.5 to 150; pfi.weight 0.1 to 30"
    assert f"searching {ranges}" in err
    assert f"# searched: {ranges}" in (kdlab.runs.folder / "recipes" / f"{name}.yaml").read_text()
    stem = name.removeprefix("tune/digits/")
    assert {path.name for path in kdlab.results.iterdir()} >= {
        f"{stem}.md",
        f"{stem}.csv",
        f"{stem}-slices.png",
    }
    rows_written = (kdlab.results / f"{stem}.csv").read_text().splitlines()
    assert sum(not line.startswith("#") for line in rows_written) == 9


def test_recipe_that_was_found_is_planned_and_shares_teacher_and_baseline(kdlab: Bench) -> None:
    kdlab(f"tune {NAME} --trials 8 -y")
    found = {}
    for name in (NAME, kdlab.recipe()):
        code, out, _ = kdlab(f"plan {name} --json")
        assert code == 0
        jobs = [planned["job"] for planned in json.loads(out)["jobs"]]
        found[name] = {(job["arm"], job["spec"]["seed"]): job["id"] for job in jobs}
    before, after = found.values()
    assert {arm for arm, _ in after} == {"teacher", "baseline", "rm+pfi", "rm+pfi[tuned]"}
    shared = [("teacher", 0), *((arm, seed) for arm in ("baseline", "rm+pfi") for seed in range(3))]
    assert all(before[job] == after[job] for job in shared)
    best = recipes.load(kdlab.recipe()).arms["rm+pfi[tuned]"]["pfi"].weight
    assert abs(math.log10(best / 30)) < 1.5


def test_json_is_an_event_a_line_and_then_the_table(kdlab: Bench) -> None:
    code, out, err = kdlab(f"tune {NAME} --trials 4 -y --json")
    *events, table, found = map(json.loads, out.splitlines())
    assert {one["name"]: (one["low"], one["high"]) for one in found["space"]} == {
        "rm.weight": (0.5, 150.0),
        "pfi.weight": (0.1, 30.0),
    }
    assert (code, err) == (0, "")
    assert {event["event"] for event in events} >= {"JobQueued", "JobStarted", "JobEvaluated", "JobFinished"}
    assert {line["schema"] for line in [*events, table]} == {1}
    assert len(table["rows"]) == 4


def test_finished_search_shows_its_table_again_and_trains_nothing(kdlab: Bench) -> None:
    _, table, _ = kdlab(f"tune {NAME} --trials 4 -y")
    before = len(kdlab.executor.started)
    code, again, _ = kdlab(f"tune {NAME} --trials 4 -y")
    assert (code, again) == (0, table)
    assert len(kdlab.executor.started) == before


def test_plan_of_a_search_that_goes_on_holds_its_earlier_trials_too(kdlab: Bench) -> None:
    line = f"tune {NAME} -y --set tune.pruner=none --trials"
    kdlab(f"{line} 3")
    _, _, err = kdlab(f"{line} 5")
    (path,) = (kdlab.runs.folder / "plans").glob("*.json")
    jobs = [planned["job"] for planned in json.loads(path.read_text())["jobs"]]
    assert [job["spec"]["kind"] for job in jobs] == ["teacher", "scale", *["student"] * 5]
    assert len({job["id"] for job in jobs}) == 7
    ends = [line for line in err.splitlines() if " done: " in line]
    assert len(ends) == 2
    assert "(7 of 7 done)" in ends[-1]


def test_budget_begins_no_further_trial(kdlab: Bench) -> None:
    code, out, err = kdlab(f"tune {NAME} --trials 30 --budget 0 -y")
    assert code == 1
    assert "0 trials" in out
    assert err.splitlines()[-1] == f"retry: kdlab tune {NAME} --trials 30 --budget 0 -y"
    assert all(name.startswith(("teacher", "scale")) for name in kdlab.executor.started)


def test_no_method_that_did_best_is_said_and_no_recipe_written(kdlab: Bench) -> None:
    kdlab.executor.ap = lambda job, epoch: 1.0 if weights(job) else 9.0
    code, _, err = kdlab(f"tune {NAME} --trials 4 -y")
    assert code == 0
    assert "no method at all did best" in err
    assert not (kdlab.runs.folder / "recipes").exists()


def test_default_weights_that_did_best_make_a_recipe_that_loads(kdlab: Bench) -> None:
    kdlab.executor.ap = lambda job, epoch: 9.0 if weights(job) == {"rm": 1.0, "pfi": 100.0} else 1.0
    code, _, err = kdlab(f"tune {NAME} --trials 4 -y --set 'methods.pfi={{weight: 10}}'")
    assert code == 0
    assert list(recipes.load(kdlab.recipe()).arms) == ["baseline", "rm+pfi", "rm+pfi[defaults]"]
    assert "trial 1 had it" in err


def test_each_trial_of_the_front_has_its_recipe(kdlab: Bench) -> None:
    kdlab.executor.ap = lambda job, epoch: float(job.spec.model.width)
    changes = "--over pfi.weight --objectives AP,latency --set tune.student={width:[8,16]}"
    code, _, err = kdlab(f"tune {NAME} {changes} --trials 8 -y")
    assert code == 0
    paths = sorted((kdlab.runs.folder / "recipes").rglob("*.yaml"))
    assert paths
    widths = {recipes.load(str(path)).student.width for path in paths}
    assert widths <= {8, 16}
    assert "next: kdlab run tune/digits/gfl-" in err


def test_failed_teacher_is_told_and_nothing_is_tried(kdlab: Bench) -> None:
    kdlab.executor.fails = lambda job, attempt: job.kind == "teacher"
    code, out, err = kdlab(f"tune {NAME} --trials 4 -y")
    assert (code, out) == (1, "")
    assert "the loss is not finite" in err
    assert err.splitlines()[-1] == f"retry: kdlab tune {NAME} --trials 4 -y"


def test_trials_that_all_fail_end_the_search(kdlab: Bench) -> None:
    kdlab.executor.fails = lambda job, attempt: job.kind == "student"
    code, out, _ = kdlab(f"tune {NAME} --trials 40 -y")
    assert code == 1
    # two at once, and none begins once three have failed
    assert "4 failed" in out


def test_database_that_is_lost_in_the_middle_is_told_and_the_search_goes_on_later(
    kdlab: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageInternalError("words of Optuna's own") from OSError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(OptunaStudy, "finish", full)
        code, _, err = kdlab(f"tune {NAME} --trials 4 -y")
    assert code == 3
    assert "the study's storage cannot be read or written" in err
    assert "database or disk is full" in err
    assert kdlab(f"tune {NAME} --trials 4 -y")[0] == 0


def test_second_command_at_the_same_search_is_refused(kdlab: Bench) -> None:
    kdlab(f"tune {NAME} --trials 2 -y")
    (plan,) = (kdlab.runs.folder / "plans").glob("*.json")
    with alone(plan.stem, kdlab.runs):
        code, _, err = kdlab(f"tune {NAME} --trials 9 -y")
    assert code == 2
    assert "another command is at this search already" in err
    assert f"kdlab status {plan.stem}" in err


def test_lines_count_the_trials_to_come_and_tell_pruned_ones(kdlab: Bench) -> None:
    kdlab.executor.gpus = 1
    _, _, err = kdlab(f"tune {NAME} --trials 12 -y --set tune.pruner=median")
    counts = [line.partition("(")[2] for line in err.splitlines() if " done: " in line]
    assert counts[0].startswith("1 of 14 done")
    assert any(
        line.endswith("pruned") or " pruned" in line for line in err.splitlines() if "student-" in line
    )


class TestReport:
    def test_passes_over_searches(self, kdlab: Bench) -> None:
        kdlab(f"tune {NAME} --trials 2 -y")
        code, out, err = kdlab("report --table")
        assert (code, out) == (2, "")
        assert "kdlab run digits/quickstart" in err

    def test_refuses_the_id_of_a_search_with_the_verb_that_compares_its_trials(self, kdlab: Bench) -> None:
        kdlab(f"tune {NAME} --trials 2 -y")
        (plan,) = (kdlab.runs.folder / "plans").glob("*.json")
        code, _, err = kdlab(f"report {plan.stem} --table")
        assert code == 2
        assert f"fix    kdlab tune {NAME}" in err


def test_examples_print_what_the_help_says(kdlab: Bench) -> None:
    kdlab.executor.ap = lambda job, epoch: 9.0 + bool(weights(job))
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for line, said in examples("tune", kdlab):  # type: ignore[arg-type]
        code, out, _ = kdlab(f"{line} -y")
        assert code == 0
        told = [without_values(re.sub(r"gfl-[\w.]+", "gfl-ID", text)) for text in (said, out)]
        assert checker.check_output(*told, flags), f"kdlab {line} printed\n{out}"
