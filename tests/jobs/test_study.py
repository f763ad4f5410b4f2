from __future__ import annotations

import math

import pytest

from kdlab.jobs.study import Dimension, Study, Trial, text_of

WEIGHT, RANK = Dimension("rm.weight", 0.1, 10.0, True), Dimension("rm.rank", choices=("cls", "loc"))


def trial(number: int, *values: float, state="finished", **params) -> Trial:
    """A trial of RM; with `rm_weight=None` one without any method."""
    given = {"rm_weight": 1.0, **params}
    return Trial(number, state, {k.replace("_", "."): v for k, v in given.items() if v is not None}, values)


def study(*trials: Trial, objectives=("AP",), importance=None) -> Study:
    return Study("digits/gfl", "GFL", objectives, (WEIGHT, RANK), trials, importance, 0, (1600, 400))


PLAIN = {"rm_weight": None}


def numbers(trials) -> list[int]:
    return [one.number for one in trials]


def test_best_is_the_finished_trial_with_the_highest_ap():
    found = study(trial(0, 30.0), trial(1, 31.0), trial(2, 35.0, state="pruned")).best
    assert found is not None
    assert found.number == 1


def test_of_equal_trials_the_first_is_the_best():
    found = study(trial(3, 31.0), trial(1, 31.0)).best
    assert found is not None
    assert found.number == 1


@pytest.mark.parametrize("trials", [(), (trial(0, state="failed"), trial(1, state="pruned"))])
def test_without_a_finished_trial_there_is_no_best_and_no_front(trials):
    assert (study(*trials).best, study(*trials).front) == (None, ())


def test_trial_without_a_number_for_each_objective_has_not_finished():
    trials = (trial(0, 30.0), trial(1, 30.0, 4.0), trial(2, math.nan, 4.0))
    assert numbers(study(*trials, objectives=("AP", "latency")).finished) == [1]


def test_front_is_what_no_trial_surpasses_in_ap_and_latency_the_quickest_first():
    trials = (trial(0, 30.0, 5.0), trial(1, 29.0, 3.0), trial(2, 28.0, 4.0), trial(3, 28.0, 3.0))
    assert numbers(study(*trials, objectives=("AP", "latency")).front) == [1, 0]


def test_equal_trials_are_both_on_the_front():
    trials = (trial(0, 30.0, 5.0), trial(1, 30.0, 5.0), trial(2, 30.0, 6.0))
    assert numbers(study(*trials, objectives=("AP", "latency")).front) == [0, 1]


def test_best_of_several_objectives_is_on_the_front_also_when_ap_ties():
    two = study(trial(0, 30.0, 5.0), trial(1, 30.0, 4.0), objectives=("AP", "latency"))
    assert two.best is two.trials[1]


def test_gain_is_over_the_trial_without_methods():
    two = study(trial(0, 30.0, **PLAIN), trial(1, 31.5))
    assert (two.gain(two.trials[1]), two.gain(two.trials[0])) == (1.5, None)
    assert two.baseline is two.trials[0]


def test_gain_is_over_the_trial_of_the_same_student():
    plain = [trial(number, 10.0 * number, student_width=number, **PLAIN) for number in (1, 2)]
    three = study(*plain, trial(3, 25.0, student_width=2))
    assert three.gain(three.trials[2]) == 5.0


@pytest.mark.parametrize("first", [trial(0, state="failed", **PLAIN), trial(0, 30.0)])
def test_there_is_no_gain_without_a_finished_trial_to_gain_over(first):
    assert study(first, trial(1, 31.0)).gain(trial(1, 31.0)) is None


def test_option_of_a_method_is_off_where_the_method_is_absent_or_weighs_nothing():
    on, zero, absent = trial(0, rm_rank="cls"), trial(1, rm_weight=0, rm_rank="cls"), trial(2, **PLAIN)
    assert [one.off("rm.rank") for one in (on, zero, absent)] == [False, True, True]
    assert [one.off("rm.weight") for one in (on, zero, absent)] == [False, True, True]


def test_instances_of_one_method_are_off_each_by_its_own_weight():
    params = {"cwd@neck.weight": 0.0, "cwd@cls.weight": 1.0, "cwd@neck.tau": 2.0, "cwd@cls.tau": 2.0}
    one = Trial(0, "finished", params)
    assert (one.off("cwd@neck.tau"), one.off("cwd@cls.tau")) == (True, False)


def test_last_epoch_is_the_last_that_was_measured_and_0_before_the_first():
    assert Trial(0, "pruned", {}, curve={2: 20.0, 1: 10.0}).last_epoch == 2
    assert Trial(0, "failed", {}).last_epoch == 0


def test_range_is_told_as_people_write_it():
    assert [WEIGHT.range, RANK.range] == ["0.1 to 10", "cls, loc"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1234.5, "1230"), (1e-6, "0.000001"), (True, "true"), ("cls", "cls"), (4, "4")],
)
def test_setting_is_told_without_an_exponent_and_as_yaml_has_it(value, text):
    assert text_of(value) == text
