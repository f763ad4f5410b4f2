from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdlab.jobs.study import Dimension, State, Study, Trial
from kdlab.reporting.study_plots import drawn, left_out, write_plots

WEIGHT, TAU = Dimension("rm.weight", 0.1, 10.0, True), Dimension("rm.tau", 0.0, 8.0)
RANK = Dimension("rm.rank", choices=("cls", "loc"))
WIDTH = Dimension("student.width", choices=(8, 16))


def trial(number: int, ap: float, *others: float, state: State = "finished", **params: object) -> Trial:
    """A trial of two epochs; one that was pruned has one, one that failed none."""
    values = {"rm.weight": 0.1 + number, "rm.tau": number % 8, "rm.rank": "loc" if number % 2 else "cls"}
    values |= {f"rm.{name}": value for name, value in params.items()}
    curve = {"finished": {1: ap / 2, 2: ap}, "pruned": {1: ap}}.get(state, {})
    return Trial(number, state, values, (ap, *others) if state == "finished" else (), curve)


def plain(*values: float) -> Trial:
    return replace(trial(0, *values), params={}, reference="no method")


def study(
    *trials: Trial,
    objectives: tuple[str, ...] = ("AP",),
    dimensions: tuple[Dimension, ...] = (WEIGHT, TAU, RANK),
    importance: dict[str, float] | None = None,
) -> Study:
    return Study("x", "GFL $R18$ -> R9_x", objectives, dimensions, trials, importance, 3, (1600, 400))


def plots(study: Study) -> dict[str, Figure]:
    return dict(drawn(study))


def axes_of(figure: Figure, dimension: str) -> Axes:
    (found,) = [axes for axes in figure.axes if axes.get_xlabel() == dimension]
    return found


def points(axes: Axes) -> list[tuple[float, float]]:
    return [(round(x, 6), round(y, 6)) for marks in axes.collections for x, y in marks.get_offsets().tolist()]


def words(figure: Figure) -> Sequence[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.fixture(scope="module")
def one_objective() -> tuple[Study, dict[str, Figure]]:
    """No method, one outside of the space, one of weight 0, one pruned, one failed, and two more."""
    found = study(
        plain(30.0),
        replace(trial(1, 31.0, weight=20.0, rank="both"), reference="published"),
        trial(2, 29.0, weight=0.0),
        trial(3, 20.0, state="pruned"),
        trial(4, 0.0, state="failed"),
        trial(5, 33.0),
        trial(6, 32.0),
        importance={"rm.weight": 0.7, "rm.tau": 0.2, "rm.rank": 0.1},
    )
    return found, plots(found)


def test_all_that_one_objective_allows_is_drawn_and_the_rest_explained(one_objective) -> None:
    found, figures = one_objective
    assert [*figures] == ["history", "slices", "parallel", "importance", "curves"]
    assert left_out(found) == {"front": "one objective only"}


def test_plots_say_of_what_they_are_and_what_they_are_worth(one_objective) -> None:
    for figure in one_objective[1].values():
        assert "GFL $R18$ -> R9_x, 5 of 7 trials finished" in figure.get_suptitle().replace("\n", " ")
        assert "no numbers for a paper" in figure.get_supxlabel()


def test_history_has_the_finished_trials_and_a_line_without_methods(one_objective) -> None:
    figure = one_objective[1]["history"]
    assert points(figure.axes[0]) == [(0, 30), (1, 31), (2, 29), (5, 33), (6, 32)]
    assert words(figure)[-1] == "no method"
    assert [*figure.axes[0].lines[-1].get_ydata()] == [30.0, 30.0]


def test_slices_hold_the_values_that_were_trained_and_the_range_that_was_searched(one_objective) -> None:
    figure = one_objective[1]["slices"]
    weight = axes_of(figure, "rm.weight")
    # the sampler knows 10 of the first, and of a weight of 0 the lowest
    assert points(weight) == [(20.0, 31.0), (5.1, 33.0), (6.1, 32.0)]
    assert weight.get_xscale() == "log"
    assert weight.get_xlim()[0] <= 0.1
    assert weight.get_xlim()[1] >= 20.0
    assert axes_of(figure, "rm.tau").get_xlim()[1] >= 8.0


def test_slice_of_choices_names_them_as_yaml_does(one_objective) -> None:
    ticks = axes_of(one_objective[1]["slices"], "rm.rank").get_xticklabels()
    assert {tick.get_text() for tick in ticks} == {"loc", "cls", "both"}


def test_importance_is_the_one_of_the_table(one_objective) -> None:
    bars = one_objective[1]["importance"].axes[0].patches
    assert sorted(round(bar.get_width(), 6) for bar in bars) == [0.1, 0.2, 0.7]


def test_curve_of_a_pruned_trial_ends_early_and_references_and_best_are_named(one_objective) -> None:
    figure = one_objective[1]["curves"]
    assert sorted(len(line.get_xdata()) for line in figure.axes[0].lines) == [1, 2, 2, 2, 2, 2]
    assert words(figure) == ["no method", "published", "best: trial 5"]


def test_two_objectives_have_a_front_with_its_trials_numbered() -> None:
    params = [{"rm.weight": 1.0, "student.width": width} for width in (8, 16, 16)]
    values = [(30.0, 3.0), (31.0, 4.0), (29.0, 5.0)]
    trials = [Trial(number, "finished", params[number], values[number]) for number in range(3)]
    found = study(*trials, objectives=("AP", "latency"), dimensions=(WEIGHT, WIDTH))
    figures = plots(found)
    assert [*figures] == ["history", "slices", "parallel", "front"]
    assert [text.get_text() for text in figures["front"].axes[0].texts] == ["0", "1"]
    assert left_out(found) == {"importance": "too few trials", "curves": "no trial was measured twice"}


@pytest.mark.parametrize(
    "trials",
    [
        (trial(1, 30.0),),
        (trial(1, 30.0), replace(trial(1, 30.0), number=2)),
        (trial(1, float("nan")), trial(2, 30.0)),
        (plain(30.0), trial(1, 20.0, state="pruned")),
    ],
    ids=["one", "equal ones", "not a number", "only no method has finished"],
)
@pytest.mark.parametrize("dimensions", [(WEIGHT,), (RANK,)], ids=["weight", "choice"])
def test_whatever_is_not_left_out_can_be_drawn(
    trials: tuple[Trial, ...], dimensions: tuple[Dimension, ...]
) -> None:
    found = study(*trials, dimensions=dimensions)
    assert {*plots(found), *left_out(found)} == {
        "history",
        "slices",
        "parallel",
        "importance",
        "front",
        "curves",
    }


@pytest.mark.parametrize("trials", [(), (trial(0, 0.0, state="failed"), trial(1, 0.0, state="running"))])
def test_nothing_is_drawn_where_no_trial_was_measured(trials: tuple[Trial, ...]) -> None:
    assert plots(study(*trials)) == {}
    assert left_out(study(*trials))["history"] == "no trial has finished"


def test_each_plot_is_a_picture_and_a_vector_drawing_equal_every_time(tmp_path: Path) -> None:
    two = study(plain(30.0), trial(1, 31.0, state="pruned"))
    files, again = (write_plots(two, tmp_path / name, "digits/gfl") for name in "ab")
    expected = [f"digits/gfl-{name}.{end}" for name in ("history", "curves") for end in ("png", "pdf")]
    expected.append("digits/gfl-curves.csv")
    assert [path.relative_to(tmp_path / "a").as_posix() for path in files] == expected
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]
    assert files[-1].read_text().splitlines() == [
        "trial,epoch,AP",
        "0,1,15.0",
        "0,2,30.0",
        "1,1,31.0",
    ]


def test_drawing_leaves_no_figure_open_and_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams), dict(matplotlib.style.library["ggplot"])
    plots(study(plain(30.0), trial(1, 31.0)))
    # the backend is chosen once and for all
    after = dict(matplotlib.rcParams) | {"backend": before[0]["backend"]}
    assert (after, dict(matplotlib.style.library["ggplot"])) == before
    assert pyplot.get_fignums() == []
