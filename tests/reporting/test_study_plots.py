from __future__ import annotations

import io
from dataclasses import replace

import pandas
import pytest
from matplotlib.axes import Axes

from kdlab.reporting.plots.plot import Plot, drawn
from kdlab.reporting.study import Dimension, Study, Trial
from kdlab.reporting.study_plots import PLOTS, draw, pictures, write_plots
from kdlab.reporting.study_plots.marks import floor, looks

WEIGHT, TAU = Dimension("rm.weight", 0.1, 10.0, True), Dimension("rm.tau", 0.0, 8.0)
RANK = Dimension("rm.rank", choices=("cls", "loc"))


def trial(number: int, ap: float | None, *others: float, note: str = "", state="complete", **params) -> Trial:
    """A trial of two epochs; one without AP failed before the first, one that was pruned has one epoch."""
    settings = {"rm.weight": 0.1 + number, "rm.tau": number % 8, "rm.rank": "loc" if number % 2 else "cls"}
    settings = {**settings, **{f"rm.{name}": value for name, value in params.items()}}
    if ap is None:
        return Trial(number, "failed", settings, note=note)
    if state == "pruned":
        return Trial(number, state, settings, course={1: ap}, note=note)
    return Trial(number, state, settings, (ap, *others), {1: ap / 2, 2: ap}, note)


def plain(ap: float = 30.0, *others: float) -> Trial:
    return replace(trial(0, ap, *others, note="no method"), params={})


def study(*trials: Trial, objectives=("AP",), dimensions=(WEIGHT, TAU, RANK)) -> Study:
    return Study("digits/gfl", "GFL $R18$ -> R9_x", objectives, dimensions, trials, None, 3, (1600, 400))


def several(*trials: Trial) -> Study:
    return study(*trials, objectives=("AP", "latency"))


def plotted(study: Study, name: str) -> Plot:
    return drawn({name: PLOTS[name]}, study)[name]


def numbers(study: Study, name: str) -> pandas.DataFrame:
    return pandas.read_csv(io.StringIO(plotted(study, name).csv()), comment="#")


def axes(study: Study, name: str, place: int = 0) -> Axes:
    return plotted(study, name).figure.axes[place]


def meanings(study: Study, name: str) -> list[str]:
    return [text.get_text().strip() for text in plotted(study, name).figure.legends[0].get_texts()]


def test_each_plot_is_a_picture_a_vector_drawing_and_its_numbers(tmp_path):
    files = write_plots(several(plain(30.0, 4.0), trial(1, 31.0, 5.0)), tmp_path, "digits/gfl")
    expected = [f"digits/gfl-{name}.{suffix}" for name in PLOTS for suffix in ("png", "pdf", "csv")]
    assert [path.relative_to(tmp_path).as_posix() for path in files] == expected
    assert all(path.stat().st_size for path in files)


def test_pictures_of_a_page_are_the_same_plots():
    two = study(plain(), trial(1, 31.0))
    assert [one.title for one in pictures(two)] == [plot.title for plot in draw(two).values()]


@pytest.mark.parametrize("trials", [(), (trial(0, None), trial(1, None))])
def test_nothing_is_drawn_where_no_trial_was_measured(trials):
    assert draw(study(*trials)) == {}


def test_trials_that_were_all_pruned_have_no_plot_of_their_ends():
    assert [*draw(study(trial(0, 20.0, state="pruned"), trial(1, 21.0, state="pruned")))] == ["history"]


def test_front_takes_several_objectives():
    assert "front" not in draw(study(plain(), trial(1, 31.0)))


@pytest.mark.parametrize("dimensions", [(WEIGHT,), (WEIGHT, TAU, RANK) * 2])
def test_two_hundred_trials_of_any_dimensions_can_be_drawn(dimensions):
    names = [replace(one, name=f"m{place}.{one.name}") for place, one in enumerate(dimensions)]
    params = {one.name: 0.5 if one.numeric else "cls" for one in names}
    trials = (replace(trial(number, 30.0 + number % 7), params=params) for number in range(200))
    made = draw(study(*trials, dimensions=tuple(names)))
    assert [*made] == ["history", "slices", "parallel", "course"]


def test_title_says_what_was_tuned_and_the_caption_what_it_is_worth():
    plot = plotted(study(plain(), trial(1, None)), "history")
    assert plot.title == "Trials: GFL $R18$ -> R9_x, 1 of 2 trials complete, seed 3"
    assert "no numbers for a paper" in plot.caption


def test_history_knows_the_best_so_far_by_trial():
    trials = (trial(0, None), trial(1, 30.0), trial(2, 29.0), trial(3, 25.0, state="pruned"), trial(4, 31.0))
    rows = numbers(study(*trials), "history")
    assert rows["best_so_far"].fillna(0).tolist() == [0, 30, 30, 30, 31]
    assert rows["AP"].fillna(0).tolist() == [0, 30, 29, 25, 31]


def test_axis_of_trials_has_whole_numbers_also_for_a_single_one():
    shown = axes(study(plain()), "history")
    low, high = shown.get_xlim()
    assert [tick for tick in shown.get_xticks() if low <= tick <= high] == [0.0]


def test_pruned_trials_are_hollow_and_failed_ones_crosses_at_the_edge():
    shown = axes(study(trial(0, 30.0), trial(1, 25.0, state="pruned"), trial(2, None)), "history")
    lines = {line.get_label().strip(): line for line in shown.lines}
    assert lines["pruned"].get_markerfacecolor() == "none"
    assert [*lines["pruned"].get_ydata()] == [25.0]
    assert (lines["failed"].get_marker(), [*lines["failed"].get_xdata()]) == ("x", [2])


def test_references_and_the_best_are_named_with_their_ap():
    told = meanings(study(plain(), trial(1, 31.0, note="published"), trial(2, 32.0)), "history")
    assert told[-3:] == ["no method  30.0", "published  31.0", "best: trial 2  32.0"]


def test_reference_that_is_the_best_is_named_once():
    told = meanings(study(plain(), trial(1, 31.0, note="published")), "history")
    assert [name for name in told if "published" in name] == ["best: trial 1 (published)  31.0"]


def test_references_look_unlike_each_other_and_stay_as_they_are_in_every_plot():
    found = looks(study(plain(), *(trial(number, 30.0, note=f"best known {number}") for number in (1, 2, 3))))
    assert len({(one["color"], one["marker"]) for one in found.values()}) == 4


def test_collapsed_trial_is_a_triangle_at_the_edge_and_does_not_flatten_the_others():
    trials = (*(trial(number, 30.0 + number / 10) for number in range(8)), trial(8, 2.0))
    plot = plotted(study(*trials), "history")
    assert plot.figure.axes[0].get_ylim()[0] > 29
    assert "Triangles at the edge: 1 below 30.0." in plot.caption
    assert "v" in [line.get_marker() for line in plot.figure.axes[0].lines]


@pytest.mark.parametrize("aps", [[30.0], [30.0, 30.0], [2.0, 31.0], [25.0, 29.0, 30.0]])
def test_scale_shows_all_trials_that_are_not_far_off(aps):
    assert floor(aps) == min(aps)


def test_slices_hold_the_trials_that_have_a_value():
    weightless = trial(2, 29.0, weight=0)
    rows = numbers(study(plain(), trial(1, 31.0), weightless), "slices")
    assert rows["trial"].unique().tolist() == [1]
    assert rows["dimension"].tolist() == ["rm.weight", "rm.tau", "rm.rank"]
    assert rows["value"].tolist() == ["1.1", "1", "loc"]


def test_dimension_that_only_a_reference_lacks_keeps_its_panel_and_the_reference_its_others():
    lacking = replace(trial(1, 31.0, note="published"), params={"rm.weight": 1.0})
    two = study(lacking, trial(2, 30.0))
    assert numbers(two, "slices").query("trial == 1")["dimension"].tolist() == ["rm.weight"]
    assert len(plotted(two, "slices").figure.axes) == 3


def test_slice_shows_the_whole_range_that_was_searched_and_what_lay_beyond_it():
    trials = (trial(1, 30.0, weight=1.0), trial(2, 31.0, weight=20.0, note="published"))
    low, high = axes(study(*trials), "slices").get_xlim()
    assert low < 0.1
    assert high > 20.0


def test_slice_is_logarithmic_where_the_search_was():
    two = study(trial(1, 30.0), trial(2, 31.0))
    assert [axes(two, "slices", place).get_xscale() for place in range(3)] == ["log", "linear", "linear"]


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.9), (0.5, 20.0), (0.01, 10.0), (1e-6, 1e3)])
def test_axis_of_any_width_has_numbers(low, high):
    narrow = Dimension("rm.weight", low, high, True)
    plot = plotted(
        study(trial(1, 30.0, weight=low), trial(2, 31.0, weight=high), dimensions=(narrow,)), "slices"
    )
    shown = [tick for tick in plot.figure.axes[0].get_xticks() if low <= tick <= high]
    assert 2 <= len(shown) <= 6


def test_choices_stand_side_by_side_and_equal_trials_at_equal_places():
    trials = [trial(number, 30.0, rank="cls") for number in range(1, 6)]
    first, again = (axes(study(*trials), "slices", 2).lines for _ in range(2))
    assert [[*line.get_xdata()] for line in first] == [[*line.get_xdata()] for line in again]
    xs = [x for line in first for x in line.get_xdata()]
    assert len({*xs}) == len(trials)
    assert all(abs(x) <= 0.25 for x in xs)


def test_choice_that_the_search_has_not_gets_a_place_of_its_own():
    ticks = axes(study(trial(1, 30.0, rank="both"), trial(2, 31.0)), "slices", 2).get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["cls", "loc", "both"]


def test_parallel_coordinates_take_two_trials():
    assert "parallel" not in draw(study(trial(1, 30.0)))


def test_parallel_coordinates_keep_a_method_that_was_off_below_the_axes():
    two = study(plain(), trial(1, 31.0))
    rows = numbers(two, "parallel")
    assert rows["trial"].tolist() == [1, 0]
    assert rows.loc[1, ["rm.weight", "rm.tau", "rm.rank"]].isna().all()
    line = next(line for line in axes(two, "parallel").lines if "no method" in line.get_label())
    assert max(line.get_ydata()[:3]) < 0


def test_the_higher_the_darker_and_the_best_is_thick():
    lines = axes(study(*(trial(number, 30.0 + number) for number in (1, 2, 3))), "parallel").lines[:3]
    brightness = [sum(line.get_color()[:3]) for line in lines]
    assert brightness == sorted(brightness, reverse=True)
    assert lines[-1].get_linewidth() > 2 * lines[0].get_linewidth()


def test_parallel_coordinates_bear_trials_that_do_not_differ():
    same = [replace(trial(number, 30.0), params={"rm.weight": 1.0}) for number in (1, 2)]
    fixed = Dimension("rm.weight", 1.0, 1.0, True)
    assert len(numbers(study(*same, dimensions=(fixed,)), "parallel")) == 2


def test_front_is_joined_and_numbered():
    two = several(trial(1, 30.0, 3.0), trial(2, 31.0, 4.0), trial(3, 29.0, 5.0))
    assert numbers(two, "front")["on_front"].tolist() == [1, 1, 0]
    shown = axes(two, "front")
    assert [*shown.lines[0].get_xdata()] == [3.0, 4.0]
    assert [text.get_text() for text in shown.texts] == ["1", "2"]


def test_course_of_a_pruned_trial_ends_early_in_a_ring():
    two = study(trial(1, 30.0), trial(2, 20.0, state="pruned"), trial(3, 29.0))
    assert numbers(two, "course").query("trial == 2")["epoch"].tolist() == [1]
    rings = [line for line in axes(two, "course").lines if line.get_marker() == "o"]
    assert [[*line.get_xdata()] for line in rings] == [[1]]


def test_course_takes_two_epochs():
    single = [replace(trial(number, 30.0), course={1: 30.0}) for number in (1, 2)]
    assert "course" not in draw(study(*single))
