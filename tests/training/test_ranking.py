"""Agreement of rankings: the values of scipy, for many objects at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from kdlab.training.ranking import kendall_tau, same_top

RISING = np.array([0.1, 0.2, 0.5, 0.9])


def one(first: list[float], second: list[float]) -> float:
    group = np.zeros(len(first), int)
    return float(kendall_tau(np.array(first), np.array(second), group, 1)[0])


def test_tau_of_the_same_order_is_1_and_of_the_reversed_one_minus_1() -> None:
    assert one([*RISING], [*(7 * RISING)]) == 1
    assert one([*RISING], [*-RISING]) == -1


def test_one_pair_of_three_swapped_leaves_two_thirds_less_one_third() -> None:
    # of the pairs (a, b), (a, c), (b, c) one is the other way round
    assert one([1, 2, 3], [2, 1, 3]) == pytest.approx((2 - 1) / 3)


def test_ties_count_as_scipy_has_them() -> None:
    first, second = [1, 1, 2, 3, 3, 4], [2, 1, 1, 3, 5, 5]
    assert one(first, second) == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [([0.3], [0.7]), ([1, 1, 1], [1, 2, 3])])
def test_nothing_to_rank_gives_no_number(first: list[float], second: list[float]) -> None:
    assert np.isnan(one(first, second))


@pytest.mark.parametrize("values", [3, 1000])
def test_many_objects_at_once_are_each_as_alone(values: int) -> None:
    rng = np.random.default_rng(values)
    group = rng.permutation(np.repeat(np.arange(40), rng.integers(0, 30, 40)))
    first, second = rng.integers(0, values, (2, len(group))).astype(float)
    expected = []
    for number in range(40):
        mine = group == number
        alone = kendalltau(first[mine], second[mine]).statistic if mine.sum() > 1 else np.nan
        expected.append(alone)
    np.testing.assert_allclose(kendall_tau(first, second, group, 40), expected, atol=1e-12)


def test_no_priors_at_all_give_no_numbers() -> None:
    none, groups = np.empty(0), np.empty(0, int)
    assert np.isnan(kendall_tau(none, none, groups, 2)).all()
    assert np.isnan(same_top(none, none, groups, 2)).all()


def test_only_the_first_of_the_ranking_decides_whether_the_top_agrees() -> None:
    #          object 0         object 1    object 2
    group = np.array([0, 0, 0, 1, 1, 1, 2])
    first = np.array([0.2, 0.9, 0.4, 0.5, 0.3, 0.1, 0.6])
    second = np.array([0.5, 0.8, 0.1, 0.2, 0.9, 0.3, 0.6])
    np.testing.assert_array_equal(same_top(first, second, group, 3), [1, 0, np.nan])
    shuffled = np.array([6, 3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(
        same_top(first[shuffled], second[shuffled], group[shuffled], 3), [1, 0, np.nan]
    )


def test_of_equal_scores_the_first_prior_is_the_top() -> None:
    group = np.zeros(3, int)
    assert same_top(np.array([0.5, 0.5, 0.1]), np.array([0.9, 0.1, 0.1]), group, 1) == [1]
    assert same_top(np.array([0.5, 0.5, 0.1]), np.array([0.1, 0.9, 0.1]), group, 1) == [0]
