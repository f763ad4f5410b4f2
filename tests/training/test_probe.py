from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from kdlab import catalog, detectors
from kdlab.detectors import adapt
from kdlab.errors import UsageError
from kdlab.jobs.spec import ModelSpec
from kdlab.training.probe import answer, probe
from tests.stubs.jobs import model

USUAL: dict[str, Any] = {
    "width": 64,
    "neck_channels": 256,
    "head_convs": 4,
    "strides": [8, 16, 32, 64, 128],
}
MODEL = model(**USUAL)


@pytest.mark.parametrize(("detector", "anchors"), [("retinanet", 9), ("fcos", 1), ("gfl", 1)])
def test_facts_of_each_family(detector: str, anchors: int) -> None:
    found = probe(model(**USUAL, detector=detector), 80, (128, 128))
    assert found["detector"] == detector
    assert found["anchors"] == anchors
    assert found["strides"] == (8, 16, 32, 64, 128)
    assert found["tower_depth"] == 4
    assert "assignment" in found["provides"]
    assert ("quality_maps" in found["provides"]) == (detector == "fcos")
    assert ("box_distributions" in found["provides"]) == (detector == "gfl")


def test_a_map_of_one_place_is_counted_too() -> None:
    assert probe(model(detector="rtmdet"), 10, (32, 32))["flops"] > 0


def test_flops_grow_with_the_area() -> None:
    small, large = (probe(MODEL, 10, shape)["flops"] for shape in ((128, 128), (256, 256)))
    assert large == pytest.approx(4 * small, rel=0.05)


@pytest.mark.parametrize("overrides", [{}, {"model.with_box_refine": True}])
def test_flops_of_a_detr_grow_with_its_layers_and_count_no_denoising(overrides: dict[str, Any]) -> None:
    sizes = {"detector": "deformable_detr", "head_convs": 0, "queries": 30, "neck_channels": 64}

    def counted(**changes: Any) -> int:
        return int(probe(model(**sizes, overrides=overrides, **changes), 10, (64, 64))["flops"])

    one, two, three = (counted(layers=layers) for layers in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-6)
    assert counted(layers=1, strides=[8, 16, 32]) > one
    # a deeper backbone costs what it costs below another head: it is counted once
    below = {
        name: int(probe(model(backbone=name), 10, (64, 64))["flops"]) for name in ("resnet18", "resnet34")
    }
    deeper = counted(layers=1, backbone="resnet34") - one
    assert deeper == below["resnet34"] - below["resnet18"] > 0


def test_a_decoder_that_hides_its_layers_is_no_model_of_mmdets() -> None:
    key = "model.decoder.return_intermediate"
    sizes = {"detector": "deformable_detr", "queries": 30, "layers": 2, "neck_channels": 64}
    spec = model(**sizes, overrides={key: False})
    told = answer({"model": spec.model_dump(mode="json"), "num_classes": 3, "input": [64, 64]})
    (fault,) = told["unreadable"]
    assert fault["where"] == f"overrides.{key}"
    assert "cannot be built" in fault["what"]


def test_params_count_the_classes() -> None:
    few, more = (probe(MODEL, classes, (128, 128))["params"] for classes in (10, 11))
    assert more - few == 256 * 9 + 1


def test_priors_tell_anchors_apart() -> None:
    gfl, fcos, longer = (
        probe(model(**USUAL, **changed), 10, (128, 128))["priors"]
        for changed in ({}, {"detector": "fcos"}, {"backbone": "resnet34"})
    )
    assert gfl != fcos
    assert gfl == longer


def test_pretrained_batch_norm_stands_still() -> None:
    assert probe(MODEL, 10, (128, 128))["batch_norm_trains"]
    assert not probe(model(**USUAL, init="imagenet"), 10, (128, 128))["batch_norm_trains"]


def test_layers_are_counted_where_a_backbone_is_a_sequence_of_them() -> None:
    swin = {"backbone": "swin_t", "width": 32, "neck_channels": 16, "head_convs": 1}
    assert probe(model(**swin, strides=[8, 16, 32]), 10, (64, 64))["layers"] == 1 + 12
    assert probe(model(**swin, strides=[8, 16]), 10, (64, 64))["layers"] == 1 + 10
    assert probe(MODEL, 10, (64, 64))["layers"] == 0


def test_parts_are_all_that_has_weights() -> None:
    parts = probe(MODEL, 10, (64, 64))["parts"]
    assert [name for name in parts if "." not in name] == ["backbone", "neck", "bbox_head"]
    assert {"backbone.layer4.1.conv2", "neck.lateral_convs.0"} < {*parts}
    assert not {"", "data_preprocessor", "backbone.relu"} & {*parts}


def test_overrides_reach_the_model() -> None:
    found = probe(model(**USUAL, overrides={"model.bbox_head.reg_max": 8}), 10, (128, 128))
    assert found["params"] < probe(MODEL, 10, (128, 128))["params"]


def probe_config(path: Path, shape: tuple[int, int] = (128, 128), **changes: Any) -> dict[str, Any]:
    return probe(ModelSpec(detector="x", **changes), 3, shape, file=str(path))


def named(name: str) -> Path:
    found = catalog.config_file(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "detector", "backbone", "provides", "strides"),
    [
        ("gfl/gfl_r101_fpn_ms-2x_coco", "gfl", "resnet101", "box_distributions", (8, 16, 32, 64, 128)),
        ("swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco", "mask_rcnn", "swin_t", "roi_outputs", (4, 8, 16, 32, 64)),
        ("paa/paa_r50_fpn_1x_coco", "paa", "resnet50", "feats", (8, 16, 32, 64, 128)),
        ("yolox/yolox_s_8xb8-300e_coco", "yolox", "cspdarknet_s", "towers", (8, 16, 32)),
        ("tood/tood_r50_fpn_1x_coco", "tood", "resnet50", "feats", (8, 16, 32, 64, 128)),
    ],
)
def test_an_mmdet_config_is_known_by_its_head(
    name: str, detector: str, backbone: str, provides: str, strides: tuple[int, ...]
) -> None:
    found = probe_config(named(name))
    assert (found["detector"], found["backbone"]) == (detector, backbone)
    assert (found["provides"][-1], found["strides"], found["num_classes"]) == (provides, strides, 3)


def test_what_the_probe_read_builds_the_same_model_again() -> None:
    overrides = {"model.bbox_head.stacked_convs": 1}
    found = probe_config(named("retinanet/retinanet_r50_fpn_1x_coco"), overrides=overrides)
    found = json.loads(json.dumps(found))
    parts = {name: found[name] for name in ("config", "imports", "code")}
    model = detectors.build(ModelSpec(detector="retinanet", overrides=overrides, **parts), 3)
    assert sum(p.numel() for p in model.parameters()) == found["params"]
    assert len(model.bbox_head.cls_convs) == 1
    assert model.bbox_head.num_classes == 3


def test_a_config_without_learned_weights_freezes_nothing() -> None:
    path = named("retinanet/retinanet_r50_fpn_1x_coco")
    assert probe_config(path)["batch_norm_trains"]
    assert not probe_config(path, init="imagenet")["batch_norm_trains"]


@pytest.mark.parametrize("text", ["model = 3", "x = 1", "raise ValueError('no')", "model = dict("])
def test_a_file_that_is_no_config_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match="this is no mmdet config of a detector"):
        probe_config(path)


def test_random_sizes_of_a_config_are_left_to_the_recipe() -> None:
    found = probe_config(named("yolox/yolox_s_8xb8-300e_coco"))
    assert "batch_augments" not in found["config"]["data_preprocessor"]


def test_torchvisions_weights_are_refused_for_a_caffe_backbone() -> None:
    path = named("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco")
    with pytest.raises(UsageError, match="Caffe's style"):
        probe_config(path, init="imagenet")


def test_files_are_reported_and_judged(tmp_path: Path) -> None:
    from kdlab import detectors

    model = detectors.build(MODEL, 10)
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": ("b", "a")}}, tmp_path / "whole.pth")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pth")
    files = {"checkpoint": str(tmp_path / "whole.pth"), "init": str(tmp_path / "r18.pth")}
    found = probe(MODEL, 10, (128, 128), files, ("a", "b"))
    assert found["checkpoint"]["key_fault"] is None
    assert "another order" in found["checkpoint"]["class_fault"]["what"]
    assert found["init"]["report"]["beside"] == {"fc": 2}
    assert found["init"]["key_fault"] is None
    assert str(tmp_path) not in json.dumps(found["init"])


def test_a_file_of_another_model_is_a_fault(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    found = probe(MODEL, 10, (128, 128), {"init": str(tmp_path / "r34.pth")})
    assert "another depth" in found["init"]["key_fault"]["got"]


@pytest.mark.parametrize(
    "name", ["condinst/condinst_r50_fpn_ms-poly-90k_coco_instance", "yolact/yolact_r50_1xb8-55e_coco"]
)
def test_one_stage_detectors_with_masks_do_not_train(name: str) -> None:
    assert not probe_config(named(name), (256, 256))["trains"]


def test_two_stages_without_a_neck_give_no_neck_maps() -> None:
    found = probe_config(named("faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco"))
    assert (found["detector"], found["provides"], found["strides"]) == ("faster_rcnn", (), ())


@pytest.mark.parametrize(
    ("file", "init", "what"),
    [
        ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", "imagenet", "Caffe's style"),
        ("rtmdet/rtmdet_tiny_8xb32-300e_coco", "imagenet", "torchvision has no weights for cspnext"),
    ],
)
def test_what_is_wrong_with_a_recipe_isanswered_as_that(file: str, init: str, what: str) -> None:
    request = {"model": {"detector": "x", "init": init}, "file": str(named(file))}
    (fault,) = answer({**request, "num_classes": 3, "input": [128, 128]})["unreadable"]
    assert what in fault["what"]


def test_a_softmax_head_has_no_class_maps_and_one_without_convolutions_no_towers(build: Any) -> None:
    softmax = {"type": "CrossEntropyLoss", "use_sigmoid": False, "_delete_": True}
    provides = adapt(build("retinanet", overrides={"model.bbox_head.loss_cls": softmax})).facts.provides
    assert "cls_maps" not in provides
    assert {"feats", "boxes", "towers"} <= set(provides)
    assert "towers" not in adapt(build("gfl", head_convs=0)).facts.provides


def test_modules_of_a_config_are_found_beside_it_after_all_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "parts_of_a_probe_test.py").write_text("import queue\nassert queue.Queue\n")
    (tmp_path / "queue.py").write_text("")
    base = catalog.config_file("gfl/gfl_r50_fpn_1x_coco")
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = {str(base)!r}\ncustom_imports = dict(imports=['parts_of_a_probe_test'])\n")
    found = probe_config(path)
    assert found["modules"] == [str(tmp_path), str(Path.cwd())]
    assert found["imports"] == ["parts_of_a_probe_test"]
    assert probe_config(named("gfl/gfl_r50_fpn_1x_coco"))["modules"] == []
