from __future__ import annotations

import os

import numpy as np
import pytest
from scipy import stats

from kdlab.jobs.files import write_json
from kdlab.jobs.resampled import RESAMPLES, Resampled
from kdlab.jobs.result import Evaluation
from kdlab.reporting.comparison import of_plan
from kdlab.reporting.comparison_table import by_class, table
from tests.stubs.jobs import make


def ended(bench, results):
    """A job for each (arm, seed), which ended with an AP; None: it never started."""
    jobs = {(arm, seed): bench.job(arm, seed) for arm, seed in results}
    for (arm, seed), ap in results.items():
        if ap is not None:
            bench.finish(jobs[arm, seed], ap)
    return list(jobs.values())


def made(bench, results, **changes):
    """The table of a plan of such jobs."""
    return table(of_plan(bench.plan(ended(bench, results), **changes), bench.runs)).usual()


def texts(table, arm):
    """Texts of the row of an arm by column."""
    keys = [column.key for column in table.columns]
    [row] = [row for row in table.rows if row[0].text == arm]
    return {key: cell.text for key, cell in zip(keys, row, strict=True)}


def test_rows_are_the_teacher_then_the_arms_in_the_order_of_the_recipe(bench):
    results = {("rm", 0): 32.0, ("baseline", 0): 30.0, ("teacher", 0): 35.0}
    shown = made(bench, results, recipe={"name": "d", "arms": {"baseline": {}, "rm": {"rm": {}}}})
    assert [row[0].text for row in shown.rows] == ["teacher", "baseline", "rm"]


def test_several_seeds_give_mean_and_sample_deviation(bench):
    shown = made(bench, {("baseline", 0): 30.0, ("baseline", 1): 31.0, ("baseline", 2): 32.0})
    assert texts(shown, "baseline")["AP"] == "31.0 ± 1.0"


def test_one_seed_gives_no_deviation(bench):
    assert texts(made(bench, {("baseline", 0): 30.04}), "baseline")["AP"] == "30.0"


def test_gain_is_paired_over_the_seeds_that_both_arms_have(bench):
    results = {("baseline", 0): 30.0, ("baseline", 1): 40.0, ("rm", 0): None, ("rm", 1): 42.0}
    shown = made(bench, results)
    assert texts(shown, "rm")["dAP"] == "+2.0"
    assert "rm: gain over seed 1, which the baseline has too" in shown.footnotes


def test_loss_of_ap_shows_its_minus_and_no_gain_a_plus(bench):
    shown = made(bench, {("baseline", 0): 30.0, ("rm", 0): 29.0, ("pfi", 0): 29.99})
    assert texts(shown, "rm")["dAP"] == "-1.0"
    assert texts(shown, "pfi")["dAP"] == "+0.0"


def test_gain_without_a_common_seed_is_unknown(bench):
    shown = made(bench, {("baseline", 0): 30.0, ("rm", 1): 31.0})
    assert texts(shown, "rm")["dAP"] == "-"


def test_gap_closed_is_the_gain_over_what_the_teacher_is_ahead(bench):
    shown = made(bench, {("teacher", 0): 38.0, ("baseline", 0): 30.0, ("rm", 0): 36.0})
    assert texts(shown, "rm")["gap_closed"] == "75 %"
    assert texts(shown, "baseline")["gap_closed"] == texts(shown, "teacher")["gap_closed"] == ""


@pytest.mark.parametrize("teacher", [30.0, 29.0])
def test_gap_closed_is_a_dash_where_the_teacher_is_not_above_the_baseline(bench, teacher):
    shown = made(bench, {("teacher", 0): teacher, ("baseline", 0): 30.0, ("rm", 0): 31.0})
    assert texts(shown, "rm")["gap_closed"] == "-"


def test_a_gap_within_its_noise_is_told_with_both(bench):
    jobs = [bench.job("teacher"), bench.job("baseline"), bench.job("rm")]
    for job, ap in zip(jobs, (30.3, 30.0, 31.4), strict=True):
        bench.finish(job, ap)
        noise = np.random.default_rng(int(ap * 10)).normal(0, 1, RESAMPLES)
        Resampled(ap + noise, 200, "same").write(bench.runs.job(job.id).resampled)
    shown = table(of_plan(bench.plan(jobs), bench.runs)).usual()
    assert texts(shown, "rm")["gap_closed"] == "-"
    [note] = [note for note in shown.footnotes if note.endswith("the gap is smaller than its noise")]
    assert note.startswith("gap closed: teacher - baseline is +0.3, 95 % [-")


def test_latency_and_parameters_of_teacher_and_student_are_shown_unasked(bench):
    jobs = [bench.job("teacher"), bench.job("baseline")]
    for job, ms, params in zip(jobs, (24.0, 8.0), (32e6, 4.5e6), strict=True):
        bench.finish(job, timing={"latency_s": ms / 1000}, model={"params": params})
    shown = table(of_plan(bench.plan(jobs), bench.runs)).usual()
    told = {
        arm: (texts(shown, arm)["latency_ms"], texts(shown, arm)["params_m"])
        for arm in ("teacher", "baseline")
    }
    assert told == {"teacher": ("24.00 ms", "32.00 M"), "baseline": ("8.00 ms", "4.50 M")}
    apart = "latency: teacher and student were measured at different times: trust no ratio of the two"
    assert apart in shown.footnotes


def test_columns_that_nobody_has_are_hidden(bench):
    shown = made(bench, {("baseline", 0): 30.0})
    assert [column.key for column in shown.columns] == ["arm", "AP", "AP50", "AP75", "step_x"]


def test_voc_columns_appear_where_results_hold_them_and_are_explained(bench):
    job = bench.job("baseline")
    bench.finish(job, last=Evaluation({"AP": 31.0, "VOC07": 61.26, "VOC12": 62.0}))
    plan = bench.plan([job])
    shown = table(of_plan(plan, bench.runs)).usual()
    assert texts(shown, "baseline")["VOC07"] == "61.3"
    assert texts(shown, "baseline")["VOC12"] == "62.0"
    assert any(note.startswith("VOC07: ") for note in shown.footnotes)


def test_size_without_objects_is_blank_for_one_arm_and_shown_for_another(bench):
    jobs = [bench.job("baseline"), bench.job("rm")]
    plan = bench.plan(jobs)
    bench.finish(jobs[0])
    bench.finish(jobs[1], last=Evaluation({"AP": 31.0, "APs": 12.0}))
    shown = table(of_plan(plan, bench.runs)).usual()
    assert (texts(shown, "baseline")["APs"], texts(shown, "rm")["APs"]) == ("", "12.0")


def test_step_time_is_the_median_over_seeds_beside_the_student_and_beside_both_models(bench):
    jobs = [bench.job("baseline", 0), *(bench.job("rm", seed) for seed in range(3))]
    plan = bench.plan(jobs)
    bench.finish(jobs[0])
    for job, distilled in zip(jobs[1:], (0.5, 0.3, 2.0), strict=True):
        bench.finish(job, timing={
            "student_step_s": 0.2, "teacher_forward_s": 0.05, "distill_step_s": distilled})  # fmt: skip
    shown = table(of_plan(plan, bench.runs)).usual()
    assert (texts(shown, "baseline")["step_x"], texts(shown, "rm")["step_x"]) == ("1.00", "2.50")
    assert (texts(shown, "baseline")["method_x"], texts(shown, "rm")["method_x"]) == ("", "2.00")


def test_steps_that_kdlab_bench_timed_on_this_machine_stand_for_those_of_the_jobs(bench):
    students = [bench.job("baseline"), *(bench.job(arm, seed) for arm in ("rm", "pfi") for seed in (0, 1))]
    plan, parts = bench.plan(students), {"student_step_s": 0.2, "teacher_forward_s": 0.05}
    for job in students:
        bench.finish(job, timing={**parts, "distill_step_s": 2.0}, environment={"device": "cpu"})
    for number, (device, student, step_s) in enumerate(
        [("cpu", students[1], 0.4), ("cpu", students[1], 0.3), ("cuda: H200", students[3], 0.1)]
    ):
        timed = make(f"bench-{number}", student.arm, student=student.id)
        bench.finish(timed, timing={**parts, "distill_step_s": step_s}, environment={"device": device})
        paths = bench.runs.job(timed.id)
        write_json(paths.job, timed.to_dict())
        os.utime(paths.result, (number, number))
    damaged = bench.runs.job("bench-9")
    bench.finish(make("bench-9", "rm"), timing=parts)
    damaged.job.write_text("{")
    shown = table(of_plan(plan, bench.runs)).usual()
    assert (texts(shown, "rm")["step_x"], texts(shown, "rm")["method_x"]) == ("1.50", "1.20")
    assert texts(shown, "pfi")["step_x"] == "10.00"
    assert "step x, method x of rm: by kdlab bench, with nothing else of kdlab beside it" in shown.footnotes


def test_best_epoch_is_a_column_that_says_how_it_was_chosen(bench):
    jobs = [bench.job("baseline"), bench.job("rm")]
    plan = bench.plan(jobs)
    bench.finish(jobs[0], 30.0)
    bench.finish(jobs[1], 31.0, best=Evaluation({"AP": 33.0}, epoch=1))
    shown = table(of_plan(plan, bench.runs)).usual()
    assert (texts(shown, "baseline")["best_AP"], texts(shown, "rm")["best_AP"]) == ("30.0", "33.0")
    assert texts(shown, "rm")["AP"] == "31.0"
    assert any("chosen on the evaluation set" in note for note in shown.footnotes)


def test_missing_jobs_are_named_with_their_state(bench):
    results = {("baseline", 0): 30.0, ("rm", 0): 31.0, ("rm", 1): 31.2, ("rm", 2): None, ("teacher", 0): None}
    shown = made(bench, results)
    assert texts(shown, "rm")["n"] == "2 of 3"
    assert "rm: n=2 of 3, seed 2 queued" in shown.footnotes
    assert "teacher: queued" in shown.footnotes


def test_arm_without_results_keeps_its_row(bench):
    shown = made(bench, {("baseline", 0): 30.0, ("rm", 0): None})
    assert {key: texts(shown, "rm")[key] for key in ("AP", "n", "step_x")} == {
        "AP": "-",
        "n": "0 of 1",
        "step_x": "",
    }


def test_plan_without_any_result_is_a_table_of_dashes(bench):
    shown = made(bench, {("teacher", 0): None, ("baseline", 0): None})
    assert [[cell.text for cell in row] for row in shown.rows] == [
        ["teacher", "-", "0 of 1"],
        ["baseline", "-", "0 of 1"],
    ]


def test_no_gain_is_bold_without_a_test_that_supports_it(bench):
    shown = made(bench, {("baseline", 0): 30.0, ("rm", 0): 39.0})
    assert {cell.mark for row in shown.rows for cell in row} <= {"", "dim"}


def test_title_names_recipe_and_n(bench):
    equal = made(bench, {("baseline", 0): 30.0, ("rm", 0): 31.0})
    assert equal.title == "RetinaNet R18 -> R9, digits, n=1"
    unequal = made(bench, {("baseline", 0): 30.0, ("rm", 0): 31.0, ("rm", 1): 31.0})
    assert unequal.title.endswith("n=1 to 2")


def test_footnotes_name_data_commit_versions_machine_and_plan(bench):
    shown = made(bench, {("baseline", 0): 30.0})
    assert shown.footnotes[-5:] == (
        "data: digits, fingerprint 0123456789abcdef",
        "commit: 0a1b2c3",
        "versions: kdlab 0.1.0, torch 2.14.1, mmdet 3.3.0",
        "machine: cpu: EPYC, cores 2, threads 1",
        "plan 7f3a0001 of digits/quickstart",
    )


def test_cells_of_different_versions_are_told(bench):
    jobs = [bench.job("baseline", seed) for seed in range(3)]
    plan = bench.plan(jobs)
    for job, version in zip(jobs, ("2.14.1", "2.13.0", "2.14.1"), strict=True):
        bench.finish(job, environment={"torch": version, "kdlab": "0.1.0", "mmdet": "3.3.0", "commit": ""})
    notes = table(of_plan(plan, bench.runs)).usual().footnotes
    assert (
        "cells differ in versions: kdlab 0.1.0, torch 2.13.0, mmdet 3.3.0 (baseline seed 1); "
        "kdlab 0.1.0, torch 2.14.1, mmdet 3.3.0 (all others)"
    ) in notes
    assert "commit: unknown" in notes


def test_table_prints_as_plain_data(bench):
    data = made(bench, {("baseline", 0): 30.0, ("baseline", 1): 31.0}).to_dict()
    assert data["schema"] == 1
    assert data["rows"][0]["AP"]["text"] == "30.5 ± 0.7"
    assert data["rows"][0]["AP"]["value"] == 30.5


def test_machine_with_a_gpu_names_no_threads(bench):
    job = bench.job("baseline")
    plan = bench.plan([job])
    told = {"device": "cuda: H100", "cores": 16, "threads": None, "tf32": "convolutions"}
    bench.finish(job, environment=told)
    notes = table(of_plan(plan, bench.runs)).usual().footnotes
    assert "machine: cuda: H100, cores 16, TF32 in convolutions" in notes


INHERITING = {
    "name": "d",
    "arms": {"heir": {}, "baseline": {}, "heir+rm": {"rm": {}}},
    "inherits": ["heir", "heir+rm"],
}


def test_an_arm_that_inherits_is_no_baseline(bench):
    results = {("heir", 0): 33.0, ("baseline", 0): 30.0, ("heir+rm", 0): 34.0}
    shown = made(bench, results, recipe=INHERITING)
    assert texts(shown, "heir")["dAP"] == "+3.0"
    assert texts(shown, "heir")["step_x"] == "1.00"
    assert texts(shown, "baseline")["dAP"] == ""


def test_what_was_inherited_is_shown_where_any_arm_does(bench):
    jobs = {arm: bench.job(arm) for arm in ("heir", "baseline", "heir+rm")}
    bench.finish(jobs["heir"], model={"inherited": {"tensors": 31, "of": 34}})
    plan = bench.plan(list(jobs.values()), recipe=INHERITING)
    shown = table(of_plan(plan, bench.runs)).usual()
    assert [texts(shown, arm)["inherits"] for arm in jobs] == ["31 of 34", "", "yes"]
    plain = made(bench, {("baseline", 0): 30.0})
    assert "inherits" not in [column.key for column in plain.columns]


def test_a_measured_teacher_is_the_teachers_row(bench):
    jobs = [bench.job("teacher", kind="evaluate", id="evaluate-1"), bench.job("baseline")]
    for job in jobs:
        bench.finish(job, 0.5)
    plan = bench.plan(jobs, arms={"baseline": {}})
    shown = table(of_plan(plan, bench.runs)).usual()
    assert [row[0].text for row in shown.rows] == ["teacher", "baseline"]
    assert any(note.startswith("warning: the teacher has AP 0.5") for note in shown.footnotes)


def warnings_of(shown):
    return [note for note in shown.footnotes if note.startswith("warning: ")]


def test_a_teacher_below_the_baseline_is_warned_of(bench):
    arms = {("teacher", 0): 31.0, ("baseline", 0): 31.0, ("baseline", 1): 33.0, ("rm", 0): 32.0}
    (told,) = warnings_of(made(bench, arms))
    assert told.startswith("warning: the teacher, AP 31.0, is below the baseline, 32.0: ")
    assert warnings_of(made(bench, {**arms, ("teacher", 0): 32.5})) == []


@pytest.mark.parametrize(
    ("best", "epochs", "told"),
    [
        ([6, 6], 12, ["warning: the baseline was best at epoch 6 of 12 and not since: "]),
        ([2, 6], 12, ["warning: the baseline was best at epoch 2, 6 of 12 and not since: "]),
        ([2, 7], 12, []),
        ([1, 1], 1, []),
    ],
)
def test_a_baseline_that_gains_no_more_after_half_its_epochs_is_warned_of(bench, best, epochs, told):
    jobs = [bench.job("baseline", seed) for seed in (0, 1)]
    for job, epoch in zip(jobs, best, strict=True):
        last, top = (Evaluation({"AP": 30.0}, epoch=one) for one in (epochs, epoch))
        bench.finish(job, last=last, best=top)
    found = warnings_of(table(of_plan(bench.plan(jobs, arms={"baseline": {}}), bench.runs)))
    assert [note[: len(start)] for note, start in zip(found, told, strict=True)] == told


def test_a_baseline_that_has_learned_nothing_is_warned_of(bench):
    (told,) = warnings_of(made(bench, {("teacher", 0): 40.0, ("baseline", 0): 0.4, ("rm", 0): 3.0}))
    assert told.startswith("warning: the baseline has learned nothing, AP 0.4: ")


def test_seeds_in_micro_batches_have_a_row_of_their_own_unless_they_are_pooled(bench):
    cut = bench.job("rm", 1, settings={"micro_batch": 4})
    jobs = [bench.job("baseline"), bench.job("rm", 0), cut]
    plan = bench.plan(jobs)
    for job, ap in zip(jobs, (30.0, 32.0, 36.0), strict=True):
        bench.finish(job, ap)
    split = table(of_plan(plan, bench.runs)).usual()
    assert [row[0].text for row in split.rows] == ["baseline", "rm", "rm [micro-batch 4]"]
    assert any("ran out of GPU memory: rm seed 1 (4 images)" in note for note in split.footnotes)
    pooled = table(of_plan(plan, bench.runs, pool=True)).usual()
    assert [row[0].text for row in pooled.rows] == ["baseline", "rm"]
    assert pooled.rows[1][1].value == 34.0


BASELINE = {("baseline", 0): 20.0, ("baseline", 1): 21.0, ("baseline", 2): 19.5}


def arm(name, *aps):
    return {(name, seed): ap for seed, ap in enumerate(aps)}


def test_a_gain_that_the_test_supports_has_a_star_and_its_p(bench):
    shown = made(bench, BASELINE | arm("rm", 22.0, 23.1, 21.6))
    assert texts(shown, "rm")["dAP"] == "+2.1 *"
    assert texts(shown, "rm")["p"] == "<0.001"
    assert any(note.startswith("* p Holm < 0.05") for note in shown.footnotes)


def test_a_tiny_p_is_not_shown_as_zero(bench):
    shown = made(bench, BASELINE | arm("rm", 30.0, 31.0, 29.5001))
    assert texts(shown, "rm")["p"] == "<0.001"


def test_best_is_bold_only_where_the_test_supports_its_gain(bench):
    sure = made(bench, BASELINE | arm("rm", 22.0, 23.1, 21.6) | arm("pfi", 20.5, 21.0, 20.5))
    assert marks(sure) == {"baseline": "", "rm": "bold", "pfi": "underline"}
    unsure = made(bench, BASELINE | arm("rm", 26.0, 20.0, 22.0) | arm("pfi", 20.5, 21.0, 20.5))
    assert set(marks(unsure).values()) == {""}


def test_a_baseline_that_nothing_beats_is_not_bold(bench):
    assert marks(made(bench, BASELINE | arm("rm", 18.0, 19.1, 17.6))) == {"baseline": "", "rm": ""}


def test_an_arm_that_lacks_a_seed_stands_out_in_nothing_but_its_n(bench):
    shown = made(bench, BASELINE | arm("rm", 29.0, 30.0, None) | arm("pfi", 22.0, 23.1, 21.6))
    assert marks(shown) == {"baseline": "underline", "rm": "", "pfi": "bold"}
    assert texts(shown, "rm")["n"] == "2 of 3"
    assert texts(shown, "rm")["p"] == ""


def test_where_every_arm_lacks_a_seed_nothing_stands_out(bench):
    shown = made(bench, BASELINE | {("baseline", 3): None} | arm("rm", 22.0, 23.1, 21.6, None))
    assert marks(shown) == {"baseline": "", "rm": ""}
    assert texts(shown, "rm")["p"] == "<0.001"


def test_seeds_in_micro_batches_take_no_bold_from_an_arm_that_is_whole(bench):
    aps = BASELINE | arm("rm", 22.0, 23.1, 21.6) | arm("pfi", 30.0, 31.0, 30.5)
    jobs = {
        (name, seed): bench.job(name, seed, settings={"micro_batch": 2} if (name, seed) == ("pfi", 2) else {})
        for name, seed in aps
    }
    for key, job in jobs.items():
        bench.finish(job, aps[key])
    shown = table(of_plan(bench.plan(list(jobs.values())), bench.runs)).usual()
    assert marks(shown) == {"baseline": "underline", "rm": "bold", "pfi": "", "pfi [micro-batch 2]": ""}
    assert [texts(shown, name)["n"] for name in ("pfi", "pfi [micro-batch 2]")] == ["2 of 3", "1 of 3"]


def test_between_unlike_batches_there_is_a_gain_and_no_test(bench):
    jobs = [bench.job("baseline", seed) for seed in range(3)]
    jobs += [bench.job("rm", seed, settings={"micro_batch": 2}) for seed in range(3)]
    for job, ap in zip(jobs, (20.0, 21.0, 19.5, 30.0, 31.0, 29.5001), strict=True):
        bench.finish(job, ap)
    shown = table(of_plan(bench.plan(jobs), bench.runs)).usual()
    assert texts(shown, "rm [micro-batch 2]")["dAP"] == "+10.0"
    keys = [column.key for column in shown.columns]
    assert not {"p", "p_holm", "interval"} & set(keys)
    assert any(note.startswith("rm [micro-batch 2]: the baseline ran in other") for note in shown.footnotes)


def test_below_three_seeds_there_is_no_p_no_star_and_nothing_bold(bench):
    shown = made(bench, {("baseline", 0): 20.0, ("rm", 0): 40.0})
    assert "p" not in [column.key for column in shown.columns]
    assert texts(shown, "rm")["dAP"] == "+20.0"
    assert set(marks(shown).values()) == {""}
    told = "1 seed cannot say what others would gain: no p, no star, no bold below 3"
    # second, right after which epoch and seeds these are
    assert shown.footnotes[1] == told
    assert not any("could show" in note for note in shown.footnotes)


def test_the_number_of_seeds_is_a_column_only_where_arms_differ_in_it(bench):
    assert "n" not in [column.key for column in made(bench, BASELINE | arm("rm", 1.0, 2.0, 3.0)).columns]
    assert "n" in [column.key for column in made(bench, BASELINE | arm("rm", 1.0)).columns]


def test_a_column_that_nobody_fills_can_be_asked_for(bench):
    whole = table(of_plan(bench.plan([bench.job("baseline")]), bench.runs))
    assert [cell.text for cell in whole.only(["p", "n"]).rows[0]] == ["baseline", "", "0 of 1"]


def test_a_p_that_is_not_small_has_three_decimals(bench):
    shown = made(bench, BASELINE | arm("rm", 26.0, 20.0, 22.0))
    assert texts(shown, "rm")["p"] == "0.342"


def test_an_arm_that_shares_no_seed_with_the_baseline_says_so(bench):
    notes = made(bench, {("baseline", 0): 30.0, ("rm", 1): 31.0}).footnotes
    assert "rm: no gain, for it shares no finished seed with the baseline" in notes


def test_a_table_without_a_baseline_says_so(bench):
    assert "no gains: no arm is without methods" in made(bench, {("rm", 0): 31.0}).footnotes


def test_times_that_cannot_be_are_called_so(bench):
    job = bench.job("rm")
    bench.finish(job, timing={"student_step_s": 0.2, "teacher_forward_s": 0.1, "distill_step_s": 0.25})
    notes = table(of_plan(bench.plan([job]), bench.runs)).usual().footnotes
    assert "method x below 1 cannot be; the machine was busy with other work: rm" in notes


def test_runs_chosen_by_their_results_are_called_so(bench):
    recipe = {"name": "d", "arms": {"baseline": {}}, "query": "metrics.`val/AP` > 20"}
    notes = table(of_plan(bench.plan([bench.job("baseline")], recipe=recipe), bench.runs)).footnotes
    assert any(note.startswith("warning: these runs were chosen by their results") for note in notes)


def test_each_number_can_say_how_it_was_made(bench):
    shown = made(bench, BASELINE | arm("rm", 22.0, 23.1, 21.6))
    [row] = [row for row in shown.rows if row[0].text == "rm"]
    how = {column.key: cell.how for column, cell in zip(shown.columns, row, strict=True)}
    assert how["AP"] == "mean ± sample deviation of seed 0: 22.0, seed 1: 23.1, seed 2: 21.6"
    assert how["dAP"] == "paired by seed; mean of seed 0: +2.0, seed 1: +2.1, seed 2: +2.1"
    assert how["p"] == "paired t test over 3 seeds, two-sided"
    assert how["interval"] == "t interval of the mean difference over 3 seeds"


def test_results_without_resampled_ap_are_named(bench):
    notes = made(bench, BASELINE).footnotes
    labels = "baseline seed 0, baseline seed 1, baseline seed 2"
    assert f"no interval over images for 3 jobs without AP on resampled images: {labels}" in notes


def test_an_interval_of_seeds_alone_is_called_so(bench):
    notes = made(bench, BASELINE | arm("rm", 22.0, 23.1, 21.5)).footnotes
    assert "rm: dAP 95 % and p are for other seeds on these images alone" in notes


# differences of the baseline 2.0, 2.1 and 2.9; alone p = 0.015, among three arms 0.045, among four 0.06
CLOSE = (22.0, 23.1, 22.4)


def test_p_is_of_the_arm_alone_and_p_holm_of_all_arms(bench):
    shown = made(bench, BASELINE | arm("rm", *CLOSE) | arm("pfi", 26.0, 20.0, 22.0))
    p = stats.ttest_rel(CLOSE, list(BASELINE.values())).pvalue
    assert texts(shown, "rm")["p"] == f"{p:.3f}"
    assert texts(shown, "rm")["p_holm"] == f"{2 * p:.3f}"
    keys = [column.key for column in shown.columns]
    assert keys[keys.index("dAP") :][:4] == ["dAP", "interval", "p", "p_holm"]


def test_p_holm_of_a_single_arm_is_its_p_and_no_column(bench):
    shown = made(bench, BASELINE | arm("rm", *CLOSE))
    assert "p_holm" not in [column.key for column in shown.columns]
    assert texts(shown, "rm")["dAP"].endswith("*")


def test_an_interval_without_0_and_without_a_star_says_why(bench):
    results = BASELINE | arm("rm", *CLOSE)
    others = [arm(f"arm{n}", 20.0, 21.5 + n, 18.0) for n in range(4)]
    for other in others:
        results = results | other
    shown = made(bench, results)
    assert texts(shown, "rm")["dAP"] == "+2.3"
    assert "rm: p < 0.05 but no star: among 5 arms luck makes such a p too often" in shown.footnotes
    sure = made(bench, BASELINE | arm("rm", *CLOSE)).footnotes
    assert not any("but no star" in note for note in sure)


def test_below_five_seeds_a_table_says_how_small_a_gain_it_could_have_shown(bench):
    results = BASELINE | arm("rm", *CLOSE) | arm("pfi", 26.0, 20.0, 22.0)
    shown = made(bench, results)
    half = {
        name: stats.t.ppf(0.975, 2) * stats.sem(np.subtract(aps, list(BASELINE.values())))
        for name, aps in (("rm", CLOSE), ("pfi", (26.0, 20.0, 22.0)))
    }
    told = f"3 seeds could show gains from {half['rm']:.1f} AP (rm) to {half['pfi']:.1f} AP (pfi) on"
    assert shown.footnotes[1].startswith(told)


def test_from_five_seeds_on_it_does_not(bench):
    results = arm("baseline", 20.0, 21.0, 19.5, 20.4, 20.6) | arm("rm", 22.0, 23.5, 22.3, 22.6, 23.0)
    assert not any("could show" in note for note in made(bench, results).footnotes)


def test_the_least_gain_is_of_each_arms_own_seeds(bench):
    plain = arm("baseline", 20.0, 21.0, 19.5, 20.4, 20.6)
    results = plain | arm("rm", 22.0, 23.5, 22.3, 22.6, 23.0) | arm("pfi", *CLOSE, 23.0, None)
    [note] = [note for note in made(bench, results).footnotes if "could show" in note]
    assert note.startswith("4 seeds could show gains from ")
    assert "(rm)" not in note


def test_seeds_that_all_gain_the_same_are_called_so(bench):
    notes = made(bench, BASELINE | arm("rm", *BASELINE.values())).footnotes
    assert "rm: all seeds gain exactly the same: no noise to judge by, no p" in notes


def test_classes_are_rows_and_arms_columns(bench):
    jobs = [bench.job("baseline"), bench.job("rm", 0), bench.job("rm", 1)]
    for job, classes in zip(jobs, ({"cat": 10.0}, {"cat": 20.0, "dog": 5.0}, {"cat": 21.0}), strict=True):
        bench.finish(job, last=Evaluation({"AP": 30.0}, classes))
    shown = by_class(of_plan(bench.plan(jobs), bench.runs))
    assert [column.title for column in shown.columns] == ["class", "baseline", "rm"]
    assert [[cell.text for cell in row] for row in shown.rows] == [
        ["cat", "10.0", "20.5"],
        ["dog", "-", "5.0"],
    ]


def test_a_table_by_class_explains_no_stars_and_still_says_that_one_seed_is_one(bench):
    several = by_class(of_plan(bench.plan(ended(bench, BASELINE | arm("rm", *CLOSE))), bench.runs))
    assert not [note for note in several.footnotes if "p Holm" in note or "could show" in note]
    one = by_class(of_plan(bench.plan(ended(bench, {("baseline", 0): 20.0, ("rm", 0): 21.0})), bench.runs))
    assert any(note.startswith("1 seed cannot say") for note in one.footnotes)


def marks(table):
    """How the AP of each arm stands out."""
    place = [column.key for column in table.columns].index("AP")
    return {row[0].text: row[place].mark for row in table.rows}
