"""What kdlab report prints and writes, from finished jobs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlab import catalog
from kdlab.jobs.resampled import RESAMPLES, Resampled
from kdlab.recipe import loader as recipes
from tests.cli.verbs.conftest import Verb
from tests.reporting.conftest import Workbench
from tests.stubs.jobs import method

APS = {"baseline": (20.0, 21.0, 19.5), "rm": (22.0, 23.1, 21.6), "pfi": (20.5, 21.0, 20.5)}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """A plan of three arms with three seeds each, all of which left what their detections met."""
    monkeypatch.chdir(tmp_path)
    for name in ("KDLAB_RUNS", "COLUMNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    made = Workbench(tmp_path / "runs")
    jobs = {(arm, seed): made.job(arm, seed) for arm, aps in APS.items() for seed in range(len(aps))}
    jobs["teacher", 0] = made.job("teacher")
    for (arm, seed), job in jobs.items():
        made.finish(job, APS[arm][seed] if arm in APS else 30.0, timing={"latency_s": 0.0123})
        ap = np.random.default_rng(seed).normal(20, 1, RESAMPLES)
        Resampled(ap, 10, "truth").write(made.runs.job(job.id).resampled)
    recipe = {"name": "digits/quickstart", "path": "gone.yaml", "title": "GFL, digits"}
    recipe["arms"] = {arm: {} if arm == "baseline" else {arm: {}} for arm in APS}  # type: ignore[assignment]
    made.plan(list(jobs.values()), recipe=recipe)
    return made


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("terminal", "GFL, digits, n=3\n"),
        ("md", "**GFL, digits, n=3**\n"),
        ("latex", "\\documentclass"),
        ("csv", "# GFL, digits, n=3\n"),
        ("html", "<!doctype html>"),
        ("explain", "GFL, digits, n=3\n"),
        ("json", '{"schema": 1, "tables": [{'),
    ],
)
def test_every_format_goes_to_stdout(kdlab: Verb, form: str, begins: str) -> None:
    code, out, _ = kdlab(f"report --format {form}")
    assert code == 0
    assert out.lower().startswith(begins.lower())
    assert "+2.1" in out or "2.1" in out


def test_json_is_the_same_by_either_name(kdlab: Verb) -> None:
    assert kdlab("report --format json")[1] == kdlab("report --json")[1]


def test_an_account_says_how_a_number_was_made(kdlab: Verb) -> None:
    out = kdlab("report --format explain")[1]
    assert "mean ± sample deviation of seed 0: 22.0, seed 1:" in out
    told = " ".join(out.split())
    assert "t interval of the mean difference over 3 seeds" in told
    assert "1,000 resamples of 10 images" in told
    assert "p corrected with Holm over 2 arms" in told


def test_columns_and_order_are_chosen(kdlab: Verb) -> None:
    out = kdlab("report --format csv --cols dAP,latency_ms --sort dAP")[1]
    rows = list(csv.DictReader(line for line in io.StringIO(out) if not line.startswith("#")))
    assert list(rows[0]) == ["arm", "dAP", "latency_ms"]
    assert [row["arm"] for row in rows] == ["rm", "pfi", "teacher", "baseline"]
    assert rows[0]["latency_ms"] == "12.30"


@pytest.mark.parametrize("option", ["--cols AP,dap", "--sort dap"])
def test_an_unknown_column_is_answered_with_the_known_ones(kdlab: Verb, option: str) -> None:
    code, out, err = kdlab(f"report {option}")
    assert (code, out) == (2, "")
    assert "got    dap" in err
    assert "did you mean dAP?" in err
    assert "latency_ms" in err


COMMAND = "kdlab run mine.yaml --set 'seeds=[0,1]'"
CHANGED = "the recipe has changed since or is not here, so that now makes another plan"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds: [0]", "seeds: [7]", f"made again by: {COMMAND}"),
        ("seeds: [0]", "seeds: [0]\nresources: {workers: 1}", f"made again by: {COMMAND}"),
        ("lr: 4e-3", "lr: 5e-3", f"made by: {COMMAND}; {CHANGED}"),
        ("student:", "studnet:", f"made by: {COMMAND}; {CHANGED}"),
    ],
)
def test_a_table_says_whether_its_command_still_makes_it(
    bench: Workbench, kdlab: Verb, tmp_path: Path, old: str, new: str, told: str
) -> None:
    path, text = tmp_path / "mine.yaml", catalog.recipes()["digits/quickstart"].path.read_text()
    path.write_text(text)
    recipe = recipes.load("mine.yaml", ["seeds=[0,1]"]).to_dict()
    bench.plan([bench.job(arm) for arm in ("teacher", *APS)], recipe=recipe)
    path.write_text(text.replace(old, new))
    assert told in kdlab("report")[1].splitlines()


def test_classes_are_shown_on_request(kdlab: Verb) -> None:
    out = kdlab("report --by-class --format csv")[1]
    assert out.splitlines()[0] == "# GFL, digits, n=3: AP by class"
    assert "class,teacher,baseline,rm,pfi" in out.splitlines()
    assert "seven,41.0,41.0,41.0,41.0" in out.splitlines()


def test_a_table_is_written_in_the_format_it_is_asked_for_in(kdlab: Verb, tmp_path: Path) -> None:
    err = kdlab("report --format latex --write")[2]
    [path] = (tmp_path / "results").rglob("*.*")
    assert path.suffix == ".tex"
    assert f"written: {path.relative_to(tmp_path)}" in err


def test_published_numbers_of_no_known_pair_are_told_as_missing(kdlab: Verb) -> None:
    assert "reported: no published number of this pair is on record" in kdlab("report --reported")[1]


def test_published_numbers_stand_below_marked_as_of_another_codebase(kdlab: Verb, bench: Workbench) -> None:
    path = next(bench.runs.plans.glob("*.json"))
    path.write_text(path.read_text().replace("digits/quickstart", "coco/retinanet_r101_r50"))
    out = kdlab("report --reported --format csv")[1]
    rows = list(csv.DictReader(line for line in io.StringIO(out) if not line.startswith("#")))
    [fgfi] = [row for row in rows if row["arm"] == "fgfi"]
    assert (fgfi["AP"], fgfi["dAP"], fgfi["source"]) == ("38.6", "1.2", "FGD Tab. 2, 2x")
    assert "another codebase; compare the gain only" in out


def test_plots_are_written_and_named(kdlab: Verb, tmp_path: Path) -> None:
    code, _, err = kdlab("report --plots")
    assert code == 0
    made = sorted(path.name for path in (tmp_path / "results").rglob("*.png"))
    assert any("gains" in name for name in made)
    assert all(name in err for name in made)


def test_the_page_has_its_plots_inside_also_where_it_is_written(kdlab: Verb, tmp_path: Path) -> None:
    out = kdlab("report --plots --format html --write")[1]
    assert "data:image/svg+xml;base64," in out
    [page] = (tmp_path / "results").rglob("*.html")
    assert page.read_text() == out
    assert list((tmp_path / "results").rglob("*.pdf"))


@pytest.mark.parametrize("option", ["--write", "--plots"])
def test_results_that_cannot_be_written_are_told_and_lose_no_table(
    kdlab: Verb, tmp_path: Path, option: str
) -> None:
    (tmp_path / "results").touch()
    code, out, err = kdlab(f"report {option}")
    assert code == 0
    assert "baseline" in out
    assert "warning: results/ cannot be written" in err


def test_a_damaged_result_is_named(kdlab: Verb, bench: Workbench) -> None:
    bench.runs.job("student-rm1").result.write_text("{")
    code, out, err = kdlab("report")
    assert (code, out) == (3, "")
    assert "student-rm1/result.json" in err


def test_a_damaged_plan_is_named(kdlab: Verb, bench: Workbench) -> None:
    path = next(bench.runs.plans.glob("*.json"))
    path.write_text(path.read_text()[:100])
    code, _, err = kdlab("report")
    assert code == 3
    assert path.name in err


def test_commas_inside_the_name_of_an_arm_do_not_part_columns(kdlab: Verb, bench: Workbench) -> None:
    path = next(bench.runs.plans.glob("*.json"))
    path.write_text(path.read_text().replace('"rm"', '"rm[rank=loc,weight=2]"'))
    out = kdlab('report --by-class --format csv --cols "rm[rank=loc,weight=2], pfi"')[1]
    assert 'class,"rm[rank=loc,weight=2]",pfi' in out.splitlines()


def test_published_numbers_have_no_classes(kdlab: Verb) -> None:
    assert kdlab("report --by-class --reported")[0] == 2


class TestQuery:
    """Runs that MLflow's filter lets through."""

    @pytest.fixture
    def asked(self, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Answers every filter with all jobs; keeps the filters."""
        filters: list[str] = []

        def fitting(wanted: str, _runs: Any) -> list[str]:
            filters.append(wanted)
            return sorted(path.name for path in (bench.runs.folder / "jobs").glob("student-*"))

        for path in (bench.runs.folder / "jobs").iterdir():
            arm, seed = path.name.rpartition("-")[2][:-1], int(path.name[-1])
            taught = arm not in ("baseline", "teacher")
            settings = {
                "model": {"detector": "gfl", "backbone": "resnet18"},
                "dataset": {"name": "digits", "fingerprint": "01"},
                "schedule": {"epochs": 6},
                "methods": {arm: method(arm)} if taught else {},
                "teacher": {"detector": "gfl"} if taught else None,
            }
            parents = ("teacher-teacher0",) if taught else ()
            write(bench, bench.job(arm, seed, settings=settings, parents=parents))
        monkeypatch.setattr("kdlab.reporting.queries._fitting", fitting)
        return filters

    def test_what_fits_is_one_table_with_its_teacher(self, kdlab: Verb, asked: list[str]) -> None:
        code, out, _ = kdlab("report \"mlflow:tags.`kdlab.arm` = 'rm'\" --format csv")
        assert code == 0
        assert asked == ["tags.`kdlab.arm` = 'rm'"]
        assert out.startswith("# gfl resnet18 on digits, 6 epochs, n=3\n")
        rows = list(csv.DictReader(line for line in io.StringIO(out) if not line.startswith("#")))
        assert [row["arm"] for row in rows] == ["teacher", "baseline", "pfi", "rm"]

    def test_jobs_of_another_schedule_stand_apart(
        self, kdlab: Verb, asked: list[str], bench: Workbench
    ) -> None:
        length = {"epochs": None, "iterations": 9000}
        for seed in range(3):
            job = read(bench, f"student-pfi{seed}")
            write(bench, job | {"spec": job["spec"] | {"schedule": job["spec"]["schedule"] | length}})
        tables = json.loads(kdlab("report mlflow: --json")[1])["tables"]
        assert [table["title"] for table in tables] == [
            "gfl resnet18 on digits, 9000 iterations, n=3",
            "gfl resnet18 on digits, 6 epochs, n=3",
        ]
        assert [[row["arm"]["text"] for row in table["rows"]] for table in tables] == [
            ["teacher", "pfi"],
            ["teacher", "baseline", "rm"],
        ]

    def test_one_name_for_two_sets_of_methods_becomes_two_arms(
        self, kdlab: Verb, asked: list[str], bench: Workbench
    ) -> None:
        job = read(bench, "student-rm2")
        write(bench, job | {"spec": job["spec"] | {"methods": {"rm": method("rm", weight=9.0)}}})
        [table] = json.loads(kdlab("report mlflow: --json")[1])["tables"]
        assert [row["arm"]["text"] for row in table["rows"]] == ["teacher", "baseline", "pfi", "rm", "rm (2)"]

    def test_a_job_whose_folder_is_not_here_is_refused(
        self, kdlab: Verb, asked: list[str], bench: Workbench
    ) -> None:
        bench.runs.job("student-rm2").result.unlink()
        code, out, err = kdlab("report mlflow:")
        assert (code, out) == (2, "")
        assert "student-rm2" in err


def read(bench: Workbench, job: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bench.runs.job(job).job.read_text())
    return content


def write(bench: Workbench, job: Any) -> None:
    content = job if isinstance(job, dict) else job.to_dict()
    bench.runs.job(content["id"]).job.write_text(json.dumps(content))
