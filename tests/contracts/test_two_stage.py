"""A two-stage detector shows methods its neck maps and exactly the proposals that its own loss trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps

from kdlab.detectors import adapt
from kdlab.detectors.base import Adapter
from kdlab.detectors.outputs import Batch, DetectorOutputs
from kdlab.training.distiller import make_batch


@pytest.fixture
def adapter(build: Callable[..., Any]) -> Adapter:
    return adapt(build("faster_rcnn"))


@pytest.fixture
def data(adapter: Adapter, raw_batch: Callable[..., Any]) -> dict[str, Any]:
    return adapter.model.data_preprocessor(raw_batch(), True)


def observe_loss(adapter: Adapter, data: dict[str, Any]) -> tuple[DetectorOutputs, Batch, dict[str, Any]]:
    torch.manual_seed(7)
    with adapter.recording() as caught, adapter.capturing(caught):
        losses = adapter.model.loss(data["inputs"], data["data_samples"])
    return adapter.outputs(caught), make_batch(data["data_samples"], data["inputs"], 0, 1), losses


def test_proposals_and_labels_are_those_of_the_heads_own_loss(
    adapter: Adapter, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, seen = adapter.head.bbox_head, {}
    original = head.loss_and_target

    def spy(**given: Any) -> Any:
        found = original(**given)
        seen.update(given, labels=found["bbox_targets"][0])
        return found

    monkeypatch.setattr(head, "loss_and_target", spy)
    outputs, _, _ = observe_loss(adapter, data)
    assert outputs.rois is not None
    assert torch.equal(outputs.rois.boxes, seen["rois"])
    assert torch.equal(outputs.rois.labels, seen["labels"])
    found = outputs.roi_outputs(outputs.rois)
    assert torch.equal(found.cls_logits, seen["cls_score"])
    assert torch.equal(found.deltas, seen["bbox_pred"])


def test_looking_on_changes_no_loss(adapter: Adapter, data: dict[str, Any]) -> None:
    _, _, losses = observe_loss(adapter, data)
    torch.manual_seed(7)
    plain = adapter.model.loss(data["inputs"], data["data_samples"])
    assert losses.keys() == plain.keys()
    for name, loss in plain.items():
        mine, theirs = (value if isinstance(value, list) else [value] for value in (losses[name], loss))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), name


def test_each_positive_proposal_names_the_object_that_it_overlaps(
    adapter: Adapter, data: dict[str, Any]
) -> None:
    outputs, batch, _ = observe_loss(adapter, data)
    rois = outputs.rois
    assert rois is not None
    positive = rois.gt_index >= 0
    assert positive.any()
    assert torch.equal(positive, rois.labels < adapter.num_classes)
    image = rois.boxes[positive, 0].long()
    objects = batch.first_object[image] + rois.gt_index[positive]
    assert torch.equal(batch.gt_image[objects], image)
    assert torch.equal(batch.gt_labels[objects], rois.labels[positive])
    overlap = bbox_overlaps(rois.boxes[positive, 1:], batch.gt_boxes[objects], is_aligned=True)
    assert overlap.min() >= 0.5


def test_a_batch_without_objects_has_background_proposals_only(
    adapter: Adapter, raw_batch: Callable[..., Any]
) -> None:
    data = adapter.model.data_preprocessor(raw_batch([1, 1]), True)
    outputs, _, _ = observe_loss(adapter, data)
    assert outputs.rois is not None
    assert len(outputs.rois.boxes)
    assert (outputs.rois.labels == adapter.num_classes).all()


def test_another_models_proposals_pass_through_either_head(
    adapter: Adapter, data: dict[str, Any], build: Callable[..., Any]
) -> None:
    student, _, _ = observe_loss(adapter, data)
    teacher = adapt(build("faster_rcnn", seed=5).eval().requires_grad_(False))
    with torch.no_grad():
        seen = teacher.observe(data["inputs"])
    assert seen.rois is None
    maps = [level.clone().requires_grad_() for level in seen.neck_maps]
    found = replace(seen, neck_maps=maps).roi_outputs(student.rois)
    own = student.roi_outputs(student.rois)
    assert found.cls_logits.shape == own.cls_logits.shape == (len(student.rois.boxes), 4)
    assert not torch.allclose(found.cls_logits, own.cls_logits)
    found.cls_logits.square().sum().backward()
    # objects of at most 90 px are pooled from the finest level
    assert maps[0].grad is not None
    assert maps[0].grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_own_proposals_recomputed_say_the_same(adapter: Adapter, data: dict[str, Any]) -> None:
    outputs, _, _ = observe_loss(adapter, data)
    again = replace(outputs, own_roi_outputs=None).roi_outputs(outputs.rois)
    torch.testing.assert_close(again.cls_logits, outputs.own_roi_outputs.cls_logits)


def test_nothing_stays_wrapped_after_a_pass(adapter: Adapter, data: dict[str, Any]) -> None:
    observe_loss(adapter, data)
    assert not any(module._forward_hooks for module in adapter.model.modules())
    assert "bbox_loss" not in vars(adapter.head)


def test_neck_maps_are_those_that_both_stages_read(adapter: Adapter, data: dict[str, Any]) -> None:
    outputs = adapter.observe(data["inputs"])
    for mine, theirs in zip(outputs.feats, adapter.model.extract_feat(data["inputs"]), strict=True):
        assert torch.equal(mine, theirs)
    assert outputs.cls_maps is None
    assert outputs.level_strides == (8, 16, 32)


@pytest.mark.parametrize(("detector", "trains"), [("faster_rcnn", True), ("mask_rcnn", False)])
def test_facts_say_that_class_maps_are_missing(
    build: Callable[..., Any], detector: str, trains: bool
) -> None:
    facts = adapt(build(detector)).facts
    assert (facts.detector, facts.num_classes, facts.strides, facts.channels) == (
        detector,
        3,
        (8, 16, 32),
        16,
    )
    assert facts.provides == ("feats", "roi_outputs")
    assert (facts.anchors, facts.softmax, facts.trains) == (0, True, trains)
