"""Tests and intervals agree with scipy, and keep their promises where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdlab.reporting.statistics import Crossed, holm, paired_t, percentile_interval

TRIALS = 2000


@pytest.mark.parametrize("seeds", [3, 4, 10])
def test_p_is_that_of_scipys_paired_t_test(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    arm, baseline = rng.normal(1, 1, seeds), rng.normal(0, 1, seeds)
    assert paired_t(list(arm - baseline)) == pytest.approx(stats.ttest_rel(arm, baseline).pvalue, rel=1e-12)


@pytest.mark.parametrize("differences", [[], [1.0], [1.0, 2.0]])
def test_fewer_than_three_seeds_have_no_p(differences: list[float]) -> None:
    assert paired_t(differences) is None


@pytest.mark.parametrize("all_alike", [0.0, 0.3, -7.1])
def test_differences_that_are_all_alike_have_no_p(all_alike: float) -> None:
    assert paired_t([all_alike] * 3) is None


def test_holm_by_hand() -> None:
    # smallest times 3, next times 2, last as it is, never falling
    assert holm([0.04, 0.01, 0.03]) == [pytest.approx(0.06), pytest.approx(0.03), pytest.approx(0.06)]


def test_what_has_no_p_yet_counts_for_holm_as_if_it_were_the_largest() -> None:
    assert holm([None, 0.01, 0.02]) == [None, pytest.approx(0.03), pytest.approx(0.04)]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_makes_a_p_smaller_and_keeps_the_order(ps: list[float]) -> None:
    corrected = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, corrected, strict=True) if q is not None)
    by_p = [corrected[place] for place in np.argsort(ps, kind="stable")]
    assert by_p == sorted(by_p, key=float)


def test_percentile_interval_is_the_middle_of_what_is_there() -> None:
    found = percentile_interval(np.arange(1001.0))
    assert (found.low, found.high) == pytest.approx((25.0, 975.0))


def test_without_noise_of_images_the_interval_is_that_of_the_t_test() -> None:
    gains = np.array([1.0, 1.4, 1.9])
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    found = Crossed.of(gains[None], np.repeat(gains[:, None], 50, 1)[None], images=100).interval(1.0)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_without_noise_of_seeds_the_interval_is_that_of_the_images() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 4000)
    found = Crossed.of(np.full((1, 3), 2.0), np.tile(2.0 + noise, (1, 3, 1)), images=10_000).interval(1.0)
    assert found.low == pytest.approx(2.0 - 1.96 * 0.5, abs=0.03)
    assert found.high == pytest.approx(2.0 + 1.96 * 0.5, abs=0.03)


def trial(rng: np.random.Generator, gain: float, noise: tuple[float, float, float], seeds: int) -> Crossed:
    """One experiment: seeds, images that move all seeds alike, and images that move each seed alone."""
    of_seeds, of_images, of_both = noise
    values = gain + rng.normal(0, of_seeds, seeds) + rng.normal(0, of_images) + rng.normal(0, of_both, seeds)
    moved = rng.normal(0, of_images, 200) + rng.normal(0, of_both, (seeds, 200))
    return Crossed.of(values[None], (values[:, None] + moved)[None], images=500)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", [(1.0, 0.01, 0.01), (1.0, 0.5, 0.5), (0.3, 1.0, 0.1), (0.5, 1.0, 0.5)])
def test_the_interval_covers_the_gain_in_93_to_97_of_100_experiments(
    noise: tuple[float, float, float], seeds: int
) -> None:
    rng = np.random.default_rng(0)
    intervals = [trial(rng, 1.0, noise, seeds).interval(1.0) for _ in range(TRIALS)]
    assert 0.93 <= np.mean([one.low <= 1.0 <= one.high for one in intervals]) <= 0.97


def test_under_no_effect_p_is_below_5_percent_in_3_to_7_of_100_experiments() -> None:
    rng = np.random.default_rng(1)
    # the same recipe twice: what differs is drawn anew for each seed, and its luck on the images with it
    differences = rng.normal(0, 1, (TRIALS, 3)) + rng.normal(0, 0.5, (TRIALS, 3))
    ps = [paired_t(list(row)) for row in differences]
    assert 0.03 <= np.mean([p < 0.05 for p in ps if p is not None]) <= 0.07


def test_the_ratio_covers_in_93_to_97_of_100_experiments() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(TRIALS):
        teacher, plain, arm = 40.0, 20 + rng.normal(0, 1, 3), 30 + rng.normal(0, 1, 3)
        by_chance = rng.normal(0, 0.7, 3)
        teacher, plain, arm = (
            model + luck for model, luck in zip((teacher, plain, arm), by_chance, strict=True)
        )
        moved = rng.normal(0, 0.7, (3, 200))
        resampled = np.array([np.tile(moved[2] - moved[1], (3, 1)), np.tile(moved[0] - moved[1], (3, 1))])
        values = np.array([arm - plain, teacher - plain])
        interval = Crossed.of(values, values[..., None] + resampled, images=500).ratio_interval()
        assert interval is not None
        covered.append(interval.low <= 0.5 <= interval.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_ratio_to_what_may_be_nothing_has_no_bounds() -> None:
    values = np.array([[1.0, 1.2, 0.8], [0.3, -0.4, 0.2]])
    resampled = np.repeat(values[..., None], 20, 2)
    assert Crossed.of(values, resampled, images=100).ratio_interval() is None


def test_the_ratio_lies_in_its_interval() -> None:
    rng = np.random.default_rng(3)
    values = np.array([[5.0, 6.0, 5.5], [10.0, 11.0, 9.5]])
    resampled = values[..., None] + rng.normal(0, 0.5, (2, 3, 300))
    interval = Crossed.of(values, resampled, images=300).ratio_interval()
    assert interval is not None
    assert interval.low < values[0].mean() / values[1].mean() < interval.high
