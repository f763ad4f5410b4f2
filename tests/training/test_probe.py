from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

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


def test_files_are_reported_and_judged(tmp_path: Path) -> None:
    from kdlab.training import detectors

    model = detectors.build(SETTINGS, 10)
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": ("b", "a")}}, tmp_path / "whole.pth")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    files = {"checkpoint": str(tmp_path / "whole.pth"), "init": str(tmp_path / "r18.pth")}
    found = probe(SETTINGS, 10, (128, 128), files, ("a", "b"))
    assert found["checkpoint"]["key_fault"] is None
    assert "another order" in found["checkpoint"]["class_fault"]["what"]
    assert found["init"]["report"]["beside"] == {"fc": 2}
    assert found["init"]["key_fault"] is None
    assert str(tmp_path) not in json.dumps(found["init"])


def test_a_file_of_another_model_is_a_fault(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    found = probe(SETTINGS, 10, (128, 128), {"init": str(tmp_path / "r34.pth")})
    assert "another depth" in found["init"]["key_fault"]["got"]
