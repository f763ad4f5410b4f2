"""Every detector family shows methods exactly what mmdet's own head computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab import catalog
from kdlab.detectors import family
from kdlab.detectors.dense import DenseAdapter
from kdlab.detectors.dynamic import DynamicAdapter
from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.training.distiller import make_batch

# family and overrides of its config
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in catalog.detectors() if issubclass(family(name), DenseAdapter)},
    "fcos-in-pixels": ("fcos", {"model.bbox_head.norm_on_bbox": False}),
    "gfl-within-a-border": ("gfl", {"model.train_cfg.allowed_border": 24}),
    "retinanet-with-heavy-positives": ("retinanet", {"model.train_cfg.pos_weight": 3.0}),
}
pytestmark = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture
def detector(variant: str) -> str:
    return VARIANTS[variant][0]


@pytest.fixture
def adapter(variant: str, build: Callable[..., Any]) -> Any:
    detector, overrides = VARIANTS[variant]
    return family(detector)(build(detector, overrides=overrides))


@pytest.fixture
def data(adapter: Any, raw_batch: Callable[..., Any]) -> dict[str, Any]:
    return adapter.model.data_preprocessor(raw_batch(), True)


def observe(adapter: Any, data: dict[str, Any], towers: Any = ()) -> tuple[DetectorOutputs, tuple[Any, ...]]:
    """The outputs of one pass, and what the head returned in it."""
    with adapter.recording(towers) as caught:
        raw = adapter.head(adapter.model.extract_feat(data["inputs"]))
    return adapter.outputs(caught), raw


def observe_loss(adapter: Any, data: dict[str, Any]) -> tuple[DetectorOutputs, Assignment, Batch, Any]:
    with adapter.recording() as caught, adapter.capturing(caught):
        losses = adapter.model.loss(data["inputs"], data["data_samples"])
    batch = make_batch(data["data_samples"], data["inputs"], 0, 1)
    outputs = adapter.outputs(caught)
    return outputs, adapter.assignment(caught, outputs, data["data_samples"]), batch, losses


def head_targets(adapter: Any, outputs: DetectorOutputs, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Labels and label weights (B, N) by the head's own `get_targets`."""
    objects = [sample.gt_instances for sample in data["data_samples"]]
    metas = [sample.metainfo for sample in data["data_samples"]]
    sizes = [level.shape[-2:] for level in outputs.cls_maps]
    if adapter.facts.detector == "yolox":
        return yolox_targets(adapter, outputs, data)
    if not hasattr(adapter.head, "get_anchors"):
        points = adapter.head.prior_generator.grid_priors(sizes, device="cpu")
        # levels first, images one after the other within each
        labels, _ = adapter.head.get_targets(points, objects)
        found = torch.cat([level.view(len(objects), -1) for level in labels], dim=1)
        return found, torch.ones_like(found, dtype=torch.float32)
    anchors, flags = adapter.head.get_anchors(sizes, metas, device="cpu")
    # labels that follow predictions ask for them
    predicted = (outputs.cls_logits, outputs.boxes) if adapter.facts.detector == "rtmdet" else ()
    targets = adapter.head.get_targets(*predicted, anchors, flags, objects, metas)
    levels = [part for part in targets if isinstance(part, list)]
    labels = next(part for part in levels if part[0].dtype == torch.int64)
    weights = next(part for part in levels if part[0].dtype != torch.int64 and part[0].dim() == 2)
    return torch.cat(labels, dim=1), torch.cat(weights, dim=1)


def yolox_targets(adapter: Any, outputs: DetectorOutputs, data: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Labels of positives, K of all others, and weights, which this head does not have."""
    raw = adapter.head(adapter.model.extract_feat(data["inputs"]))
    classes, objectness = (flat_rows(part) for part in (raw[0], raw[2]))
    sizes = [level.shape[-2:] for level in raw[0]]
    points = torch.cat(adapter.head.prior_generator.grid_priors(sizes, device="cpu", with_stride=True))
    found = torch.full(classes.shape[:2], adapter.facts.num_classes)
    for image, sample in enumerate(data["data_samples"]):
        seen = classes[image], outputs.boxes[image], objectness[image, :, 0]
        mask, targets, *_ = adapter.head._get_targets_single(
            points, *map(Tensor.detach, seen), sample.gt_instances, sample.metainfo
        )
        # a class's target is its box's overlap, of the others 0
        found[image, mask] = targets.argmax(1)
    return found, torch.ones_like(found, dtype=torch.float32)


def flat_rows(maps: list[Tensor]) -> Tensor:
    """(B, N, X) of maps (B, X, H, W) over levels."""
    return torch.cat([level.flatten(2).mT for level in maps], dim=1)


def levels(loss: Tensor | list[Tensor]) -> list[Tensor]:
    """GFL gives its losses level by level, RetinaNet too, FCOS as one."""
    return loss if isinstance(loss, list) else [loss]


def raw_boxes(adapter: Any, maps: list[Tensor]) -> Tensor:
    """(B, N, X) raw box values, flattened level by level."""
    width = maps[0].shape[1] // adapter.facts.anchors
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, width) for level in maps], dim=1)


def test_class_and_box_maps_are_the_heads_own(adapter: Any, data: dict[str, Any]) -> None:
    outputs, raw = observe(adapter, data)
    if adapter.facts.detector == "yolox":
        # what it detects by is the product of class and objectness
        scores = [level.sigmoid() for level in outputs.cls_maps]
        products = [cls.sigmoid() * other.sigmoid() for cls, other in zip(raw[0], raw[2], strict=True)]
        torch.testing.assert_close(scores, products)
        raw = (outputs.cls_maps, raw[1])
    for mine, theirs in zip(outputs.cls_maps + outputs.box_maps, raw[0] + raw[1], strict=True):
        assert torch.equal(mine, theirs)


def test_neck_maps_are_those_that_the_head_reads(adapter: Any, data: dict[str, Any]) -> None:
    outputs, _ = observe(adapter, data)
    for mine, theirs in zip(outputs.feats, adapter.model.extract_feat(data["inputs"]), strict=True):
        assert torch.equal(mine, theirs)
    assert [feat.shape[1] for feat in outputs.feats] == [adapter.facts.channels] * len(outputs.feats)
    assert outputs.level_strides == (8, 16, 32)


def test_quality_is_given_where_it_is_promised(adapter: Any, data: dict[str, Any]) -> None:
    outputs, raw = observe(adapter, data)
    assert (outputs.quality_maps is not None) == ("quality_maps" in adapter.facts.provides)
    for mine, theirs in zip(outputs.quality_maps or [], raw[-1], strict=bool(outputs.quality_maps)):
        assert torch.equal(mine, theirs)


def test_an_eval_teacher_shows_the_raw_boxes_of_training(adapter: Any, data: dict[str, Any]) -> None:
    for layer in adapter.model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()
    training, _ = observe(adapter, data)
    adapter.model.eval()
    evaluation, _ = observe(adapter, data)
    for mine, theirs in zip(training.box_maps, evaluation.box_maps, strict=True):
        assert torch.equal(mine, theirs)


def test_flat_order_is_level_row_column_anchor(adapter: Any, data: dict[str, Any]) -> None:
    outputs, _ = observe(adapter, data)
    classes, anchors = adapter.facts.num_classes, adapter.facts.anchors
    for level, cls_map in enumerate(outputs.cls_maps):
        row, column, anchor = cls_map.shape[-2] - 1, 1, anchors - 1
        flat = outputs.priors.first[level] + (row * cls_map.shape[-1] + column) * anchors + anchor
        at_cell = cls_map[0, anchor * classes : (anchor + 1) * classes, row, column]
        assert torch.equal(outputs.cls_logits[0, flat], at_cell)


def test_priors_stand_in_the_cells_of_their_level(adapter: Any, data: dict[str, Any]) -> None:
    priors = observe(adapter, data)[0].priors
    assert priors.first == (0, *torch.tensor(priors.per_level).cumsum(0).tolist())
    assert len(priors.boxes) == priors.first[-1] == len(priors.level)
    assert torch.equal(priors.strides, torch.tensor([8.0, 16.0, 32.0])[priors.level])
    centres = priors.boxes if priors.boxes.shape[1] == 2 else (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2
    for level, (height, width) in enumerate(priors.sizes):
        mine = centres[priors.first[level] : priors.first[level + 1]].view(height, width, -1, 2)
        step = mine[1, 1] - mine[0, 0]
        torch.testing.assert_close(step, torch.full_like(step, float(adapter.facts.strides[level])))


@pytest.mark.parametrize("training", [True, False], ids=["student", "teacher"])
def test_boxes_are_those_that_predict_gives_to_nms(
    adapter: Any, data: dict[str, Any], training: bool
) -> None:
    adapter.model.train(training)
    outputs, _ = observe(adapter, data)
    adapter.model.eval()
    # `predict` orders a level by score: with these it keeps the flat order
    raw = [[falling_scores(level) for level in outputs.cls_maps]]
    # and it reads raw boxes as the head makes them in eval mode
    if getattr(adapter.head, "norm_on_bbox", False):
        raw += [
            [level * stride for level, stride in zip(outputs.box_maps, adapter.facts.strides, strict=True)]
        ]
    else:
        raw += [outputs.box_maps]
    if outputs.quality_maps:
        raw.append(outputs.quality_maps)
    repeats = adapter.facts.num_classes
    if adapter.one_class:
        # it detects a prior's best class alone, in flat order as it is
        raw, repeats = [*raw, [torch.zeros_like(level[:, :1]) for level in outputs.cls_maps]], 1
    test_cfg = adapter.head.test_cfg.copy()
    test_cfg.update(score_thr=0.0, nms_pre=10**6, min_bbox_size=-1)
    metas = [{**s.metainfo, "img_shape": (10**6, 10**6)} for s in data["data_samples"]]
    found = adapter.head.predict_by_feat(*raw, batch_img_metas=metas, cfg=test_cfg, with_nms=False)
    for image, detections in enumerate(found):
        # every prior comes once for each class, clipped at 0
        mine = outputs.boxes[image].repeat_interleave(repeats, 0)
        mine = mine.clamp(min=0) if adapter.clips else mine
        torch.testing.assert_close(mine, detections.bboxes, rtol=1e-5, atol=1e-4)


def falling_scores(cls_map: Tensor) -> Tensor:
    """Logits like `cls_map` (B, A*K, H, W) that fall from prior to prior, and from class to class in each."""
    images, channels, height, width = cls_map.shape
    falling = torch.linspace(6, -6, height * width * channels).view(height, width, channels)
    return falling.permute(2, 0, 1).expand(images, -1, -1, -1)


def test_gathering_equals_indexing_the_flat_tensors(adapter: Any, data: dict[str, Any]) -> None:
    outputs, _ = observe(adapter, data)
    images, priors = outputs.cls_logits.shape[:2]
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(images, (40,), generator=generator)
    prior = torch.randint(priors, (40,), generator=generator)
    assert torch.equal(outputs.gather_logits(image, prior), outputs.cls_logits[image, prior])
    torch.testing.assert_close(outputs.gather_boxes(image, prior), outputs.boxes[image, prior])
    raw = raw_boxes(adapter, outputs.box_maps)[image, prior]
    assert torch.equal(outputs.gather_raw_boxes(image, prior), raw)
    if outputs.quality_maps:
        flat = torch.cat([level.flatten(1) for level in outputs.quality_maps], dim=1)
        assert torch.equal(outputs.gather_quality(image, prior), flat[image, prior])
    if "box_distributions" in adapter.facts.provides:
        assert torch.equal(outputs.gather_distributions(image, prior), raw.view(40, 4, -1))


def test_gathering_nothing_stays_in_the_graph(adapter: Any, data: dict[str, Any]) -> None:
    outputs, _ = observe(adapter, data)
    none = torch.zeros(0, dtype=torch.long)
    for found in (outputs.gather_logits(none, none), outputs.gather_boxes(none, none)):
        assert len(found) == 0
        assert found.requires_grad


def test_losses_are_equal_to_the_bit_while_the_assignment_is_captured(
    adapter: Any, data: dict[str, Any]
) -> None:
    _, _, _, captured = observe_loss(adapter, data)
    plain = adapter.model.loss(data["inputs"], data["data_samples"])
    assert captured.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(torch.stack(levels(captured[name])), torch.stack(levels(value))), name


def test_captured_assignment_gives_mmdets_labels_and_weights(adapter: Any, data: dict[str, Any]) -> None:
    outputs, assignment, batch, _ = observe_loss(adapter, data)
    labels, weights = head_targets(adapter, outputs, data)
    mine = torch.full_like(labels, adapter.facts.num_classes)
    image, prior, group = assignment.positives(batch)
    mine[image, prior] = batch.gt_labels[group]
    assert torch.equal(mine, labels)
    assert torch.equal(assignment.label_weights, weights)
    assert torch.equal(assignment.gt_index == -2, weights == 0)


def test_the_batch_has_positives_of_most_objects_and_none_in_the_empty_image(
    adapter: Any, data: dict[str, Any]
) -> None:
    _, assignment, batch, _ = observe_loss(adapter, data)
    image, _, group = assignment.positives(batch)
    # labels that follow predictions leave out objects whose priors others want more
    assert len(group.unique()) >= (3 if isinstance(adapter, DynamicAdapter) else 5)
    assert set(image.tolist()) == {0, 2}
    assert torch.equal(batch.gt_image[group], image)
    assert assignment.num_positives == len(group)


def test_two_objects_of_one_class_are_told_apart(adapter: Any, data: dict[str, Any]) -> None:
    outputs, assignment, batch, _ = observe_loss(adapter, data)
    boxes = batch.gt_boxes
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    priors = outputs.priors.boxes
    places = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
    _, prior, group = assignment.positives(batch)
    # the far one of image 0's two objects of class 1 is at the right edge
    far = group == 4
    assert far.any()
    assert (places[prior[far]] - centres[4]).norm(dim=1).max() < 32


def test_without_objects_nothing_is_positive(
    adapter: Any, data: dict[str, Any], raw_batch: Callable[..., Any]
) -> None:
    data = adapter.model.data_preprocessor(raw_batch([1, 1]), True)
    _, assignment, batch, _ = observe_loss(adapter, data)
    assert all(len(part) == 0 for part in assignment.positives(batch))
    assert assignment.num_positives == 1


def test_matching_the_ground_truth_gives_the_assignment_of_the_loss(
    adapter: Any, data: dict[str, Any], variant: str
) -> None:
    if isinstance(adapter, DynamicAdapter):
        pytest.skip("its labels follow predictions, which boxes of others lack")
    outputs, assignment, batch, _ = observe_loss(adapter, data)
    for image in range(len(batch.image_shapes)):
        if variant == "gfl-within-a-border" and image == 2:
            continue  # a border is one of the image before padding, which `match` is not told
        boxes = batch.gt_boxes[batch.gt_image == image]
        matched = outputs.match(boxes, tuple(batch.pad_shapes[image].tolist()))
        assert torch.equal(matched, assignment.gt_index[image])


def test_encoding_inverts_decoding(adapter: Any, data: dict[str, Any]) -> None:
    outputs, _ = observe(adapter, data)
    prior = torch.arange(0, len(outputs.priors.boxes), 7)
    anchors = outputs.priors.boxes[prior]
    centres = anchors if anchors.shape[1] == 2 else (anchors[:, :2] + anchors[:, 2:]) / 2
    reach = outputs.priors.strides[prior, None] * torch.tensor([1.5, 2.25, 3.0, 0.75])
    boxes = torch.cat([centres - reach[:, :2], centres + reach[:, 2:]], dim=1)
    raw = outputs.encode(prior, boxes)
    if "box_distributions" in adapter.facts.provides:
        # distances in strides; the logits that put all weight on the two whole ones around each
        raw = _distributions(raw, adapter.head.reg_max)
    decoded = adapter.decode(anchors, outputs.priors.strides[prior], raw)
    torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)


def _distributions(distances: Tensor, reg_max: int) -> Tensor:
    bins = torch.arange(reg_max + 1.0)
    weights = (1 - (distances[..., None] - bins).abs()).clamp(min=1e-12)
    return weights.log().flatten(1)


@pytest.mark.parametrize("conv", [0, 1])
def test_the_tail_from_its_own_towers_gives_the_heads_maps(
    adapter: Any, data: dict[str, Any], conv: int
) -> None:
    adapter.model.eval()
    outputs, _ = observe(adapter, data, [("cls", conv), ("reg", conv)])
    tail = outputs.run_tail(conv, outputs.tower("cls", conv), outputs.tower("reg", conv))
    for name in ("cls_maps", "box_maps", "quality_maps"):
        mine, expected = getattr(tail, name), getattr(outputs, name)
        assert (mine is None) == (expected is None)
        assert all(torch.equal(*pair) for pair in zip(mine or [], expected or [], strict=True)), name


def test_gradients_of_a_tail_reach_the_maps_and_no_frozen_weight(adapter: Any, data: dict[str, Any]) -> None:
    adapter.model.eval().requires_grad_(False)
    outputs, _ = observe(adapter, data, [("cls", 0), ("reg", 0)])
    maps = [[level.clone().requires_grad_() for level in outputs.tower(b, 0)] for b in ("cls", "reg")]
    tail = outputs.run_tail(0, *maps)
    sum(level.square().mean() for level in tail.cls_maps + tail.box_maps).backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in [*maps[0], *maps[1]])
    assert all(parameter.grad is None for parameter in adapter.model.parameters())


def test_towers_are_taken_before_the_activation(adapter: Any, data: dict[str, Any]) -> None:
    outputs, _ = observe(adapter, data, [("cls", 1)])
    assert all((level < 0).any() for level in outputs.tower("cls", 1))


def test_nothing_stays_hooked_after_a_pass(adapter: Any, data: dict[str, Any]) -> None:
    observe(adapter, data, [("cls", 0)])
    observe_loss(adapter, data)
    assert not any(module._forward_hooks for module in adapter.model.modules())
    assert "_get_targets_single" not in vars(adapter.head)
    assert "sample" not in vars(getattr(adapter.head, "sampler", adapter.head))


def test_facts_say_what_the_head_is(adapter: Any, detector: str) -> None:
    facts = adapter.facts
    assert (facts.detector, facts.num_classes, facts.strides) == (detector, 3, (8, 16, 32))
    assert (facts.channels, facts.tower_depth, facts.softmax) == (16, 2, False)
    assert facts.anchors == (9 if detector == "retinanet" else 1)


def test_only_equal_heads_have_equal_facts(adapter: Any, detector: str, build: Callable[..., Any]) -> None:
    def facts(**changes: Any) -> Any:
        return family(detector)(build(detector, **changes)).facts

    assert facts(width=16) == adapter.facts
    assert facts(neck_channels=32).head != adapter.facts.head
    assert facts(neck_channels=32).priors == adapter.facts.priors
    assert facts(strides=(4, 8, 16)).priors != adapter.facts.priors


def test_any_width_of_neck_can_be_built(detector: str, build: Callable[..., Any], torch_: Any) -> None:
    for channels in (6, 28):
        build(detector, neck_channels=channels)(torch_.zeros(1, 3, 64, 64))
