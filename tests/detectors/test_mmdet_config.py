"""What a recipe takes of an mmdet config, and what it leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdlab import detectors
from kdlab.detectors.mmdet_config import as_json, code_of, from_json, read_config
from kdlab.detectors.sizing import CONFIGS
from kdlab.errors import UsageError

MODEL = """
model = dict(
    type="RetinaNet",
    backbone=dict(type="ResNet", depth=18, frozen_stages=1, norm_eval=True,
                  norm_cfg=dict(type="BN", requires_grad=False),
                  init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(type="FPN", rfp_backbone=dict(pretrained="torchvision://resnet18")),
    train_cfg=dict(assigner=dict(type="MaxIoUAssigner", neg_iou_thr=(0.3, 0.7), gpu_assign_thr=[1, 2])))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODEL)
    return path


def test_tuples_survive_as_tuples_and_lists_as_lists(config: Path) -> None:
    kept = json.loads(json.dumps(read_config(config, "none")))["config"]
    assigner = from_json(kept)["train_cfg"]["assigner"]
    assert assigner["neg_iou_thr"] == (0.3, 0.7)
    assert assigner["gpu_assign_thr"] == [1, 2]


@pytest.mark.parametrize("value", [(), (1, (2, [3, (4,)])), {"a": ({"b": (1,)},)}, [None, "x", 1.5]])
def test_from_json_is_the_inverse_of_as_json(value: Any) -> None:
    assert from_json(json.loads(json.dumps(as_json(value)))) == value


def test_no_part_of_a_config_loads_weights_by_itself(config: Path) -> None:
    assert "torchvision://" not in json.dumps(read_config(config, "imagenet"))


def test_without_learned_weights_nothing_is_frozen(config: Path) -> None:
    backbone = read_config(config, "none")["config"]["backbone"]
    assert (backbone["frozen_stages"], backbone["norm_eval"]) == (-1, False)
    assert backbone["norm_cfg"]["requires_grad"]
    kept = read_config(config, "imagenet")["config"]["backbone"]
    assert (kept["frozen_stages"], kept["norm_eval"], kept["norm_cfg"]["requires_grad"]) == (1, True, False)


@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        ("rtmdet/rtmdet_tiny_8xb32-300e_coco", 32),
        ("yolox/yolox_s_8xb8-300e_coco", 32),
        ("tood/tood_r50_fpn_1x_coco", 32),
        ("deformable_detr/deformable-detr_r50_16xb2-50e_coco", 1),
    ],
)
def test_images_have_sides_that_the_neck_can_halve(name: str, divisor: int) -> None:
    model = read_config(CONFIGS / f"{name}.py", "none")["config"]
    assert model["data_preprocessor"].get("pad_size_divisor", 1) == divisor


@pytest.mark.parametrize("name", ["pvt/retinanet_pvtv2-b0_fpn_1x_coco", "pvt/retinanet_pvt-t_fpn_1x_coco"])
def test_a_backbone_that_loads_without_saying_so_loads_nothing(name: str) -> None:
    assert "http" not in json.dumps(read_config(CONFIGS / f"{name}.py", "none"))


def test_of_several_initialisations_those_that_load_are_dropped(config: Path) -> None:
    config.write_text(
        MODEL
        + "model['neck']['init_cfg'] = [dict(type='Xavier', layer='Conv2d'), dict(checkpoint='https://x')]"
    )
    neck = read_config(config, "none")["config"]["neck"]
    assert neck["init_cfg"] == [{"type": "Xavier", "layer": "Conv2d"}]


@pytest.mark.parametrize("backbone", ["ResNet", "ResNeXt", "HRNet", "Darknet"])
def test_what_a_backbone_freezes_by_default_is_thawed_too(config: Path, backbone: str) -> None:
    config.write_text(f"model = dict(type='RetinaNet', backbone=dict(type='{backbone}'))")
    assert read_config(config, "none")["config"]["backbone"] == {"type": backbone, "norm_eval": False}
    assert read_config(config, "imagenet")["config"]["backbone"] == {"type": backbone}


def test_a_backbone_that_freezes_nothing_is_told_nothing(config: Path) -> None:
    config.write_text("model = dict(type='RetinaNet', backbone=dict(type='CSPNeXt'))")
    assert "norm_eval" not in read_config(config, "none")["config"]["backbone"]


@pytest.mark.parametrize(
    "name",
    ["dyhead/atss_r50_fpn_dyhead_1x_coco", "libra_rcnn/libra-retinanet_r50_fpn_1x_coco"],
)
def test_a_neck_of_several_parts_is_read(name: str) -> None:
    assert len(read_config(CONFIGS / f"{name}.py", "none")["config"]["neck"]) > 1


def test_yolox_by_its_config_is_padded_as_the_family_is(model_settings: Callable[..., Any]) -> None:
    padded = read_config(CONFIGS / "yolox/yolox_s_8xb8-300e_coco.py", "none")["config"]["data_preprocessor"]
    family = detectors.config(model_settings("yolox", backbone="cspdarknet_s"), 80).model.data_preprocessor
    keys = ("pad_value", "pad_size_divisor", "mean")
    assert [padded.get(key) for key in keys] == [family.get(key) for key in keys]


def test_a_config_with_a_teacher_of_its_own_is_refused(config: Path) -> None:
    config.write_text(MODEL + "model.update(teacher_ckpt='x.pth')\n")
    with pytest.raises(UsageError, match="brings a teacher of its own"):
        read_config(config, "none")


def test_code_of_own_modules_counts_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "my_parts_of_kdlab_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "head.py").write_text("x = 1")
    before = code_of([package.name])
    assert before == code_of([package.name])
    (package / "head.py").write_text("x = 2")
    assert code_of([package.name]) != before
    assert package.name not in sys.modules
