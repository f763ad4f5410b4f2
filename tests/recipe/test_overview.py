"""A recipe in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab import catalog
from kdlab.recipe.overview import overview


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("coco/gfl_r101_r50", "gfl r101 -> r50"),
        ("digits/gfl", "gfl r18/16 -> r18/8"),
        ("digits/gfl_chain", "gfl r18/32 -> r18/16 -> r18/8"),
        ("digits/teacher", "gfl r18/16"),
        ("coco/yolox_l_s", "yolox cspdarknet_l -> cspdarknet_s"),
        ("coco/fcos_r101_r50", "fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco -> fcos r50"),
    ],
)
def test_pair_names_the_detector_once_and_widths_that_are_not_usual(name: str, pair: str) -> None:
    assert overview(name)["pair"] == pair


def test_methods_are_named_once_in_the_order_of_the_arms() -> None:
    found = overview("digits/gfl")
    assert found["methods"] == ["soft_label", "rm", "pfi"]
    assert (found["dataset"], found["seeds"]) == ("digits", [0, 1, 2, 3, 4])


def test_every_shipped_recipe_has_one() -> None:
    assert all(overview(name)["pair"] for name in catalog.recipes())


def test_a_recipe_that_does_not_load_has_none(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("student: {detector: gfll}")
    assert set(overview(str(path)).values()) == {None}
