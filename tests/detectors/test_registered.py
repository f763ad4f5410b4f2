"""What `overrides` may name: registered parts of models, and nothing that imports, runs or loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import registry

from kdlab import detectors
from kdlab.detectors import registered
from kdlab.detectors.registered import faults, importing_only
from kdlab.errors import UsageError
from kdlab.training.probe import answer, probe, unbuildable
from tests.stubs.jobs import model

NECK = {"_delete_": True, "type": "subprocess.getoutput", "cmd": "true"}


def places(overrides: dict[str, Any]) -> list[str]:
    return [fault.where for fault in faults(overrides)]


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.neck": NECK},
        {"model.neck.type": "subprocess.getoutput"},
        {"model.neck.type": "antigravity"},
        {"model.neck.type": "mmdet.apis.inference.Path"},
        {"model.neck.type": "my_package.Neck"},
        {"model.neck.type": ["subprocess.getoutput"]},
        {"model.neck.type": 5},
        {"model.backbone.plugins": [{"cfg": {"type": "os.system"}}]},
        {"model.backbone.plugins.0.cfg.type": "os.system"},
        {"model.backbone.init_cfg": {"type": "Kaiming", "override": {"name": "conv1", "type": "os.system"}}},
        {"model.test_cfg.nms.type": "__import__('os').system('true')"},
        {"model.test_cfg.nms.type": ["__import__('os')"]},
        {"model.test_cfg.nms.type": ["nms"]},
        {"model.test_cfg.nms.type": {"nms": "__import__('os')"}},
        {"model.backbone": {"_scope_": "my_package"}},
        {"model.bbox_head.assigner": {"type": "CameraMotionCompensation", "warp_mode": "exit()"}},
        {"model": {"teacher_config": "evil.py"}},
        {"model.custom_imports": {"imports": ["antigravity"]}},
        {"model.bbox_head.padding_mode": "subprocess.getoutput"},
    ],
    ids=str,
)
def test_what_would_import_or_run_something_is_refused(overrides: dict[str, Any]) -> None:
    assert len(places(overrides)) >= 1


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.backbone.init_cfg": {"type": "Pretrained", "checkpoint": "F"}},
        {"model.backbone.init_cfg": [{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Pretrained"}]},
        {"model.backbone.init_cfg": {"type": "Kaiming", "checkpoint": "F"}},
        {"model.backbone.pretrained": "torchvision://resnet18"},
        {"model.teacher_ckpt": "F"},
        {"model._delete_": True, "model.type": "Detectron2Wrapper"},
        {"model.detector": {"MODEL": {"WEIGHTS": "F"}}},
        {"model.detector.MODEL.WEIGHTS": "F"},
    ],
    ids=str,
)
def test_weights_that_no_id_would_know_of_are_refused(overrides: dict[str, Any]) -> None:
    assert len(places(overrides)) >= 1


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.bbox_head.loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "alpha": 0.3}},
        {"model.bbox_head.loss_cls.type": "mmdet.FocalLoss"},
        {"model.neck.upsample_cfg": {"mode": "nearest"}},
        {"model.neck.norm_cfg": {"type": "BN", "requires_grad": True}},
        {"model.test_cfg.nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        {"model.roi_head.bbox_roi_extractor.roi_layer.type": "RoIAlign"},
        {"model.backbone.init_cfg": {"type": "Kaiming", "layer": ["Conv2d"]}},
        {"model.backbone.pretrained": None, "model.data_preprocessor.mean": [0.5, 1.5, 2.5]},
        {"model.train_cfg.assigner": {"type": "ATSSAssigner", "topk": 9}},
    ],
    ids=str,
)
def test_plain_settings_of_registered_parts_pass(overrides: dict[str, Any]) -> None:
    assert places(overrides) == []


def test_a_fault_names_the_value_and_the_nearest_part() -> None:
    (fault,) = faults({"model.bbox_head.loss_cls.type": "FocalLos"})
    assert fault.where == "overrides.model.bbox_head.loss_cls.type"
    assert (fault.got, fault.fix) == ('"FocalLos"', "did you mean FocalLoss?")


def test_parts_that_a_config_registers_itself_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.module_dict, "MyNeck", object)
    assert places({"model.neck.type": "MyNeck"}) == []


def test_nothing_is_imported_for_a_name_that_no_registry_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_a_test.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    # the first wall passed by: a key that mmdet hands on as the type of another part
    monkeypatch.setattr(registered, "faults", lambda overrides: [])
    cfg = {"model.neck": {"_delete_": True, "type": "ConvModule", "in_channels": 8, "out_channels": 8}}
    cfg["model.neck"] |= {"kernel_size": 1, "padding_mode": "module_of_a_test"}
    with pytest.raises(KeyError, match="Cannot find"):
        detectors.build(model(overrides=cfg), 3)
    with pytest.raises(KeyError), importing_only(()):
        MODELS.build(ConfigDict(type="module_of_a_test.Thing"))
    assert "module_of_a_test" not in sys.modules


def test_names_of_an_mmdet_config_itself_are_imported_as_mmengine_does() -> None:
    name = "mmdet.models.losses.FocalLoss"
    with importing_only({name}):
        assert type(MODELS.build(ConfigDict(type=name))).__name__ == "FocalLoss"
    assert registry.get_object_from_string.__module__.startswith("mmengine")


def test_a_model_is_not_built_from_overrides_that_run_something() -> None:
    with pytest.raises(UsageError, match="names no registered part"):
        probe(model(overrides={"model.neck": NECK}), 3, (64, 64))


def test_an_override_that_mmdet_refuses_is_named() -> None:
    request = {"model": model(overrides={"model.neck": {"start_levle": 1}}).model_dump(mode="json")}
    (fault,) = answer({**request, "num_classes": 3, "input": [64, 64]})["unreadable"]
    assert fault["where"] == "overrides.model.neck.start_levle"
    assert "unexpected keyword argument 'start_levle'" in fault["got"]


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"model.neck.num_outs": -3}, "overrides.model.neck.num_outs"),
        (
            {"model.bbox_head.anchor_generator.strides": []},
            "overrides.model.bbox_head.anchor_generator.strides",
        ),
        ({"model.neck.num_outs": -3, "model.neck.relu_before_extra_convs": True}, "overrides"),
    ],
)
def test_an_override_that_fails_without_its_name_is_found_all_the_same(
    overrides: dict[str, Any], where: str
) -> None:
    assert unbuildable(model(overrides=overrides), AssertionError()).where == where


@pytest.mark.parametrize("told", ["it has 0 channels", "strides_of"])
def test_an_override_is_named_by_whole_words_and_not_by_its_place_in_a_list(told: str) -> None:
    overrides = {"model.data_preprocessor.mean": [1.0, 2.0], "model.x.strides": 3, "model.neck.num_outs": 1}
    fault = unbuildable(model(overrides=overrides), ValueError(told))
    assert fault.where == "overrides"
    assert fault.what.startswith(
        "overrides (model.data_preprocessor.mean, model.x.strides, model.neck.num_outs)"
    )


def test_sizes_that_mmdet_refuses_are_told_as_such() -> None:
    fault = unbuildable(model(), ValueError("num_channels must be divisible by num_groups"))
    assert (fault.where, fault.what) == ("", "makes a model that cannot be built")
    assert fault.got == "ValueError: num_channels must be divisible by num_groups"
