"""What kdlab report --errors prints, writes and refuses, and where it gets detections of older jobs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kdlab import children
from kdlab.errors import JobError
from kdlab.jobs.detections import Detections
from tests.cli.verbs.conftest import Verb
from tests.reporting.conftest import Workbench
from tests.reporting.test_tide import scattered

JOBS = [("teacher", 0), ("baseline", 0), ("baseline", 1), ("rm", 0), ("rm", 1)]
NAME = "digits/quickstart"


class Detecting:
    """Stands in for the process that detects once more; `fails` are jobs of which it cannot."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: set[str] = set()

    def __call__(self, module: str, request: dict[str, Any], cut_off: str) -> dict[str, Any]:
        assert module == "kdlab.training.redetecting"
        folder = Path(request["job"])
        self.asked.append(folder.name)
        if folder.name in self.fails:
            raise JobError("the weights are broken", where=folder.name, fix="train it again")
        scattered(4).write(folder / "detections.npz")
        return {"AP": 30.0}


@pytest.fixture
def detecting(monkeypatch: pytest.MonkeyPatch) -> Detecting:
    made = Detecting()
    monkeypatch.setattr(children, "told", made)
    return made


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detecting: Detecting) -> Workbench:
    """A plan of finished jobs, all of which kept their detections, on the same objects."""
    monkeypatch.chdir(tmp_path)
    for name in ("KDLAB_RUNS", "COLUMNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    made = Workbench(tmp_path / "runs")
    jobs = {key: made.job(*key) for key in JOBS}
    for place, (key, job) in enumerate(jobs.items()):
        made.finish(job, 30.0 + place)
        one = scattered(4)
        keep = slice(None, None, 1 + (key[0] != "teacher"))
        thinned = {name: getattr(one, name)[keep] for name in ("image", "box", "score", "label")}
        Detections(**{**vars(one), **thinned}).write(made.runs.job(job.id).detections)
    recipe: dict[str, Any] = {"name": NAME, "path": "gone.yaml", "title": "GFL, digits"}
    made.plan(list(jobs.values()), recipe=recipe | {"arms": {"baseline": {}, "rm": {"rm": {}}}})
    return made


def test_three_tables_follow_one_another(kdlab: Verb, detecting: Detecting) -> None:
    code, out, err = kdlab("report --errors")
    assert code == 0
    lost, changes, confused = out.split("\n\n")
    assert "GFL, digits, n=2: where AP50 is lost" in lost
    assert "n=2: what arms change of it" in changes
    assert "n=2: classes taken for one another" in confused
    assert "score 0.3 or more" in confused
    assert "IoU 0.5" in confused
    assert err.splitlines()[-1] == f"next: kdlab report {NAME} --errors --plots"
    # what jobs kept is not made again
    assert detecting.asked == []


def test_jobs_that_kept_none_detect_once(bench: Workbench, kdlab: Verb, detecting: Detecting) -> None:
    bench.runs.job("student-rm1").detections.unlink()
    bench.runs.job("student-baseline0").detections.write_bytes(b"PK damaged")
    _, out, err = kdlab("report --errors")
    assert detecting.asked == ["student-baseline0", "student-rm1"]
    assert "rm seed 1 kept no detections: detecting once more, job 5 of 5" in err
    assert "not known" not in out
    kdlab("report --errors")
    assert len(detecting.asked) == 2


def test_a_job_that_cannot_detect_is_left_out(bench: Workbench, kdlab: Verb, detecting: Detecting) -> None:
    bench.runs.job("student-rm1").detections.unlink()
    detecting.fails = {"student-rm1"}
    code, out, err = kdlab("report --errors")
    assert code == 0
    assert "left out: rm seed 1: the weights are broken; train it again" in err
    assert "rm: no errors of 1 of 2 jobs" in out


def test_no_detections_at_all_is_an_error(bench: Workbench, kdlab: Verb, detecting: Detecting) -> None:
    for arm, seed in JOBS:
        bench.runs.job(bench.job(arm, seed).id).detections.unlink()
    detecting.fails = {bench.job(*key).id for key in JOBS}
    code, out, err = kdlab("report --errors")
    assert (code, out) == (1, "")
    assert "error: student-rm1  the weights are broken" in err


def test_nothing_finished_is_an_error_with_the_command_that_trains(bench: Workbench, kdlab: Verb) -> None:
    for key in JOBS:
        bench.runs.job(bench.job(*key).id).result.unlink()
    code, _, err = kdlab("report --errors")
    assert code == 2
    assert f"no job of {NAME} has finished" in err
    assert "kdlab run" in err


def test_an_unfinished_job_is_told_and_not_asked(bench: Workbench, kdlab: Verb, detecting: Detecting) -> None:
    paths = bench.runs.job("student-rm1")
    paths.result.unlink()
    paths.detections.unlink()
    _, out, err = kdlab("report --errors")
    assert detecting.asked == []
    assert "rm: n=1 of 2, seed 1 queued" in out
    assert err.splitlines()[-1] == f"next: kdlab run {NAME}"


def test_a_column_of_errors_needs_no_option(kdlab: Verb) -> None:
    out = kdlab("report --cols AP,loc,both_find --format csv")[1]
    rows = list(csv.DictReader(line for line in out.splitlines() if not line.startswith("#")))
    assert list(rows[0]) == ["arm", "AP", "AP_sd", "loc", "both_find"]
    assert float(rows[1]["loc"]) > 0
    assert "classes taken" not in out


def test_a_report_without_errors_reads_no_detections(
    bench: Workbench, kdlab: Verb, detecting: Detecting
) -> None:
    bench.runs.job("student-rm1").detections.unlink()
    assert kdlab("report")[0] == 0
    assert detecting.asked == []


def test_json_has_tables_and_matrices(kdlab: Verb) -> None:
    code, out, err = kdlab("report --errors --json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert len(told["tables"]) == 3
    [confusion] = told["confusion"]
    assert (confusion["score"], confusion["iou"]) == (0.3, 0.5)
    assert confusion["arms"].keys() == {"teacher", "baseline", "rm"}
    assert {len(row) for row in confusion["arms"]["rm"]} == {11}
    assert "confusion" not in json.loads(kdlab("report --json")[1])


def test_files_lie_beside_those_of_the_report(kdlab: Verb, tmp_path: Path) -> None:
    kdlab("report --write")
    first = {path.name: path.read_bytes() for path in (tmp_path / "results/digits").iterdir()}
    kdlab("report --errors --write --plots")
    after = {path.name: path.read_bytes() for path in (tmp_path / "results/digits").iterdir()}
    assert {name: after[name] for name in first} == first
    stem = next(name for name in first if name.endswith(".md")).removesuffix(".md")
    tables = {f"{stem}-errors{part}.{end}" for part in ("", "-gains", "-confused") for end in ("md", "csv")}
    assert {*tables, f"{stem}-errors-confusion.csv"} <= after.keys()
    for plot in ("ap50_lost", "confusion"):
        assert {f"{stem}-{plot}.{end}" for end in ("png", "pdf", "csv")} <= after.keys()


def test_a_page_has_all_tables_and_the_plots(kdlab: Verb, tmp_path: Path) -> None:
    page = kdlab("report --errors --plots --format html --write")[1]
    assert page.count("<table") == 3
    assert page.count("data:image/svg+xml") >= 2
    [file] = (tmp_path / "results/digits").glob("*-errors.html")
    assert file.read_text().count("<table") == 3


@pytest.mark.parametrize("option", ["--by-class", "--reported"])
def test_what_has_no_errors_is_refused(kdlab: Verb, option: str) -> None:
    code, out, err = kdlab(f"report --errors {option}")
    assert (code, out) == (2, "")
    assert f"{option} has no errors to tell" in err


@pytest.mark.parametrize("width", [80, 120])
def test_tables_keep_to_the_width(width: int, kdlab: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = kdlab("report --errors")[1]
    assert max(map(len, out.splitlines())) <= width
    # the errors stay
    heading = next(line for line in out.splitlines() if line.startswith("arm ")).split()
    assert heading[1:10] == ["AP50", "cls", "loc", "both", "dup", "bkg", "miss", "FP", "FN"]


def test_a_page_of_a_plan_is_written_with_its_own_tables(kdlab: Verb) -> None:
    out = kdlab(f"report --errors --format md {NAME} {NAME}")[1]
    assert out.count("where AP50 is lost") == 2
