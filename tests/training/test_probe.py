from __future__ import annotations

from typing import Any

import pytest

from kdlab.training.probe import probe

SETTINGS: dict[str, Any] = {
    "detector": "gfl",
    "backbone": "resnet18",
    "width": 64,
    "neck_channels": 256,
    "head_convs": 4,
    "strides": [8, 16, 32, 64, 128],
    "init": "none",
    "overrides": {},
}


@pytest.mark.parametrize(("detector", "anchors"), [("retinanet", 9), ("fcos", 1), ("gfl", 1)])
def test_facts_of_each_family(detector: str, anchors: int) -> None:
    found = probe({**SETTINGS, "detector": detector}, 80, (128, 128))
    assert found["detector"] == detector
    assert found["anchors"] == anchors
    assert found["strides"] == (8, 16, 32, 64, 128)
    assert found["tower_depth"] == 4
    assert "assignment" in found["provides"]
    assert ("quality_maps" in found["provides"]) == (detector == "fcos")
    assert ("box_distributions" in found["provides"]) == (detector == "gfl")


def test_flops_grow_with_the_area() -> None:
    small, large = (probe(SETTINGS, 10, shape)["flops"] for shape in ((128, 128), (256, 256)))
    assert large == pytest.approx(4 * small, rel=0.05)


def test_params_count_the_classes() -> None:
    few, more = (probe(SETTINGS, classes, (128, 128))["params"] for classes in (10, 11))
    assert more - few == 256 * 9 + 1


def test_priors_tell_anchors_apart() -> None:
    gfl, fcos, longer = (
        probe({**SETTINGS, **changed}, 10, (128, 128))["priors"]
        for changed in ({}, {"detector": "fcos"}, {"backbone": "resnet34"})
    )
    assert gfl != fcos
    assert gfl == longer


def test_pretrained_batch_norm_stands_still() -> None:
    assert probe(SETTINGS, 10, (128, 128))["batch_norm_trains"]
    assert not probe({**SETTINGS, "init": "imagenet"}, 10, (128, 128))["batch_norm_trains"]


def test_overrides_reach_the_model() -> None:
    found = probe({**SETTINGS, "overrides": {"model.bbox_head.reg_max": 8}}, 10, (128, 128))
    assert found["params"] < probe(SETTINGS, 10, (128, 128))["params"]
