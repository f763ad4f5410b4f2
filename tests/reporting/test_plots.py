from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pytest

from kdlab.jobs.plan import Plan, PlannedJob
from kdlab.jobs.result import Curves, Evaluation, JobResult
from kdlab.jobs.status import JobStatus, State
from kdlab.reporting.arms import Arm
from kdlab.reporting.comparison import Comparison, Gain
from kdlab.reporting.plots import PLOTS, draw, pictures, write_plots
from kdlab.reporting.plots.plot import Plot
from kdlab.reporting.statistics import Interval
from kdlab.reporting.tide import lost
from tests.reporting.test_tide import scattered
from tests.stubs.jobs import make

METRICS = {"AP": 30.0, "AP50": 50.0, "APs": 20.0, "APl": 40.0}
ARMS = {"baseline": (30.0, 31.0), "rm": (32.0, 32.0), "rm+pfi": (29.0, 34.0)}

LOST = [lost(scattered(seed), 10) for seed in (0, 1)]

Change = Callable[[JobResult], JobResult]


def result(arm: str, seed: int, ap: float) -> JobResult:
    return JobResult(
        id=f"student-{arm}{seed}",
        kind="teacher" if arm == "teacher" else "student",
        arm=arm,
        seed=seed,
        last=Evaluation({**METRICS, "AP": ap}, {"cat": ap + seed, "dog": 10.0}, epoch=2, iteration=10),
        timing={"latency_s": 0.008 + seed / 1000},
    )


def curves(one: JobResult) -> Curves:
    """Two evaluations and two reports; AP halves an epoch earlier, methods pull by 0.5 each."""
    methods = [] if one.arm in ("baseline", "teacher") else one.arm.split("+")
    weighted = {f"loss_{name}": 0.5 for name in methods}
    terms = {"loss_cls": 1.0, **weighted, "loss": 1.0 + sum(weighted.values())}
    terms |= {f"raw_{name}": 9.0 for name in methods} | {f"share_{name}": 4.0 for name in methods}
    first = Evaluation({"AP": one.metrics["AP"] / 2}, epoch=1, iteration=5)
    return Curves([first, one.last], [{"iteration": step, "lr": 0.1, **terms} for step in (5, 10)])


def arm(name: str, aps: tuple[float, ...], change: Change) -> Arm:
    records = [
        JobStatus(
            make(f"student-{name}{seed}", name, seed),
            state=State.DONE,
            result=change(result(name, seed, ap)),
        )
        for seed, ap in enumerate(aps)
    ]
    return Arm(name, name != "baseline", False, tuple(records), len(aps))


def compared(
    aps: dict[str, tuple[float, ...]] = ARMS, change: Change = lambda one: one, **gain: Any
) -> Comparison:
    arms = [arm(name, values, change) for name, values in aps.items()]
    teacher = arm("teacher", (40.0,), change)
    baseline = aps["baseline"]
    gains = {
        name: Gain(
            tuple(range(len(values))),
            tuple(own - plain for own, plain in zip(values, baseline, strict=False)),
            **gain,
        )
        for name, values in aps.items()
        if name != "baseline"
    }
    jobs = (PlannedJob(make("student-a"), False, "new"),)
    plan = Plan("7f3a", {"name": "digits/gfl", "title": "GFL $R18$ -> R9_x"}, jobs, "cpu", {})
    results = [result for arm in (teacher, *arms) for result in arm.results.values()]
    shown = {result.id: curves(result) for result in results}
    found = {result.id: LOST[result.seed] for result in results}
    return Comparison(plan, [], teacher, arms, arms[0], gains, curves=shown, lost=found)


def many(count: int) -> dict[str, tuple[float, ...]]:
    return {"baseline": (30.0, 31.0), **{f"_arm{place}": (32.0, 32.5) for place in range(count - 1)}}


def plotted(comparison: Comparison, name: str) -> Plot:
    return draw(comparison, [name])[name]


def numbers(comparison: Comparison, name: str) -> pandas.DataFrame:
    return pandas.read_csv(io.StringIO(plotted(comparison, name).csv()), comment="#")


def test_each_plot_is_a_picture_a_vector_drawing_and_its_numbers(tmp_path):
    files = write_plots(compared(), tmp_path, "digits/gfl")
    expected = [f"digits/gfl-{name}.{suffix}" for name in PLOTS for suffix in ("png", "pdf", "csv")]
    assert [path.relative_to(tmp_path).as_posix() for path in files] == expected
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF", ".csv": b"# "}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in files)


def test_equal_results_give_equal_files(tmp_path):
    def written() -> list[bytes]:
        # a single arm at a single seed is drawn fastest
        return [path.read_bytes() for path in write_plots(compared({"baseline": (30.0,)}), tmp_path, "gfl")]

    assert written() == written()


@pytest.mark.parametrize("count", [2, 22])
def test_any_number_of_arms_can_be_drawn(count):
    assert draw(compared(many(count))).keys() == PLOTS.keys()


def test_nothing_is_drawn_before_a_student_has_finished():
    arms = [replace(arm, records=()) for arm in compared().arms]
    assert draw(replace(compared(), arms=arms, baseline=arms[0], gains={})) == {}


def test_title_says_what_was_run_how_often_and_for_how_long():
    assert plotted(compared(), "gains").title == "Gains: GFL $R18$ -> R9_x, n=2, after epoch 2"


def test_ap_by_epoch_is_the_mean_with_the_lowest_and_the_highest_seed():
    rows = numbers(compared(), "ap_by_epoch").query("arm == 'rm+pfi'").drop(columns="arm")
    assert rows.to_numpy().tolist() == [[1, 15.75, 14.5, 17.0, 2], [2, 31.5, 29.0, 34.0, 2]]


def test_the_teacher_has_its_own_curve():
    plot = plotted(compared(), "ap_by_epoch")
    assert numbers(compared(), "ap_by_epoch").query("arm == 'teacher'")["AP"].tolist() == [20.0, 40.0]
    assert [20.0, 40.0] in [list(line.get_ydata()) for line in plot.figure.axes[0].lines]
    assert "Dotted: the teacher" in plot.caption


def test_band_is_drawn_for_several_seeds_only():
    several, single = (
        plotted(compared(aps), "ap_by_epoch").figure.axes[0].collections
        for aps in (ARMS, {"baseline": (30.0,), "rm": (31.0,)})
    )
    assert (len(several), len(single)) == (3, 0)


def test_many_arms_get_a_panel_each_beside_the_baseline():
    panels = plotted(compared(many(9)), "ap_by_epoch").figure.axes
    assert len(panels) == 8
    assert panels[0].get_title(loc="left") == "_arm0  32.2"


def test_gains_keep_their_intervals_and_their_order():
    intervals = {"interval": Interval(-1.0, 3.0), "other_images": Interval(0.5, 2.0)}
    rows = numbers(compared(**intervals), "gains")
    assert rows["arm"].tolist() == ["rm", "rm+pfi"]
    assert rows.loc[0].tolist() == ["rm", 1.5, -1.0, 3.0, 0.5, 2.0, 2]


def test_gain_without_an_interval_is_a_dot_alone():
    rows = numbers(compared(), "gains")
    assert rows[["low", "high", "other_images_low", "other_images_high"]].isna().all(axis=None)


def test_the_axis_of_gains_does_not_shrink_to_what_rounding_left_of_none():
    [axes] = plotted(compared({"baseline": (0.1 + 0.2,), "rm": (0.3,)}), "gains").figure.axes
    assert axes.get_xlim() == (-0.1, 0.1)


def test_the_scale_of_losses_does_not_reach_down_to_what_rounding_left_of_none():
    comparison = compared({"baseline": (30.0,), "rm": (31.0,)})
    report = {"iteration": 5, "lr": 0.1, "loss": 1.0, "loss_rm": 1.0 - 1e-16, "raw_rm": 9.0}
    job = comparison.arms[1].results[0].id
    told = replace(comparison, curves={**comparison.curves, job: Curves([], [report])})
    axes = plotted(told, "losses").figure.axes
    assert min(one.get_ylim()[0] for one in axes) > 1e-7


def test_size_without_objects_is_left_out():
    assert set(numbers(compared(), "ap_by_size")["size"]) == {"APs", "APl"}
    assert len(plotted(compared(), "ap_by_size").figure.axes) == 2


def test_latency_is_the_median_over_seeds_beside_the_mean_ap():
    rows = numbers(compared(), "ap_by_latency")
    assert rows.query("arm == 'rm+pfi'").to_numpy().tolist() == [["rm+pfi", 8.5, 31.5, 2]]
    assert "teacher" in set(rows["arm"])


def test_results_without_latency_or_classes_have_no_such_plot():
    bare = compared(change=lambda one: replace(one, timing={}, last=replace(one.last, per_class={})))
    assert draw(bare, ["ap_by_latency", "gains_by_class"]) == {}


def test_losses_are_the_weighted_terms_beside_the_detectors_own():
    rows = numbers(compared(), "losses").query("iteration == 5").drop(columns="iteration")
    assert rows.to_numpy().tolist() == [
        ["teacher", "detection", 1.0, 1],
        ["baseline", "detection", 1.0, 2],
        ["rm", "detection", 1.0, 2],
        ["rm", "rm", 0.5, 2],
        ["rm+pfi", "detection", 1.0, 2],
        ["rm+pfi", "rm", 0.5, 2],
        ["rm+pfi", "pfi", 0.5, 2],
    ]


def test_shares_of_the_gradient_are_those_of_the_reports_in_which_somebody_looked():
    comparison = compared({"baseline": (30.0,), "rm": (31.0, 31.5)})
    none = {job: Curves() for job in comparison.curves}
    assert draw(replace(comparison, curves=none), ["gradient_shares"]) == {}
    told = {
        comparison.arms[1].results[seed].id: Curves([], [
            {"iteration": 50, "lr": 0.1, "loss": 1.0, "share_rm": 4.0 + seed},
            {"iteration": 60, "lr": 0.1, "loss": 1.0},
        ])
        for seed in (0, 1)
    }  # fmt: skip
    rows = numbers(replace(comparison, curves={**comparison.curves, **told}), "gradient_shares")
    assert rows.to_numpy().tolist() == [["rm", "rm", 50, 4.5, 2]]


def test_gain_of_a_class_is_the_mean_over_the_common_seeds():
    rows = numbers(compared({"baseline": (30.0, 31.0), "rm": (32.0,)}), "gains_by_class")
    assert rows.to_numpy().tolist() == [["cat", "rm", 2.0, 1], ["dog", "rm", 0.0, 1]]


def test_classes_that_change_least_are_counted_and_not_shown():
    def classes(one: JobResult) -> JobResult:
        gain = 0.0 if one.arm == "baseline" else 1.0
        per_class = {f"c{place}": gain * place for place in range(32)}
        return replace(one, last=replace(one.last, per_class=per_class))

    plot = plotted(compared(change=classes), "gains_by_class")
    shown = pandas.read_csv(io.StringIO(plot.csv()), comment="#")["class"].unique().tolist()
    assert shown == [f"c{place}" for place in range(31, 1, -1)]
    assert plot.caption.endswith("2 more classes change less in every arm.")


def test_pictures_of_the_page_are_the_same_plots_as_svg():
    comparison = compared({"baseline": (30.0,)})
    made = pictures(comparison)
    assert [picture.title for picture in made] == [plot.title for plot in draw(comparison).values()]
    assert all("<svg" in picture.svg for picture in made)


def test_the_kinds_of_error_are_drawn_by_arm_with_their_seeds():
    rows = numbers(compared(), "ap50_lost").query("error == 'localisation'").set_index("arm")
    values = [one.gains["loc"] for one in LOST]
    assert rows.loc["rm", "dAP50"] == pytest.approx(sum(values) / 2, abs=1e-4)
    assert rows.loc["rm", ["low", "high"]].tolist() == pytest.approx([min(values), max(values)], abs=1e-4)
    assert rows["n"].to_dict() == {"teacher": 1, "baseline": 2, "rm": 2, "rm+pfi": 2}


def test_confusion_is_a_panel_an_arm_with_shares_of_the_objects_of_a_class():
    plot = plotted(compared(), "confusion")
    titles = [axes.get_title(loc="left") for axes in plot.figure.axes]
    assert titles == ["teacher", "baseline", "rm", "rm+pfi"]
    rows = numbers(compared(), "confusion").query("arm == 'rm'")
    objects = rows.query("object != '(background)'").groupby("object")["share"].sum()
    assert objects.tolist() == pytest.approx([1.0] * 3, abs=1e-4)


def test_of_many_classes_the_most_confused_are_drawn():
    many = make("student-a")
    names = tuple(f"class {place}" for place in range(30))
    files = replace(many.inputs.dataset, classes=names)
    job = replace(many, inputs=replace(many.inputs, dataset=files))
    one = compared()
    # the last class is taken for the first, and no others are confused
    matrix = np.zeros((31, 31), int)
    matrix[29, 0] = 5
    confused = replace(LOST[0], confusion=matrix)
    plan = replace(one.plan, jobs=(PlannedJob(job, False, "new"),))
    plot = plotted(replace(one, plan=plan, lost=dict.fromkeys(one.lost, confused)), "confusion")
    labels = [tick.get_text() for tick in plot.figure.axes[0].get_yticklabels()]
    assert len(labels) == 21
    assert {"class 0", "class 29", "(background)"} <= {*labels}
    assert "10 classes that are confused less are left out" in plot.caption


def test_without_detections_there_are_no_plots_of_errors():
    assert not draw(replace(compared(), lost={}), ["ap50_lost", "confusion"])
