"""Heads that are no family here: their assignment is read as that of families, whatever decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub
from torch import Tensor

from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.outputs import Assignment, Batch
from kdlab.detectors.sizing import CONFIGS, set_classes
from kdlab.training.distiller import make_batch

# mmdet's config and the epoch: TOOD changes its assigner after the first ones
HEADS = {
    "rtmdet": ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", 0),
    "yolox": ("yolox/yolox_tiny_8xb8-300e_coco.py", 0),
    "tood-by-anchors": ("tood/tood_r50_fpn_1x_coco.py", 0),
    "tood-by-alignment": ("tood/tood_r50_fpn_1x_coco.py", 100),
}
pytestmark = pytest.mark.parametrize("head", HEADS)


def small(name: str) -> Any:
    """The model of an mmdet config with few channels."""
    model = Config.fromfile(CONFIGS / name).model
    model.data_preprocessor.batch_augments = None
    model.backbone.init_cfg = None
    if model.type == "TOOD":
        model.backbone.update(depth=18, base_channels=8)
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
        norm = dict(type="GN", num_groups=4)
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=2, norm_cfg=norm)
    if model.bbox_head.get("norm_cfg", {}).get("type") == "SyncBN":
        model.bbox_head.norm_cfg.type = model.backbone.norm_cfg.type = model.neck.norm_cfg.type = "BN"
    set_classes(model, 3)
    return model


@pytest.fixture
def adapter(head: str, torch_: Any) -> Iterator[DenseAdapter]:
    name, epoch = HEADS[head]
    hub = MessageHub.get_current_instance()
    hub.update_info("epoch", epoch)
    torch.manual_seed(0)
    model = MODELS.build(small(name)).train()
    for layer in model.bbox_head.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, std=0.1)
    yield DenseAdapter(model)
    hub.pop_info("epoch")


@pytest.fixture
def data(adapter: DenseAdapter, raw_batch: Callable[..., Any]) -> dict[str, Any]:
    return adapter.model.data_preprocessor(raw_batch(), True)


def captured(adapter: DenseAdapter, data: dict[str, Any]) -> tuple[Assignment, Batch, dict[str, Any]]:
    with adapter.recording() as caught, adapter.capturing(caught):
        losses = adapter.model.loss(data["inputs"], data["data_samples"])
    assignment = adapter.assignment(caught, adapter.outputs(caught), data["data_samples"])
    return assignment, make_batch(data["data_samples"], data["inputs"], 0, 1), losses


def targets_of(adapter: DenseAdapter, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the head's targets will be, as they are computed: of a batch, or of each image."""
    found: list[Any] = []
    name = "get_targets" if hasattr(adapter.head, "get_targets") else "_get_targets_single"
    original = getattr(adapter.head, name)

    def seen(*args: Any, **kwargs: Any) -> Any:
        found.append(original(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(adapter.head, name, seen)
    return found


def flat(levels: list[Tensor]) -> Tensor:
    return torch.cat(levels, dim=1)


def test_the_assignment_is_that_of_the_loss(
    adapter: DenseAdapter, data: dict[str, Any], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = targets_of(adapter, monkeypatch)
    assignment, batch, _ = captured(adapter, data)
    image, prior, group = assignment.positives(batch)
    assert set(image.tolist()) == {0, 2}
    if head == "yolox":
        masks, _, _, boxes, *_ = zip(*targets, strict=True)
        assert torch.equal(assignment.gt_index >= 0, torch.stack(masks))
        assert torch.equal(batch.gt_boxes[group], torch.cat(boxes))
        assert (assignment.label_weights == 1).all()
        return
    (_, labels, weights, boxes, *_), *_ = targets
    mine = torch.full_like(flat(labels), adapter.facts.num_classes)
    mine[image, prior] = batch.gt_labels[group]
    assert torch.equal(mine, flat(labels))
    assert torch.equal(assignment.label_weights, flat(weights))
    assert torch.equal(assignment.gt_index == -2, flat(weights) == 0)
    assert torch.equal(batch.gt_boxes[group], flat(boxes)[image, prior])


def test_looking_on_changes_no_loss(adapter: DenseAdapter, data: dict[str, Any]) -> None:
    _, _, losses = captured(adapter, data)
    plain = adapter.model.loss(data["inputs"], data["data_samples"])
    assert losses.keys() == plain.keys()
    for name, value in plain.items():
        parts = [torch.stack(one) if isinstance(one, list) else one for one in (losses[name], value)]
        assert torch.equal(*parts), name


def test_without_objects_nothing_is_positive(
    adapter: DenseAdapter, raw_batch: Callable[..., Any], head: str
) -> None:
    data = adapter.model.data_preprocessor(raw_batch([1, 1]), True)
    assignment, _, _ = captured(adapter, data)
    assert (assignment.gt_index == -1).all()
    assert assignment.num_positives == 1
