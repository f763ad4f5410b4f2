from __future__ import annotations

import math

import pytest

from kdlab.jobs.study import Dimension
from kdlab.tuning.scale import following, shares

FREE = Dimension("pfi.weight", 0.05, 45.0, log=True)


def step(detection: float, **terms: tuple[float, float]) -> dict[str, float]:
    """A step of which each term has a raw value and a weight."""
    weighted = {name: raw * weight for name, (raw, weight) in terms.items()}
    told = {f"loss_{name}": value for name, value in weighted.items()}
    raws = {f"raw_{name}": raw for name, (raw, _) in terms.items()}
    return {"loss": detection + sum(weighted.values()), **told, **raws}


def test_share_is_the_raw_term_beside_the_loss_of_detection_alone() -> None:
    assert shares([step(2.0, rm=(0.5, 4.0), pfi=(1.0, 30.0))]) == pytest.approx({"rm": 0.25, "pfi": 0.5})


def test_terms_of_one_method_are_taken_together() -> None:
    found = shares(
        [step(2.0, **{"fgd@x.foreground": (0.5, 2.0), "fgd@x.relation": (0.1, 2.0), "fgd": (1.0, 1.0)})]
    )
    assert found == pytest.approx({"fgd@x": 0.3, "fgd": 0.5})


def test_second_half_of_the_course_counts() -> None:
    course = [step(100.0, rm=(1.0, 1.0))] * 2 + [step(2.0, rm=(1.0, 1.0)), step(4.0, rm=(2.0, 1.0))]
    assert shares(course) == pytest.approx({"rm": 0.5})


@pytest.mark.parametrize("raw", [0.0, math.nan, math.inf, -1.0])
def test_term_from_which_no_weight_follows_is_left_out(raw: float) -> None:
    assert shares([step(2.0, rm=(raw, 0.0), pfi=(1.0, 1.0))]).get("rm") is None


def test_term_without_weight_is_measured_all_the_same() -> None:
    assert shares([step(2.0, rm=(1.0, 0.0))]) == pytest.approx({"rm": 0.5})


@pytest.mark.parametrize("detection", [0.0, math.nan])
def test_loss_of_detection_that_is_none_gives_no_share(detection: float) -> None:
    assert shares([step(detection, rm=(1.0, 1.0))]) == {}


def test_job_without_a_course_gives_no_share() -> None:
    assert shares([]) == {}
    assert shares([{"loss": 1.0}]) == {}


def test_weight_is_searched_where_its_term_is_a_share_of_the_detection_loss() -> None:
    (found,) = following([FREE], [{"pfi": 0.1}])
    assert (found.low, found.high, found.log) == (0.1, 30.0, True)


def test_range_holds_for_all_students_that_are_tried() -> None:
    (found,) = following([FREE], [{"pfi": 0.1}, {"pfi": 0.4}, {"rm": 7.0}])
    assert (found.low, found.high) == (0.025, 30.0)


def test_what_has_a_range_or_no_measure_stays() -> None:
    space = (
        Dimension("pfi.weight", 1, 2, given=True),
        Dimension("pfi.temperature", 1, 2),
        Dimension("rm.weight", 1, 2),
        Dimension("pfi.y", choices=("sigmoid", "logit")),
    )
    assert following(space, [{"pfi": 0.1}]) == space
