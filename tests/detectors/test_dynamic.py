"""RTMDet and YOLOX in the sizes of their papers, and what is theirs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from kdlab import detectors
from kdlab.detectors import adapt
from kdlab.detectors.sizing import CONFIGS
from kdlab.errors import JobError

# mmdet's config; backbone, its width and the neck's channels
PUBLISHED = {
    "rtmdet/rtmdet_tiny_8xb32-300e_coco": ("cspnext_tiny", 48, 96),
    "rtmdet/rtmdet_s_8xb32-300e_coco": ("cspnext_s", 64, 128),
    "rtmdet/rtmdet_m_8xb32-300e_coco": ("cspnext_m", 96, 192),
    "rtmdet/rtmdet_l_8xb32-300e_coco": ("cspnext_l", 128, 256),
    "rtmdet/rtmdet_x_8xb32-300e_coco": ("cspnext_x", 160, 320),
    "yolox/yolox_tiny_8xb8-300e_coco": ("cspdarknet_s", 48, 96),
    "yolox/yolox_s_8xb8-300e_coco": ("cspdarknet_s", 64, 128),
    "yolox/yolox_m_8xb8-300e_coco": ("cspdarknet_m", 96, 192),
    "yolox/yolox_l_8xb8-300e_coco": ("cspdarknet_l", 128, 256),
    "yolox/yolox_x_8xb8-300e_coco": ("cspdarknet_x", 160, 320),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_mmdet_s_checkpoints_fit_the_sizes_of_their_names(
    name: str, model_settings: Callable[..., Any]
) -> None:
    backbone, width, channels = PUBLISHED[name]
    settings = model_settings(
        name.partition("/")[0], backbone=backbone, width=width, neck_channels=channels, init="none"
    )
    theirs = Config.fromfile(CONFIGS / f"{name}.py").model
    theirs.backbone.pop("init_cfg", None)
    theirs.data_preprocessor.pop("batch_augments", None)
    with torch.device("meta"):
        ours = detectors.config(settings, 80).model
        mine, published = MODELS.build(ours).state_dict(), MODELS.build(theirs).state_dict()
    assert {key: value.shape for key, value in mine.items()} == {
        key: value.shape for key, value in published.items()
    }
    # pixels reach a published teacher as in its own training
    for key in ("mean", "std", "bgr_to_rgb"):
        assert ours.data_preprocessor.get(key) == theirs.data_preprocessor.get(key)


@pytest.mark.parametrize("detector", ["rtmdet", "yolox"])
def test_a_level_beyond_the_backbone_is_refused(detector: str, model_settings: Callable[..., Any]) -> None:
    settings = model_settings(detector, strides=(8, 16, 32, 64))
    with pytest.raises(JobError, match="has a level for each stage of its backbone"):
        detectors.config(settings, 3)


@pytest.mark.parametrize("detector", ["rtmdet", "yolox"])
def test_a_backbone_of_others_gets_red_before_blue(detector: str, model_settings: Callable[..., Any]) -> None:
    pixels = detectors.config(model_settings(detector, backbone="resnet18"), 3).model.data_preprocessor
    assert (pixels.bgr_to_rgb, pixels.mean[0]) == (True, 123.675)


def test_yolox_learns_the_l1_of_boxes_in_its_last_epochs(
    build: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    model = build("yolox")
    data = model.data_preprocessor(raw_batch(), True)
    before = model.loss(data["inputs"], data["data_samples"])
    adapt(model).finish()
    after = model.loss(data["inputs"], data["data_samples"])
    assert after.keys() - before.keys() == {"loss_l1"}
    assert after["loss_l1"] > 0


def test_yolox_s_classes_count_as_much_as_its_objectness(build: Callable[..., Any]) -> None:
    adapter = adapt(build("yolox").eval())
    with torch.no_grad(), adapter.recording() as caught:
        adapter.look(torch.rand(1, 3, 64, 64))
    for level in caught.raw[2]:
        # nothing is there, whatever the classes say
        level.fill_(-20.0)
    outputs = adapter.outputs(caught)
    assert outputs.quality_maps is None
    assert outputs.cls_logits.sigmoid().max() < 1e-8


def test_a_box_of_nothing_has_a_finite_code(model_settings: Callable[..., Any]) -> None:
    yolox = adapt(detectors.build(model_settings("yolox", backbone="cspdarknet_s", width=32), 3))
    points, strides = torch.tensor([[8.0, 8.0]]), torch.tensor([8.0])
    code = yolox.encode(points, strides, torch.tensor([[4.0, 4.0, 4.0, 12.0]]))
    assert code.isfinite().all()
    assert yolox.decode(points, strides, code).tolist()[0] == pytest.approx([4, 4, 4, 12], abs=0.01)
