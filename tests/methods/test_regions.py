"""Cells of boxes, and what the objects of an image make together, against cells counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch, Priors
from kdlab.methods._regions import (
    by_level,
    cells_around,
    cells_by_centre,
    cells_inside,
    covered,
    largest_of_image,
    level_of,
    union,
)


def objects(boxes: list[list[float]], image: list[int], images: int = 2) -> Batch:
    shapes = torch.tensor([[32, 32]] * images)
    return Batch(
        gt_boxes=torch.tensor(boxes).view(-1, 4),
        gt_labels=torch.zeros(len(boxes), dtype=torch.long),
        gt_image=torch.tensor(image, dtype=torch.long),
        image_shapes=shapes,
        pad_shapes=shapes,
        input_shape=(32, 32),
    )


def cells_of(ranges: Tensor, width: int = 4) -> list[int]:
    """The columns that an object covers in a map of one row."""
    return covered(ranges, (1, width))[0, 0].nonzero().flatten().tolist()


def box(left: float, right: float, top: float = 0, bottom: float = 8) -> Tensor:
    return torch.tensor([[left, top, right, bottom]], dtype=torch.float)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    # centres at 4, 12, 20 and 28 px
    [(4, 12, [0]), (4.1, 12.1, [1]), (5, 11, []), (-100, 100, [0, 1, 2, 3]), (12, 12, [])],
)
def test_cells_by_centre_begin_with_the_box_and_end_before_its_right_side(
    left: float, right: float, expected: list[int]
) -> None:
    assert cells_of(cells_by_centre(box(left, right), 8)) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(7, 17, [0, 1]), (8, 24, [1, 2]), (9, 15, [1]), (9, 9, [1]), (-3, 5, [0]), (24, 90, [3]), (40, 48, [])],
)
def test_cells_inside_are_cut_to_whole_ones_but_never_none(
    left: float, right: float, expected: list[int]
) -> None:
    assert cells_of(cells_inside(box(left, right), 8)) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    # the last is the cell that begins at or beyond the right side
    [(7, 8, [0, 1]), (8, 9, [1, 2]), (9, 9, [1, 2]), (8, 8, [1]), (24, 90, [3]), (40, 48, [])],
)
def test_cells_around_go_on_to_the_next(left: float, right: float, expected: list[int]) -> None:
    assert cells_of(cells_around(box(left, right), 8)) == expected


def test_rows_follow_the_height_and_columns_the_width() -> None:
    found = covered(torch.tensor([[1.0, 0.0, 3.0, 1.0]]), (2, 3))
    assert found.tolist() == [[[False, True, True], [False, False, False]]]


def test_the_largest_of_an_images_objects_counts() -> None:
    batch = objects([[0, 0, 1, 1]] * 3, [0, 0, 1])
    values = torch.tensor([[1.0, 5.0], [2.0, 4.0], [7.0, 0.0]])
    assert largest_of_image(values, batch).tolist() == [[2, 5], [7, 0]]


def test_an_image_without_objects_has_none() -> None:
    assert largest_of_image(torch.ones(1, 2, 3), objects([[0, 0, 1, 1]], [1]))[0].eq(0).all()
    assert largest_of_image(torch.ones(0, 2, 3), objects([], [])).tolist() == torch.zeros(2, 2, 3).tolist()


def test_a_union_is_of_all_objects_or_of_the_chosen() -> None:
    batch = objects([[0, 0, 8, 8], [0, 0, 16, 8]], [0, 0], images=1)
    ranges = cells_inside(batch.gt_boxes, 8)
    assert union(ranges, (1, 3), batch).tolist() == [[[1, 1, 0]]]
    assert union(ranges, (1, 3), batch, torch.tensor([True, False])).tolist() == [[[1, 0, 0]]]


@pytest.mark.parametrize(
    ("side", "level"),
    # floor(log2(side / 56)), from 0 to 2; a side is one more than its difference
    [(1, 0), (55, 0), (56, 0), (111.9, 0), (112, 1), (223, 1), (224, 2), (5000, 2)],
)
def test_levels_from_stride_4_follow_the_rule_of_feature_pyramids(side: float, level: int) -> None:
    boxes = torch.tensor([[10.0, 10.0, 9 + side, 9 + side]])
    assert level_of(boxes, (4, 8, 16)).tolist() == [level]


def test_other_strides_have_objects_of_as_many_cells() -> None:
    # 14 cells of stride 32 are 448 px
    boxes = torch.tensor([[0.0, 0.0, 446.0, 446.0], [0.0, 0.0, 447.0, 447.0]])
    assert level_of(boxes, (8, 32)).tolist() == [0, 1]


def test_a_long_object_goes_by_the_root_of_its_area() -> None:
    # 28 x 448: a side of 112
    assert level_of(torch.tensor([[0.0, 0.0, 27.0, 447.0]]), (4, 8, 16)).tolist() == [1]


def test_flat_cells_become_the_maps_of_their_levels() -> None:
    priors = Priors(torch.zeros(7, 2), torch.zeros(7), torch.zeros(7), (0, 6, 7), ((2, 3), (1, 1)))
    fine, coarse = by_level(torch.arange(7.0)[None], priors)
    assert fine.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert coarse.tolist() == [[[6]]]
