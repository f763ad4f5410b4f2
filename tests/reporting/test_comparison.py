"""Gains over the baseline, with what is known of them and not a bit more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdlab.jobs import status
from kdlab.jobs.resampled import Resampled
from kdlab.jobs.result import Evaluation
from kdlab.reporting.comparison import Comparison, compare

BASELINE = (20.0, 21.0, 19.5)
RM = (22.0, 23.5, 21.0)
TEACHER = (30.0,)


def compared(
    bench, arms: dict[str, tuple[float, ...]], images: dict[str, Resampled] | None = None
) -> Comparison:
    """Arms with one AP a seed; `images` by job is made up where None, and empty for none."""
    jobs = {(arm, seed): bench.job(arm, seed) for arm, values in arms.items() for seed in range(len(values))}
    for (arm, seed), job in jobs.items():
        bench.finish(job, arms[arm][seed])
    plan = bench.plan(list(jobs.values()))
    made = {job.id: resampled(arms[arm][seed], seed) for (arm, seed), job in jobs.items()}
    return compare(plan, status.of_plan(plan, bench.runs), made if images is None else images)


def resampled(ap: float, seed: int, truth: str = "same", spread: float = 0.5) -> Resampled:
    """All seeds of one number fall with the same images."""
    rng = np.random.default_rng(seed)
    return Resampled(ap + rng.normal(0, spread, 400), images=200, truth=truth)


def test_without_images_p_is_of_the_paired_t_test_and_corrected_over_all_arms(bench) -> None:
    pfi = (24.0, 26.0, 25.5)
    found = compared(bench, {"baseline": BASELINE, "rm": RM, "pfi": pfi}, images={})
    own = [stats.ttest_rel(values, BASELINE).pvalue for values in (RM, pfi)]
    assert [found.gains[arm].p for arm in ("rm", "pfi")] == pytest.approx(own)
    assert min(one.p_holm for one in found.gains.values()) == pytest.approx(2 * min(own))


def test_two_seeds_have_a_gain_and_an_interval_over_images_alone(bench) -> None:
    gain = compared(bench, {"baseline": (20.0, 21.0), "rm": (22.0, 23.5)}).gains["rm"]
    assert gain.mean == 2.25
    assert gain.other_images is not None
    assert (gain.p, gain.p_holm, gain.interval, gain.gap_interval) == (None,) * 4
    assert not gain.supported


def test_three_seeds_have_all(bench) -> None:
    gain = compared(bench, {"teacher": TEACHER, "baseline": BASELINE, "rm": RM}).gains["rm"]
    assert gain.interval.low < gain.mean < gain.interval.high
    assert gain.gap_interval.low < gain.gap_closed < gain.gap_interval.high
    # both seeds and images move it, so it is wider than that of the images
    assert gain.interval.high - gain.interval.low > gain.other_images.high - gain.other_images.low


def test_the_arm_and_its_baseline_are_resampled_together(bench) -> None:
    """Luck that both share with the images cancels."""
    gain = compared(bench, {"baseline": BASELINE, "rm": RM}).gains["rm"]
    assert gain.other_images.high - gain.other_images.low == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rm", [RM, (22.0, 23.1, 21.6), (20.1, 21.4, 19.5)])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
def test_the_interval_excludes_0_exactly_where_p_is_below_5_percent(bench, rm, spread: float) -> None:
    images = {
        f"student-{arm}{seed}": resampled(20.0, place, spread=spread)
        for place, arm in enumerate(("baseline", "rm"))
        for seed in range(3)
    }
    gain = compared(bench, {"baseline": BASELINE, "rm": rm}, images).gains["rm"]
    assert (gain.p < 0.05) == (gain.interval.low > 0)


def test_noise_of_images_makes_p_larger_than_the_seeds_alone_would(bench) -> None:
    """Three seeds that agree say nothing of images that do not."""
    images = {
        f"student-{arm}{seed}": resampled(20.0, place, spread=2.0)
        for place, arm in enumerate(("baseline", "rm"))
        for seed in range(3)
    }
    gain = compared(bench, {"baseline": BASELINE, "rm": (22.0, 23.1, 21.6)}, images).gains["rm"]
    assert stats.ttest_rel((22.0, 23.1, 21.6), BASELINE).pvalue < 0.001
    assert gain.p > 0.05
    assert not gain.supported


@pytest.mark.parametrize("images", [None, {}], ids=["resampled", "not resampled"])
def test_differences_that_are_all_alike_have_neither_p_nor_interval(bench, images) -> None:
    gain = compared(bench, {"teacher": TEACHER, "baseline": BASELINE, "rm": BASELINE}, images).gains["rm"]
    assert (gain.p, gain.interval, gain.gap_interval) == (None, None, None)


def test_without_resampled_ap_p_and_interval_are_of_seeds_alone(bench) -> None:
    found = compared(bench, {"baseline": BASELINE, "rm": RM}, images={})
    gain = found.gains["rm"]
    ends = stats.ttest_rel(RM, BASELINE).confidence_interval(0.95)
    assert (gain.interval.low, gain.interval.high) == pytest.approx((ends.low, ends.high))
    assert gain.other_images is None
    assert found.unsampled == tuple(f"{arm} seed {seed}" for arm in ("baseline", "rm") for seed in range(3))


@pytest.mark.parametrize("kind", ["prepare", "scale"])
def test_job_that_measures_no_detector_lacks_no_resampled_ap(bench, kind) -> None:
    jobs = [bench.job("baseline"), bench.job(f"{kind} rm", kind=kind, id=f"{kind}-1")]
    bench.finish(jobs[0], 20.0)
    bench.finish(jobs[1], last=Evaluation(), best=Evaluation())
    plan = bench.plan(jobs)
    assert compare(plan, status.of_plan(plan, bench.runs), {}).unsampled == ("baseline seed 0",)


def test_models_measured_on_other_images_are_not_paired(bench) -> None:
    jobs = [f"student-{arm}{seed}" for arm in ("baseline", "rm") for seed in range(3)]
    images = {job: resampled(20.0, 0, truth=job[:12]) for job in jobs}
    gain = compared(bench, {"baseline": BASELINE, "rm": RM}, images).gains["rm"]
    assert gain.p == pytest.approx(stats.ttest_rel(RM, BASELINE).pvalue)
    assert gain.other_images is None


def holding(share: float) -> dict[str, Resampled]:
    """Resamples of which a share holds an object, the same ones of every model."""
    without = np.arange(400) >= 400 * share
    jobs = [f"student-{arm}{seed}" for arm in ("baseline", "rm") for seed in range(3)]
    rng = np.random.default_rng(0)
    aps = (np.where(without, np.nan, 20 + rng.normal(0, 1, 400)) for _ in jobs)
    return {job: Resampled(ap, 200, "same") for job, ap in zip(jobs, aps, strict=True)}


def test_a_few_resamples_without_an_object_are_left_out(bench) -> None:
    gain = compared(bench, {"baseline": BASELINE, "rm": RM}, holding(0.995)).gains["rm"]
    assert np.isfinite([gain.other_images.low, gain.other_images.high, gain.interval.low]).all()


def test_where_many_resamples_hold_no_object_there_is_no_interval_over_images(bench) -> None:
    gain = compared(bench, {"baseline": BASELINE, "rm": RM}, holding(0.9)).gains["rm"]
    assert gain.p == pytest.approx(stats.ttest_rel(RM, BASELINE).pvalue)
    assert gain.other_images is None


def test_a_result_without_ap_is_compared_with_nothing(bench) -> None:
    jobs = [bench.job(arm, seed) for arm in ("baseline", "rm") for seed in range(2)]
    for job in jobs:
        bench.finish(job, last=Evaluation({"AP": 20.0} if job.seed else {"AP50": 30.0}))
    plan = bench.plan(jobs)
    assert compare(plan, status.of_plan(plan, bench.runs), {}).gains["rm"].seeds == (1,)


def test_without_a_baseline_there_are_no_gains(bench) -> None:
    found = compared(bench, {"rm": RM, "pfi": RM})
    assert found.baseline is None
    assert not found.gains


def test_a_teacher_below_the_baseline_leaves_no_gap_to_close(bench) -> None:
    gain = compared(bench, {"teacher": (18.0,), "baseline": BASELINE, "rm": RM}).gains["rm"]
    assert (gain.gap_closed, gain.gap_interval) == (None, None)
    assert gain.interval is not None


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_gap_within_its_own_noise_has_no_share(bench, seeds: int) -> None:
    """A teacher 0.3 above the baseline would give shares of hundreds of percent."""
    aps = {"teacher": (20.5,), "baseline": BASELINE[:seeds], "rm": RM[:seeds]}
    jobs = [
        *(f"student-{arm}{seed}" for arm in ("baseline", "rm") for seed in range(seeds)),
        "teacher-teacher0",
    ]
    images = {job: resampled(20.0, place) for place, job in enumerate(jobs)}
    images["teacher-teacher0"] = resampled(20.5, 9, spread=2.0)
    gain = compared(bench, aps, images).gains["rm"]
    assert gain.gap == pytest.approx(20.5 - np.mean(BASELINE[:seeds]))
    assert gain.gap_noise.low < 0 < gain.gap_noise.high
    assert (gain.gap_closed, gain.gap_interval) == (None, None)


def test_a_gap_is_within_the_noise_of_seeds_where_no_images_are_resampled(bench) -> None:
    gain = compared(
        bench, {"teacher": (20.5,), "baseline": (18.0, 20.0, 22.0), "rm": (20.0, 22.0, 23.5)}
    ).gains["rm"]
    assert gain.gap == pytest.approx(0.5)
    assert gain.gap_noise.low < 0 < gain.gap_noise.high
    assert gain.gap_closed is None


def test_a_teacher_that_was_not_resampled_is_judged_by_seeds(bench) -> None:
    aps = {"teacher": (20.5,), "baseline": (18.0, 20.0, 22.0), "rm": (20.0, 22.0, 23.5)}
    jobs = [f"student-{arm}{seed}" for arm in ("baseline", "rm") for seed in range(3)]
    images = {job: resampled(20.0, place) for place, job in enumerate(jobs)}
    gain = compared(bench, aps, images).gains["rm"]
    assert gain.other_images is not None
    assert gain.gap_noise.low < 0 < gain.gap_noise.high
    assert gain.gap_closed is None


def test_an_unfinished_arm_counts_for_holm_as_a_finished_one(bench) -> None:
    finished = compared(bench, {"baseline": BASELINE, "rm": RM, "pfi": (20.4, 21.0, 20.4)})
    jobs = [bench.job(arm, seed) for arm in ("baseline", "rm", "pfi") for seed in range(3)]
    for job in jobs[6:]:
        bench.runs.job(job.id).result.unlink()
    plan = bench.plan(jobs)
    early = compare(plan, status.of_plan(plan, bench.runs), {})
    assert early.tests == 2
    assert early.gains["rm"].p_holm == finished.gains["rm"].p_holm == 2 * finished.gains["rm"].p


def timed(bench, arm: str, latency_s: float, teacher_s: float | None = None):
    """A finished job of an arm with its latencies."""
    job = bench.job(arm)
    timing = {"latency_s": latency_s} | ({} if teacher_s is None else {"teacher_latency_s": teacher_s})
    bench.finish(job, 30.0, timing=timing)
    return job


def latencies(bench, jobs) -> dict[str, float | None]:
    plan = bench.plan(jobs)
    found = compare(plan, status.of_plan(plan, bench.runs), {})
    return {arm.name: found.latency_ms(arm) for arm in found.rows}


def test_latencies_are_those_that_one_job_measured_in_turns(bench) -> None:
    """The teacher's own job had the machine alone, the baseline's ran beside others."""
    jobs = [timed(bench, "teacher", 0.02), timed(bench, "baseline", 0.09), timed(bench, "rm", 0.03, 0.06)]
    assert latencies(bench, jobs) == {"teacher": 60.0, "baseline": 30.0, "rm": 30.0}


def test_an_arm_without_a_result_has_no_latency(bench) -> None:
    jobs = [timed(bench, "teacher", 0.02), timed(bench, "rm", 0.03, 0.06), bench.job("pfi")]
    assert latencies(bench, jobs)["pfi"] is None


def test_a_loss_that_the_test_supports_is_supported(bench) -> None:
    gain = compared(bench, {"baseline": BASELINE, "rm": (15.0, 16.0, 14.51)}, {}).gains["rm"]
    assert gain.mean < 0
    assert gain.supported
