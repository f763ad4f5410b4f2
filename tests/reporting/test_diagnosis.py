"""Diagnoses of students as tables and figures, on objects made by hand."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlab.errors import MachineError, UsageError
from kdlab.jobs.diagnosis import Diagnosis, Finds, Maps
from kdlab.jobs.plan import Plan
from kdlab.reporting import comparison, comparison_table, diagnosis, diagnosis_table
from kdlab.reporting.diagnosis import Diagnosed, Diagnoses
from kdlab.reporting.diagnosis_table import points, thirds
from kdlab.reporting.plots import difference_maps, kept_boxes, write_scene
from kdlab.reporting.tables import Table
from tests.reporting.conftest import Workbench
from tests.stubs.jobs import make
from tests.stubs.stub_job import make_result

CLASSES = ("cat", "dog", "eel")
LABELS = (0, 0, 0, 1, 1)
LEVELS = {"8": {"prediction": 0.012, "feature": 3.4, "correlation": 0.5}}


def finds(precision: Sequence[float], met: Sequence[int] | None = None, prior: int = 4) -> Finds:
    """What finds five objects in two images so well; none of precision 0."""
    found = np.array(precision) > 0
    boxes = np.where(found[:, None], np.tile([2.0, 2.0, 10.0, 10.0], (len(found), 1)), np.nan)
    return Finds(
        met=np.array(met or np.round(10 * np.array(precision)), np.uint8),
        precision=np.array(precision, np.float32),
        score=np.where(found, 0.5, np.nan),
        box=boxes,
        prior=np.where(found, prior, -1),
        prior_box=boxes,
    )


def rows(student: Finds, teacher: Finds | None = None, **changes: Any) -> Diagnosis:
    given = {
        "files": np.array(["a/one.png", "a/two.png", "a/empty.png"]),
        "sizes": np.array([[16, 16]] * 3),
        "image": np.array([0, 0, 0, 1, 1]),
        "place": np.array([0, 1, 2, 0, 1]),
        "label": np.array(LABELS),
        "box": np.tile([2.0, 2.0, 9.0, 9.0], (5, 1)),
        "area": np.array([100.0, 1024.0, 1025.0, 9216.0, 9217.0]),
        "overlap": np.array([0.0, 0.1, 0.2, 0.3, 0.0]),
        "positives": np.array([3, 3, 1, 3, 3]),
        "tau": np.array([[-1.0] * 3, [0.5] * 3, [np.nan] * 3, [0.0] * 3, [1.0] * 3]),
        "top": np.array([[0.0] * 3, [1.0] * 3, [np.nan] * 3, [1.0] * 3, [1.0] * 3]),
        "maps": MAPS,
    }
    return Diagnosis(**{**given, "student": student, "teacher": teacher or finds([1.0] * 5), **changes})


MAPS = Maps(
    strides=np.array([8, 16]),
    image=np.array([0]),
    sizes=np.array([[[2, 2], [1, 1]]]),
    prediction=np.array([0.0, 0.1, 0.2, 0.3, 0.7], np.float32),
    feature=np.array([1.0, 2.0, 3.0, 5.0, 9.0], np.float32),
)


def diagnosed(one: Diagnosis, ap: float = 20.0, **told: Any) -> Diagnosed:
    summary = {
        "teacher_AP": 40.0,
        "objects": 5,
        "ranked": 4,
        "tau": {"score": 0.3, "iou": 0.2, "both": 0.25},
        "top": {"score": 0.75, "iou": 0.5, "both": 0.6},
        "found_by_both": 4,
        "other_prior": 0.25,
        "levels": LEVELS,
        "lacks": {},
    }
    result = make_result(make("diagnose-1", "diagnose a"))
    last = replace(result.last, metrics={"AP": ap})
    return Diagnosed(replace(result, last=last, diagnosis={**summary, **told}), one)


def plan(arms: Sequence[str] = ("baseline", "rm")) -> Plan:
    recipe = {
        "name": "r",
        "title": "GFL",
        "arms": {arm: {} if arm == "baseline" else {arm: {}} for arm in arms},
    }
    return Plan("7f3a0001", recipe, (), "cpu", {})


def found(arms: dict[str, dict[int, Diagnosed]], classes: tuple[str, ...] = CLASSES) -> Diagnoses:
    return Diagnoses(plan([*arms]), classes, arms, "baseline" if "baseline" in arms else None)


BASE = finds([0.4, 0.0, 0.2, 0.5, 0.1])
BETTER = finds([0.4, 0.6, 0.2, 0.1, 0.1])


@pytest.fixture
def two() -> Diagnoses:
    return found({"baseline": {0: diagnosed(rows(BASE))}, "rm": {0: diagnosed(rows(BETTER), ap=25.0)}})


def cell(table: Table | None, row: str, column: str) -> str:
    assert table is not None
    place = [one.key for one in table.columns].index(column)
    return next(cells[place].text for cells in table.rows if cells[0].text == row)


# --- groups ---


def test_classes_weigh_alike_however_many_objects_they_have() -> None:
    one = rows(finds([1.0, 1.0, 1.0, 0.0, 0.0]))
    everything = np.ones(5, bool)
    assert points(one, "student", "precision", everything) == pytest.approx(50.0)
    assert points(one, "student", "met", everything) == pytest.approx(50.0)
    assert points(one, "teacher", "precision", everything) == pytest.approx(100.0)
    # a cat is a third of its class, a dog half of its
    assert points(one, "student", "precision", np.array([1, 0, 0, 1, 0], bool)) == pytest.approx(40.0)


def test_thirds_are_by_tau_and_equal_ones_stay_together() -> None:
    assert thirds(rows(BASE)).tolist() == [0, 1, -1, 0, 2]
    tau = np.zeros((5, 3))
    assert len({*thirds(rows(BASE, tau=tau)).tolist()}) == 1
    assert thirds(rows(BASE, tau=np.full((5, 3), np.nan))).tolist() == [-1] * 5


def test_gains_are_told_by_group_of_objects(two: Diagnoses) -> None:
    table = diagnosis_table.gains(two)
    # cats: (0.4 + 0 + 0.2) / 3 and (0.4 + 0.6 + 0.2) / 3; dogs: (0.5 + 0.1) / 2 and (0.1 + 0.1) / 2
    assert cell(table, "class: cat", "baseline") == "20.0"
    assert cell(table, "class: cat", "rm") == "+20.0"
    assert cell(table, "class: dog", "rm") == "-20.0"
    assert cell(table, "all", "baseline") == "25.0"
    assert cell(table, "all", "rm") == "+0.0"
    assert cell(table, "all", "teacher") == "100.0"
    assert cell(table, "all", "objects") == "5"
    assert cell(table, "overlap: none", "objects") == "2"
    assert cell(table, "overlap: up to IoU 0.2", "rm") == "+30.0"
    assert cell(table, "overlap: above 0.2", "rm") == "-40.0"
    assert [cell(table, f"size: {name}", "objects") for name in ("small", "medium", "large")] == [
        "2",
        "2",
        "1",
    ]
    assert cell(table, "rank agreement: middle", "rm") == "+60.0"
    assert cell(table, "rank agreement: none to tell", "rm") == "+0.0"
    assert "class: eel" not in [row[0].text for row in table.rows]  # type: ignore[union-attr]


def test_recall_is_told_of_the_same_groups(two: Diagnoses) -> None:
    table = diagnosis_table.gains(two, "met")
    assert table is not None
    assert "recall" in table.title
    assert cell(table, "class: cat", "rm") == "+20.0"


def test_gains_are_paired_by_seed_and_have_their_deviation() -> None:
    arms = {
        "baseline": {seed: diagnosed(rows(BASE)) for seed in (0, 1, 2)},
        "rm": {0: diagnosed(rows(BASE)), 1: diagnosed(rows(BETTER))},
    }
    table = diagnosis_table.gains(found(arms))
    assert cell(table, "class: cat", "rm") == "+10.0 ± 14.1"
    assert table is not None
    assert "fewer seeds: rm 2" in table.footnotes[0]


def test_students_that_saw_other_objects_are_not_compared(two: Diagnoses) -> None:
    fewer = rows(BETTER, place=np.array([0, 1, 3, 0, 1]))
    assert diagnosis_table.gains(found({**two.arms, "rm": {0: diagnosed(fewer)}})) is None


def test_without_a_baseline_there_are_no_gains() -> None:
    assert diagnosis_table.gains(found({"rm": {0: diagnosed(rows(BETTER))}})) is None


def test_of_many_classes_those_that_moved_most_are_shown() -> None:
    count = 20
    labels = np.arange(count)
    base, own = np.full(count, 0.5), np.full(count, 0.5)
    own[[3, 4, 5, 6, 7, 8]] += np.linspace(0.1, 0.2, 6)
    own[[10, 11, 12, 13, 14, 15]] -= np.linspace(0.1, 0.2, 6)
    many = {
        name: getattr(rows(BASE), name)[np.zeros(count, int)]
        for name in ("image", "box", "area", "overlap", "positives", "tau", "top")
    }
    many |= {"label": labels, "place": labels, "teacher": finds([1.0] * count)}
    arms = {
        "baseline": {0: diagnosed(rows(finds([*base]), **many))},
        "rm": {0: diagnosed(rows(finds([*own]), **many))},
    }
    both = found(arms, tuple(f"c{label}" for label in labels))
    table = diagnosis_table.gains(both)
    assert table is not None
    shown = [row[0].text for row in table.rows if row[0].text.startswith("class")]
    assert shown == [f"class: c{label}" for label in (3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)]
    assert "8 classes" in table.footnotes[-1]
    whole = diagnosis_table.gains(both, all_classes=True)
    assert whole is not None
    assert sum(row[0].text.startswith("class") for row in whole.rows) == count


# --- agreement ---


def test_agreement_has_a_row_an_arm_below_the_teacher(two: Diagnoses) -> None:
    table = diagnosis_table.agreement(two)
    assert [row[0].text for row in table.rows] == ["teacher", "baseline", "rm"]
    assert cell(table, "teacher", "AP") == "40.0"
    assert cell(table, "rm", "AP") == "25.0"
    assert cell(table, "rm", "tau_score") == "0.30"
    assert cell(table, "rm", "top-1_both") == "60 %"
    assert cell(table, "rm", "other_prior") == "25 %"
    assert cell(table, "rm", "correlation_8") == "0.50"
    assert cell(table, "rm", "feature_8") == "3.4"
    assert "feature_8" not in [one.key for one in table.usual().columns]


def test_what_cannot_be_told_has_no_column_and_a_reason() -> None:
    told = {"tau": {}, "top": {}, "other_prior": None, "levels": {"8": {"feature": 2.0}},
            "lacks": {"ranking": "no priors here", "predictions": "no priors here"}}  # fmt: skip
    arms = {name: {0: diagnosed(rows(BASE), **told)} for name in ("baseline", "rm")}
    table = diagnosis_table.agreement(found(arms))
    assert [one.key for one in table.columns] == ["arm", "AP", "feature_8"]
    assert table.footnotes[-1] == "not told: no priors here"
    gains = diagnosis_table.gains(found(arms))
    assert gains is not None
    assert not any(row[0].text.startswith("rank agreement") for row in gains.rows)


def test_seeds_have_mean_and_deviation() -> None:
    arms = {"baseline": {seed: diagnosed(rows(BASE), tau={"score": 0.1 * seed}) for seed in (1, 3)}}
    table = diagnosis_table.agreement(found(arms))
    assert cell(table, "baseline", "tau_score") == "0.20 ± 0.14"
    assert cell(table, "baseline", "tau_iou") == "-"


# --- images ---


def test_images_in_which_arms_change_most_come_first(two: Diagnoses) -> None:
    # in the first image rm meets six thresholds more, in the second four fewer
    assert diagnosis.most_changed(two, 5) == [0, 1]
    assert diagnosis.most_changed(two, 1) == [0]
    assert diagnosis.change_of(two, "rm", 1) == -4


def test_images_are_named_with_or_without_folder_and_ending(two: Diagnoses) -> None:
    assert diagnosis.named(two, "two, one.png,a/empty.png") == [1, 0, 2]
    with pytest.raises(UsageError, match=r"no validation image is called ones\.png"):
        diagnosis.named(two, "ones.png")


def test_a_name_of_several_images_is_refused_and_one_with_a_comma_is_whole() -> None:
    made = diagnosed(rows(BASE))
    files = np.array(["a/one.png", "b/one.png", "x,y.png"])
    two = found({"baseline": {0: replace(made, rows=replace(made.rows, files=files))}})
    with pytest.raises(UsageError, match="several validation images are called one"):
        diagnosis.named(two, "one")
    assert diagnosis.named(two, "b/one.png") == [1]
    assert diagnosis.named(two, "x,y.png") == [2]


def test_a_scene_has_teacher_and_baseline_and_the_arms_that_change_most() -> None:
    others = {f"x{number}": {0: diagnosed(rows(BASE))} for number in range(5)}
    arms = {"baseline": {0: diagnosed(rows(BASE))}, **others, "rm": {0: diagnosed(rows(BETTER))}}
    made = diagnosis.scene(found(arms), 0, np.zeros((16, 16, 3), np.uint8))
    assert [*made.models] == ["teacher", "baseline", "x0", "x1", "x2", "rm"]
    assert made.names == ("cat", "cat", "cat")
    assert made.models["rm"].met.tolist() == [4, 6, 2]
    assert [level[0] for level in made.maps["rm"]] == [8, 16]
    assert made.title.startswith("a/one.png")


def scene(two: Diagnoses, image: int = 0) -> diagnosis.Scene:
    return diagnosis.scene(two, image, np.full((16, 16, 3), 128, np.uint8))


def test_kept_boxes_are_numbers_too(two: Diagnoses) -> None:
    plot = kept_boxes.draw(scene(two))
    rows_ = list(csv.DictReader(io.StringIO("".join(plot.csv().splitlines(keepends=True)[2:]))))
    assert len(rows_) == 9
    missed = next(row for row in rows_ if (row["model"], row["object"]) == ("baseline", "1"))
    assert (missed["score"], missed["prior"], missed["prior_x"]) == ("", "-1", "")
    kept = next(row for row in rows_ if (row["model"], row["object"]) == ("rm", "1"))
    assert (kept["score"], kept["prior"], kept["prior_x"]) == ("0.5", "4", "6")
    titles = [axes.get_title(loc="left") for axes in plot.figure.axes]
    assert titles == ["teacher, met 100 %", "baseline, met 20 %", "rm, met 40 %"]


def test_maps_of_a_level_share_their_scale(two: Diagnoses) -> None:
    plot = difference_maps.draw(scene(two))
    assert plot is not None
    maps = [axes.images[0] for axes in plot.figure.axes if axes.images][1:]
    assert [one.get_clim()[1] for one in maps] == pytest.approx([0.3, 5, 0.3, 5, 0.7, 9, 0.7, 9])
    assert [row[:2] for row in plot.rows] == [["baseline", 8], ["rm", 8], ["baseline", 16], ["rm", 16]]
    assert plot.rows[0][4] == pytest.approx(np.corrcoef(MAPS.prediction[:4], MAPS.feature[:4])[0, 1])


def test_an_image_whose_maps_were_not_kept_has_boxes_alone(two: Diagnoses, tmp_path: Path) -> None:
    files = write_scene(scene(two), tmp_path, "digits/r-one")
    assert {path.name for path in files if path.suffix == ".png"} == {"r-one-boxes.png", "r-one-maps.png"}
    files = write_scene(scene(two, 1), tmp_path, "digits/r-two")
    assert sorted(path.name for path in files) == ["r-two-boxes.csv", "r-two-boxes.pdf", "r-two-boxes.png"]
    assert all(path.stat().st_size for path in files)


def test_maps_without_predictions_are_those_of_features(two: Diagnoses) -> None:
    bare = replace(MAPS, prediction=np.zeros(0, np.float32))
    arms = {"baseline": {0: diagnosed(rows(BASE, maps=bare))}}
    plot = difference_maps.draw(scene(found(arms)))
    assert plot is not None
    assert [axes.get_title() for axes in plot.figure.axes if axes.get_title()] == ["F baseline"]


# --- files ---


def test_a_written_diagnosis_is_read_as_it_was(tmp_path: Path) -> None:
    one = rows(BETTER)
    one.write(tmp_path / "diagnosis.npz")
    again = Diagnosis.read(tmp_path / "diagnosis.npz")
    assert again is not None
    assert again.summary() == one.summary()
    np.testing.assert_array_equal(again.files, one.files)
    np.testing.assert_array_equal(again.student.box, one.student.box)
    assert [level[0] for level in again.maps.of(0)] == [8, 16]
    assert one.summary()["other_prior"] == 0.0
    assert rows(finds([1.0] * 5, prior=3)).summary()["other_prior"] == 1.0
    assert rows(finds([0.0] * 5)).summary()["other_prior"] is None


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """A teacher, a baseline and rm of one seed, finished; rm is diagnosed, twice with the same teacher."""
    made = Workbench(tmp_path / "runs")
    jobs = [made.job("teacher"), made.job("baseline"), made.job("rm")]
    for job in jobs:
        made.finish(job)
    made.plan(jobs)
    for name, teacher, tau in (("1", "teacher-teacher0", 0.1), ("2", "teacher-other", 0.2)):
        told = diagnosed(rows(BETTER)).result.diagnosis | {
            "student": "student-rm0", "teacher": teacher, "tau": {"score": tau}
        }  # fmt: skip
        job = make(f"diagnose-{name}", "diagnose rm seed 0")
        made.finish(job, diagnosis=told)
        rows(BETTER).write(made.runs.job(job.id).diagnosis)
    return made


def plan_of(bench: Workbench) -> Plan:
    return Plan.read(next(bench.runs.plans.glob("*.json")))


def test_diagnoses_are_found_by_student_and_teacher(bench: Workbench) -> None:
    read = diagnosis.of_plan(plan_of(bench), bench.runs)
    assert [*read.arms] == ["rm"]
    assert read.baseline == "baseline"
    assert read.any.result.id == "diagnose-1"
    np.testing.assert_array_equal(read.any.rows.student.met, BETTER.met)


def test_a_result_without_its_objects_is_told(bench: Workbench) -> None:
    bench.runs.job("diagnose-1").diagnosis.unlink()
    with pytest.raises(MachineError, match="a diagnosis is damaged"):
        diagnosis.of_plan(plan_of(bench), bench.runs)


def test_the_comparison_shows_rank_agreement_on_demand(bench: Workbench) -> None:
    table = comparison_table.table(comparison.of_plan(plan_of(bench), bench.runs))
    assert (cell(table, "rm", "tau"), cell(table, "rm", "top-1")) == ("0.10", "75 %")
    assert (cell(table, "baseline", "tau"), cell(table, "teacher", "tau")) == ("", "")
    assert not {"tau", "top-1"} & {one.key for one in table.usual().columns}
    assert any("kdlab diagnose" in note for note in table.only(["tau"]).footnotes)
    assert not any("kdlab diagnose" in note for note in table.usual().footnotes)
