from __future__ import annotations

import io

import pandas
import pytest

from kdlab.jobs.study import Dimension, Study, Trial
from kdlab.reporting.renderers import FORMATS, to_csv
from kdlab.reporting.study_table import table
from kdlab.reporting.tables import Table

DIMENSIONS = (
    Dimension("pfi.weight", 0.01, 30.0, True),
    Dimension("rm.weight", 0.05, 12.0, True),
    Dimension("rm.rank", choices=("cls", "loc")),
)
PARAMS = {"pfi.weight": 1.23456, "rm.weight": 4.0, "rm.rank": "cls"}


def ended(number: int, *values: float, note: str = "", params=None, epochs: int = 6) -> Trial:
    curve = dict.fromkeys(range(1, epochs + 1), values[0])
    return Trial(
        number,
        "finished",
        PARAMS if params is None else params,
        values,
        curve,
        note,
        f"student-{number}",
        90.0,
    )


def pruned(number: int, ap: float = 20.0) -> Trial:
    return Trial(number, "pruned", PARAMS, (), {1: 10.0, 2: ap})


def failed(number: int, why: str = "") -> Trial:
    return Trial(number, "failed", PARAMS, why=why)


PLAIN = ended(0, 30.0, note="no method", params={})


def study(*trials: Trial, objectives=("AP",), dimensions=DIMENSIONS, importance=None, **others) -> Study:
    return Study(
        "digits/gfl", "GFL R18 -> R9", objectives, dimensions, trials, importance, 3, (1600, 400), **others
    )


def column(table: Table, key: str) -> list[str]:
    place = [one.key for one in table.columns].index(key)
    return [row[place].text for row in table.rows]


def keys(table: Table) -> list[str]:
    return [one.key for one in table.columns]


def notes(table: Table) -> str:
    return "\n".join(table.footnotes)


def test_best_trials_come_first_with_their_gain():
    made = table(study(PLAIN, ended(1, 29.0), ended(2, 31.0)))
    assert column(made, "trial") == ["2", "0", "1"]
    assert column(made, "AP") == ["31.0", "30.0", "29.0"]
    assert column(made, "gain") == ["+1.0", "", "-1.0"]


def test_reference_trials_are_shown_and_named_wherever_they_rank():
    made = table(study(PLAIN, *(ended(number, 30.0 + number) for number in range(1, 200))), top=3)
    assert column(made, "trial") == ["199", "198", "197", "0"]
    assert column(made, "reference") == ["", "", "", "no method"]
    assert "196 trials not shown" in made.footnotes


def test_trials_that_all_are_references_searched_nothing():
    references = table(study(PLAIN, ended(1, 29.0, note="published")))
    assert "nothing was searched: 2 trials, all of them references" in references.footnotes
    assert "nothing was searched" not in notes(table(study(PLAIN, ended(1, 29.0))))


def test_reference_that_failed_is_shown_too():
    made = table(
        study(Trial(0, "failed", PARAMS, reference="published"), *(ended(n, 30.0) for n in range(1, 5))),
        top=1,
    )
    assert column(made, "trial") == ["1", "0"]
    assert column(made, "AP") == ["30.0", "-"]


def test_setting_has_three_digits_and_a_choice_its_word():
    made = table(study(ended(1, 30.0)))
    assert [column(made, one.name) for one in DIMENSIONS] == [["1.23"], ["4"], ["cls"]]


def test_dash_stands_where_the_method_was_off():
    weightless = {"pfi.weight": 0.02, "rm.weight": 0.0, "rm.rank": "cls"}
    made = table(study(PLAIN, ended(1, 29.0, params=weightless)))
    assert [column(made, one.name) for one in DIMENSIONS] == [["-", "0.02"], ["-", "-"], ["-", "-"]]


def test_the_highest_ap_alone_is_bold():
    made = table(study(PLAIN, ended(1, 31.0), ended(2, 30.5)))
    assert [[cell.text for cell in row if cell.mark == "bold"] for row in made.rows] == [["31.0"], [], []]


def test_trials_that_tie_are_bold_together_and_the_first_is_on_top():
    made = table(study(ended(2, 31.0), ended(1, 31.0)))
    assert column(made, "trial") == ["1", "2"]
    assert sum(cell.mark == "bold" for row in made.rows for cell in row) == 2


def test_footnotes_say_what_the_numbers_are_not():
    told = notes(table(study(PLAIN, ended(1, 31.0), pruned(2))))
    assert "1,600 images of the training set and measured on 400 others of it; one seed (3)" in told
    assert "no numbers for a paper: the highest (bold) is the best of 3 trials, so it is optimistic" in told
    assert "the tuned recipe measures it on the validation set" in told


def test_trials_are_counted_by_state_and_failures_by_reason():
    oom = "out of GPU memory"
    made = table(
        study(ended(0, 30.0), pruned(1), failed(2, oom), failed(3, "loss is\nnot finite"), failed(4, oom))
    )
    assert "1 finished, 1 pruned, 3 failed" in made.footnotes
    assert [note for note in made.footnotes if note.startswith("failed")] == [
        "failed, 2 x: out of GPU memory",
        "failed, 1 x: loss is not finite",
    ]


def test_rare_reasons_of_many_are_counted_alone():
    made = table(study(ended(0, 30.0), *(failed(number, f"reason {number}") for number in range(1, 9))))
    told = [note for note in made.footnotes if note.startswith("failed")]
    assert told[5:] == ["failed for 3 other reasons, which the logs of their jobs tell"]


def test_state_is_told_only_where_trials_differ_in_it():
    assert "state" not in keys(table(study(ended(0, 30.0), ended(1, 31.0))))
    made = table(study(ended(0, 30.0), failed(1), pruned(2, 21.0), pruned(3, 22.0)))
    assert column(made, "state") == ["finished", "pruned", "pruned", "failed"]
    assert column(made, "trial") == ["0", "3", "2", "1"]
    assert column(made, "epochs") == ["6", "2", "2", "-"]


def test_ap_of_a_pruned_trial_is_no_number_to_compare():
    assert column(table(study(ended(0, 30.0), pruned(1, 33.0))), "AP") == ["30.0", "-"]


def test_importance_is_told_in_words_the_greatest_first():
    made = table(study(ended(0, 30.0), importance={"rm.rank": 0.02, "pfi.weight": 0.07, "rm.weight": 0.91}))
    assert (
        "importance (fANOVA: share in the spread of AP): rm.weight 0.91, pfi.weight 0.07, rm.rank 0.02"
        in made.footnotes
    )
    assert keys(made)[2:5] == ["rm.weight", "pfi.weight", "rm.rank"]


def test_too_few_trials_for_an_importance_are_said_to_be_so():
    assert "importance of the dimensions: too few trials to tell" in table(study(ended(0, 30.0))).footnotes


def test_importance_of_a_single_dimension_is_no_question():
    assert "importance" not in notes(table(study(ended(0, 30.0), dimensions=DIMENSIONS[:1])))


@pytest.mark.parametrize(
    ("trials", "note"),
    [
        ((ended(1, 30.0),), "no gains: no trial is without methods"),
        (
            (Trial(0, "failed", {}, reference="no method"), ended(1, 30.0)),
            "no gains: trial 0 (no method) has not finished",
        ),
        ((PLAIN, ended(1, 30.0), ended(2, 29.0)), "warning: no trial is above no method"),
    ],
)
def test_missing_gains_are_explained(trials, note):
    assert note in table(study(*trials)).footnotes


def test_one_student_without_a_reference_leaves_the_others_their_gains():
    lost = Trial(0, "failed", {"student.width": 8}, reference="no method")
    plain = ended(1, 30.0, note="no method", params={"student.width": 16})
    made = table(study(lost, plain, ended(2, 31.0, params={"student.width": 16, "pfi.weight": 1.0})))
    assert "no gains" not in notes(made)


def test_trial_above_no_method_is_no_reason_to_warn():
    assert "warning" not in notes(table(study(PLAIN, ended(1, 30.1), ended(2, 29.0))))


def test_several_objectives_show_the_front_by_latency():
    plain = ended(0, 28.0, 5.0, note="no method", params={})
    trials = (plain, ended(1, 31.0, 4.0), ended(2, 30.0, 3.0), ended(3, 29.0, 5.0), ended(4, 32.0, 6.0))
    made = table(study(*trials, objectives=("AP", "latency")), top=1)
    assert made.title == "GFL R18 -> R9: 5 trials, Pareto front of AP and latency"
    assert column(made, "trial") == ["2", "1", "4", "0"]
    assert column(made, "latency") == ["3.00 ms", "4.00 ms", "6.00 ms", "5.00 ms"]
    assert column(made, "front") == ["front", "front", "front", ""]


def test_all_trials_of_several_objectives_begin_with_the_front():
    trials = (ended(0, 28.0, 5.0), ended(1, 27.0, 4.0), pruned(2), ended(3, 27.5, 6.0))
    assert column(table(study(*trials, objectives=("AP", "latency")), top=None), "trial") == [
        "1",
        "0",
        "3",
        "2",
    ]


def test_all_trials_come_with_their_jobs_and_times():
    made = table(study(PLAIN, pruned(1), *(ended(number, 20.0) for number in range(2, 30))), top=None)
    assert len(made.rows) == 30
    assert column(made, "job")[:2] == ["student-0", "student-2"]
    assert column(made, "trained_min")[0] == "1.5 min"
    assert not any("not shown" in note for note in made.footnotes)


def test_settings_are_numbers_for_pandas_also_where_a_method_was_off():
    frame = pandas.read_csv(io.StringIO(to_csv(table(study(PLAIN, ended(1, 31.0))))), comment="#")
    assert frame["pfi.weight"].dtype.kind == "f"
    assert frame["pfi.weight"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    "trials",
    [(), (failed(0), failed(1)), (pruned(0),), (ended(0, float("nan")),), (PLAIN,)],
    ids=["none", "all failed", "all pruned", "not a number", "one"],
)
def test_any_trials_can_be_shown_in_any_format(trials):
    made = table(study(*trials))
    assert len(made.rows) == len(trials)
    assert all(render(made) for render in FORMATS.values())
    assert "nan" not in to_csv(made)


def test_where_it_was_trained_is_told():
    assert (
        "trained with kdlab 0a1b on cpu: EPYC"
        in table(study(PLAIN, commit="0a1b", device="cpu: EPYC")).footnotes
    )
