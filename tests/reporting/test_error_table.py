"""Tables of errors: paired by seed, next to the teacher, and honest about what is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdlab.jobs.detections import Detections
from kdlab.reporting import error_table
from kdlab.reporting.comparison import Comparison, of_plan, with_errors
from kdlab.reporting.comparison_table import errors, table
from kdlab.reporting.tables import Table
from kdlab.reporting.tide import KINDS
from tests.reporting.conftest import Workbench
from tests.reporting.test_tide import A, B, made

OBJECTS = [(0, 0, A), (0, 1, B), (1, 0, A)]
RIGHT = [(0, 0, 0.9, A), (0, 1, 0.8, B), (1, 0, 0.7, A)]
FIRST_MISSED = RIGHT[1:]
TAKEN_FOR_1 = [(0, 1, 0.9, A), *RIGHT[1:]]
NONE_OF_THEM: list[Any] = []

FOUND = {
    ("teacher", 0): RIGHT,
    ("baseline", 0): FIRST_MISSED,
    ("baseline", 1): TAKEN_FOR_1,
    ("rm", 0): RIGHT,
    ("rm", 1): TAKEN_FOR_1,
}


def compared(bench: Workbench, found: dict[tuple[str, int], Any], **other: Any) -> Comparison:
    """A plan of such jobs, all finished; None kept no detections, `...` has not finished."""
    jobs = {(arm, seed): bench.job(arm, seed) for arm, seed in found}
    for key, own in found.items():
        if own is not ...:
            bench.finish(jobs[key])
    plan = bench.plan(list(jobs.values()), **other)
    keys = {job.id: key for key, job in jobs.items()}

    def detections(job: Any) -> Detections | None:
        own = found[keys[job.id]]
        if own is None or isinstance(own, Detections):
            return own
        return made(OBJECTS, own, images=2)

    return with_errors(of_plan(plan, bench.runs), detections)


def cells(table: Table | None, row: str) -> dict[str, str]:
    assert table is not None
    [own] = [one for one in table.rows if one[0].text == row]
    return {column.key: cell.text for column, cell in zip(table.columns, own, strict=True)}


def test_arms_have_the_mean_of_their_seeds_next_to_the_teacher(bench: Workbench) -> None:
    shown = errors(compared(bench, FOUND))
    assert [row[0].text for row in shown.rows] == ["teacher", "baseline", "rm"]
    assert cells(shown, "teacher") | {"AP50": ""} == {
        "arm": "teacher", "AP50": "", **dict.fromkeys(KINDS, "0.0"),
        **dict.fromkeys(("both_find", "box_iou", "score_gap", "score_r"), ""),
    }  # fmt: skip
    baseline = cells(shown, "baseline")
    # one of two seeds misses one of two objects of one of two classes; half a recall is 51 of 101
    assert baseline["miss"] == f"{100 * 50 / 101 / 2 / 2:.1f}"
    assert baseline["both_find"] == "67 %"
    assert (baseline["box_iou"], baseline["score_gap"]) == ("1.00", "+0.00")
    assert cells(shown, "rm")["both_find"] == "83 %"


def test_changes_are_paired_by_seed(bench: Workbench) -> None:
    shown = error_table.gains(compared(bench, FOUND))
    assert [column.key for column in shown.columns] == ["error", "baseline", "rm"]
    half = 100 * 50 / 101 / 2
    # rm has what the baseline misses with seed 0, and the same mistake with seed 1
    assert cells(shown, "missed")["rm"] == f"-{half / 2:.1f} ± {half / 2**0.5:.1f}"
    assert cells(shown, "classification")["rm"] == "+0.0 ± 0.0"
    assert cells(shown, "AP50")["rm"] == f"+{half / 2:.1f} ± {half / 2**0.5:.1f}"


def test_three_seeds_have_a_t_interval_in_their_account(bench: Workbench) -> None:
    found = {**FOUND, ("baseline", 2): FIRST_MISSED, ("rm", 2): RIGHT}
    shown = error_table.gains(compared(bench, found))
    assert shown is not None
    [cell] = [row[2] for row in shown.rows if row[0].text == "missed"]
    half = 100 * 50 / 101 / 2
    low, high = stats.t.interval(0.95, 2, -2 * half / 3, stats.sem([-half, 0, -half]))
    assert cell.how.endswith(f"over 3 seeds: [{low:+.1f}, {high:+.1f}]")


def test_a_seed_that_one_side_lacks_enters_no_difference(bench: Workbench) -> None:
    found = {**FOUND, ("baseline", 1): ...}
    shown = error_table.gains(compared(bench, found))
    assert cells(shown, "missed")["rm"] == f"-{100 * 50 / 101 / 2:.1f}"


def test_unfinished_jobs_and_unknown_detections_are_told(bench: Workbench) -> None:
    one = compared(bench, {**FOUND, ("baseline", 1): ..., ("rm", 1): None})
    notes = errors(one).footnotes
    assert "baseline: n=1 of 2, seed 1 queued" in notes
    assert "rm: no errors of 1 of 2 jobs, whose detections are not known" in notes


def test_an_arm_without_any_detections_has_dashes(bench: Workbench) -> None:
    one = compared(bench, {**FOUND, ("rm", 0): None, ("rm", 1): None})
    assert cells(errors(one), "rm")["cls"] == "-"
    assert error_table.gains(one) is None
    assert "rm" not in error_table.plain_matrices(one)["arms"]


def test_models_measured_on_other_objects_are_not_compared(bench: Workbench) -> None:
    one = compared(bench, {**FOUND, ("rm", 0): made(OBJECTS[:2], RIGHT[:2], images=2), ("rm", 1): ...})
    assert "rm: 1 of 1 were measured on other objects than the teacher" in errors(one).footnotes
    assert cells(errors(one), "rm")["both_find"] == "-"
    assert error_table.gains(one) is None


def test_a_class_of_which_an_arm_finds_nothing_is_told(bench: Workbench) -> None:
    one = compared(bench, {**FOUND, ("baseline", 1): [RIGHT[1]]})
    note = "baseline: finds no object of 0 (seed 1); miss and FN hide what that costs"
    assert note in errors(one).footnotes
    assert note not in errors(compared(bench, FOUND)).footnotes


def test_without_a_teacher_there_is_no_agreement(bench: Workbench) -> None:
    shown = errors(compared(bench, {key: own for key, own in FOUND.items() if key[0] != "teacher"}))
    assert [column.key for column in shown.columns][-1] == "fn"


def test_a_student_that_finds_nothing_has_no_boxes_to_compare(bench: Workbench) -> None:
    one = compared(bench, {**FOUND, ("rm", 0): NONE_OF_THEM, ("rm", 1): NONE_OF_THEM})
    own = cells(errors(one), "rm")
    assert (own["miss"], own["both_find"], own["box_iou"], own["score_r"]) == ("100.0", "0 %", "-", "-")


def test_columns_mix_with_those_of_the_report(bench: Workbench) -> None:
    shown = table(compared(bench, FOUND)).only(["AP", "cls", "both_find"])
    assert cells(shown, "rm")["AP"] == "30.0 ± 0.0"
    assert cells(shown, "rm")["both_find"] == "83 %"
    # what is not asked for is not shown
    assert "cls" not in [column.key for column in table(compared(bench, FOUND)).usual().columns]


def test_classes_taken_for_one_another_are_counted(bench: Workbench) -> None:
    shown = error_table.confused(compared(bench, FOUND))
    assert shown is not None
    assert [[cell.text for cell in row] for row in shown.rows] == [["0", "1", "2", "0.0", "0.5", "0.5"]]


def test_of_many_pairs_the_most_confused_are_shown(bench: Workbench) -> None:
    one = compared(bench, FOUND)
    confusion = np.arange(121).reshape(11, 11)
    full = replace(one, lost={job: replace(own, confusion=confusion) for job, own in one.lost.items()})
    shown = error_table.confused(full)
    assert shown is not None
    assert [row[0].text + row[1].text for row in shown.rows[:3]] == ["98", "97", "96"]
    assert len(shown.rows) == error_table.MOST_PAIRS
    assert f"{90 - error_table.MOST_PAIRS} pairs" in shown.footnotes[-1]


def test_nothing_confused_is_no_table(bench: Workbench) -> None:
    one = compared(bench, dict.fromkeys(FOUND, RIGHT))
    assert error_table.confused(one) is None


def test_matrices_are_whole_for_files_and_programs(bench: Workbench) -> None:
    one = compared(bench, FOUND)
    told = error_table.plain_matrices(one)
    assert told["classes"] == [*"0123456789", "(background)"]
    assert np.array(told["arms"]["baseline"])[:2, [0, 1, -1]].tolist() == [[1.0, 0.5, 0.5], [0.0, 1.0, 0.0]]
    shown = error_table.matrix_table(one)
    assert shown is not None
    assert len(shown.rows) == 3 * 11
    [row] = [row for row in shown.rows if [cell.text for cell in row[:2]] == ["baseline", "0"]]
    assert [row[2].value, row[3].value, row[-1].value] == [1.0, 0.5, 0.5]


@pytest.mark.parametrize("names", [("arm", "object"), ("(background)", "as 0")])
def test_classes_of_any_name_keep_their_columns(bench: Workbench, names: tuple[str, str]) -> None:
    one = compared(bench, FOUND)
    job = one.plan.jobs[0].job
    files = replace(job.inputs.dataset, classes=names)
    renamed = replace(job, inputs=replace(job.inputs, dataset=files))
    plan = replace(one.plan, jobs=(replace(one.plan.jobs[0], job=renamed), *one.plan.jobs[1:]))
    small = {
        name: replace(own, confusion=own.confusion[np.ix_([0, 1, 10], [0, 1, 10])])
        for name, own in one.lost.items()
    }
    shown = error_table.matrix_table(replace(one, plan=plan, lost=small))
    assert shown is not None
    keys = [column.key for column in shown.columns]
    assert len({*keys}) == len(keys) == 5
