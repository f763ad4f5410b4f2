"""A DETR shows methods exactly the queries, maps and matching of mmdet's own forward pass and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config

from kdlab import catalog, detectors
from kdlab.detectors import adapt, family
from kdlab.detectors.detr import DetrAdapter
from kdlab.detectors.outputs import Batch, DetectorOutputs
from kdlab.detectors.queries import Queries
from kdlab.detectors.sizing import CONFIGS
from kdlab.errors import JobError
from kdlab.methods import method_class
from kdlab.methods.base import Pair
from kdlab.methods.detrdistill import attended, matching_loss, usefulness
from kdlab.methods.kd_detr import agreement_loss
from kdlab.training.distiller import Distiller, make_batch
from kdlab.training.preparing import TeacherWith

# family and overrides of its config
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in catalog.detectors() if issubclass(family(name), DetrAdapter)},
    "refining": ("deformable_detr", {"model.with_box_refine": True}),
    "two-stage": ("deformable_detr", {"model.with_box_refine": True, "model.as_two_stage": True}),
}
QUERIES, LAYERS = 20, 2
LOSSES = ("loss_cls", "loss_bbox", "loss_iou")


@pytest.fixture(params=VARIANTS)
def adapter(request: pytest.FixtureRequest, build: Callable[..., Any]) -> Any:
    detector, overrides = VARIANTS[request.param]
    # mmdet codes the boxes of two stages for 256 channels
    wide = {"neck_channels": 256} if "model.as_two_stage" in overrides else {}
    return adapt(without_dropout(build(detector, overrides=overrides, **wide)))


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, torch.nn.MultiheadAttention):
            layer.dropout = 0.0
    return model


@pytest.fixture
def data(adapter: Any, raw_batch: Callable[..., Any]) -> dict[str, Any]:
    return adapter.model.data_preprocessor(raw_batch(), True)


def losses_and_outputs(adapter: Any, data: dict[str, Any]) -> tuple[dict[str, Any], DetectorOutputs]:
    with adapter.recording() as caught, adapter.capturing(caught):
        losses = adapter.model.loss(data["inputs"], data["data_samples"])
    return losses, adapter.outputs(caught)


def batch_of(data: dict[str, Any]) -> Batch:
    return make_batch(data["data_samples"], data["inputs"], 0, 1)


def matching_part(losses: dict[str, Any]) -> torch.Tensor:
    """The losses of the queries that are matched, without those of denoising and of the encoder."""
    return sum(loss.sum() for name, loss in losses.items() if "dn_" not in name and "enc_" not in name)


def test_queries_are_what_the_head_says_of_them(adapter: Any, data: dict[str, Any]) -> None:
    adapter.model.eval()
    feats = adapter.model.extract_feat(data["inputs"])
    found = adapter.model.forward_transformer(feats, data["data_samples"])
    logits, boxes = adapter.head(found["hidden_states"], found["references"])
    outputs = adapter.observe(data["inputs"], data_samples=data["data_samples"])
    assert torch.equal(outputs.queries.logits, logits)
    assert torch.equal(outputs.queries.boxes, boxes)
    assert torch.equal(outputs.queries.states, found["hidden_states"])
    assert outputs.queries.gt_index is None
    assert logits.shape == (LAYERS, 3, QUERIES, 3)


def test_neck_maps_and_memory_stand_level_by_level(adapter: Any, data: dict[str, Any]) -> None:
    adapter.model.eval()
    outputs = adapter.observe(data["inputs"], data_samples=data["data_samples"])
    own = adapter.model.extract_feat(data["inputs"])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(outputs.feats, own, strict=True))
    encoded, _ = adapter.model.pre_transformer(own, data["data_samples"])
    memory = adapter.model.forward_encoder(**encoded)["memory"]
    flat = torch.cat([level.flatten(2).mT for level in outputs.memory], dim=1)
    assert torch.equal(flat, memory)
    assert [level.shape[-2:] for level in outputs.memory] == [level.shape[-2:] for level in own]


def test_boxes_are_those_that_predict_finds(adapter: Any, data: dict[str, Any]) -> None:
    adapter.model.eval()
    outputs = adapter.observe(data["inputs"], data_samples=data["data_samples"])
    scores = outputs.queries.logits[-1].sigmoid()
    for image, sample in enumerate(adapter.model.predict(data["inputs"], data["data_samples"])):
        found, (height, width) = sample.pred_instances, sample.img_shape
        order = scores[image].flatten().sort(descending=True).indices[: len(found)]
        limits = torch.tensor([width, height, width, height])
        corners = bbox_cxcywh_to_xyxy(outputs.queries.boxes[-1, image]) * limits
        mine = corners[order // 3].clamp(min=torch.zeros(4), max=limits.float())
        torch.testing.assert_close(mine, found.bboxes)


def test_the_end_of_an_image_comes_from_its_sample(adapter: Any, data: dict[str, Any]) -> None:
    adapter.model.eval()
    told = adapter.observe(data["inputs"], data_samples=data["data_samples"]).queries.logits
    untold = adapter.observe(data["inputs"]).queries.logits
    # the first fills the input, the third does not
    torch.testing.assert_close(told[:, 0], untold[:, 0])
    assert not torch.allclose(told[:, 2], untold[:, 2])


def test_the_matching_is_that_of_the_loss(adapter: Any, data: dict[str, Any]) -> None:
    _, outputs = losses_and_outputs(adapter, data)
    objects = [sample.gt_instances for sample in data["data_samples"]]
    metas = [sample.metainfo for sample in data["data_samples"]]
    queries = outputs.queries
    for layer in range(LAYERS):
        labels, *_ = adapter.head.get_targets(
            list(queries.logits[layer]), list(queries.boxes[layer]), objects, metas
        )
        for image, own in enumerate(labels):
            index = queries.gt_index[layer, image]
            mine = torch.full_like(own, 3)
            mine[index >= 0] = objects[image].labels[index[index >= 0]]
            assert torch.equal(mine, own)
            assert sorted(index[index >= 0].tolist()) == list(range(len(objects[image])))
    assert torch.equal(outputs.match_queries(queries, batch_of(data)), queries.gt_index)


def test_the_loss_of_its_own_matching_is_its_own(adapter: Any, data: dict[str, Any]) -> None:
    losses, outputs = losses_and_outputs(adapter, data)
    again = outputs.query_loss(outputs.queries, outputs.queries.gt_index, batch_of(data))
    torch.testing.assert_close(again, matching_part(losses))
    other = outputs.queries.gt_index.roll(1, dims=2)
    assert outputs.query_loss(outputs.queries, other, batch_of(data)) > again


def test_decoding_its_own_queries_again_says_the_same(adapter: Any, data: dict[str, Any]) -> None:
    _, outputs = losses_and_outputs(adapter, data)
    again = outputs.decode_queries(outputs.starts)
    torch.testing.assert_close(again.logits, outputs.queries.logits)
    torch.testing.assert_close(again.boxes, outputs.queries.boxes)
    torch.testing.assert_close(again.states, outputs.queries.states)


def test_other_queries_reach_the_images_and_the_decoder_by_their_gradient(
    adapter: Any, data: dict[str, Any]
) -> None:
    _, outputs = losses_and_outputs(adapter, data)
    few = replace(outputs.starts, content=outputs.starts.content[:, :7].detach().requires_grad_())
    few = replace(few, position=None if few.position is None else few.position[:, :7].detach())
    few = replace(few, boxes=None if few.boxes is None else few.boxes[:, :7].detach())
    found = outputs.decode_queries(few)
    assert found.logits.shape == (LAYERS, 3, 7, 3)
    found.logits.sum().backward()
    assert few.content.grad.abs().sum() > 0
    assert next(adapter.model.backbone.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("numbers", [[1], [1, 1], [0]], ids=["empty", "both empty", "one image"])
def test_images_without_objects_match_none(
    adapter: Any, raw_batch: Callable[..., Any], numbers: list[int]
) -> None:
    data = adapter.model.data_preprocessor(raw_batch(numbers), True)
    losses, outputs = losses_and_outputs(adapter, data)
    index = outputs.queries.gt_index
    assert index.shape == (LAYERS, len(numbers), QUERIES)
    assert ((index >= 0).sum(2) == torch.tensor([5 if number == 0 else 0 for number in numbers])).all()
    assert all(torch.isfinite(loss).all() for loss in losses.values())


def test_what_a_teacher_computes_hangs_on_no_graph(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    teacher = build("deformable_detr", 99)
    distiller = Distiller(build("deformable_detr"), {"kd_detr": term("kd_detr")}, teacher).train()
    distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")["loss_kd_detr.own"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(("mine", "theirs"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("method", ["detrdistill", "kd_detr"])
def test_the_last_layers_meet_where_one_has_more_and_queries_may_be_fewer(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], method: str,
    mine: int, theirs: int,
) -> None:  # fmt: skip
    student = build("deformable_detr", layers=mine, queries=12)
    teacher = build("deformable_detr", 99, layers=theirs, queries=30)
    distiller = Distiller(student, {method: term(method)}, teacher).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    own = [loss for name, loss in losses.items() if method in name]
    assert len(own) > 1
    assert all(torch.isfinite(loss) and loss > 0 for loss in own)


@pytest.mark.parametrize(("mine", "theirs"), [(1, 3), (3, 1)])
def test_parts_are_those_of_the_last_layers_and_features_of_all_that_the_teacher_has(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], mine: int, theirs: int
) -> None:
    student = without_dropout(build("deformable_detr", layers=mine, queries=12))
    teacher = build("deformable_detr", 99, layers=theirs, queries=30)
    methods = {"detrdistill": term("detrdistill"), "kd_detr": term("kd_detr", points=0)}
    distiller, seen = Distiller(student, methods, teacher).train(), []
    distiller.terms["detrdistill"].method.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    ((batch, own, other),) = seen

    def last(queries: Queries) -> Queries:
        return Queries(queries.logits[-1:], queries.boxes[-1:], queries.states[-1:])

    def agree(part: str, expected: torch.Tensor) -> None:
        torch.testing.assert_close(losses[f"loss_{part}"], expected)

    agree("detrdistill.logits", matching_loss(last(own.queries), last(other.queries)))
    again, index = own.decode_queries(other.starts), other.match_queries(other.queries, batch)
    agree("detrdistill.prior", own.query_loss(last(again), index[-1:], batch))
    agree("kd_detr.own", agreement_loss(last(again), last(other.queries)))
    # a sum over layers of what masked maps differ, level by level
    masks = attended(other.queries, usefulness(other.queries, batch), other.feats)
    apart = [
        (mask[layer][:, None] * (one - another)).square().mean()
        for mask, one, another in zip(masks, own.feats, other.feats, strict=True)
        for layer in range(theirs)
    ]
    agree("detrdistill.features", torch.stack(apart).sum())


@pytest.mark.parametrize("method", ["fitnet", "cwd", "pkd", "mgd", "rdimkd", "fgd"])
def test_methods_on_maps_read_the_encoders_where_they_are_told_to(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any], method: str
) -> None:
    student, teacher = build("deformable_detr", neck_channels=8), build("deformable_detr", 99)
    methods = {f"{method}@{maps}": term(method, maps=maps) for maps in ("neck", "memory")}
    distiller = Distiller(student, methods, teacher).train()
    seen = []
    for one in distiller.terms.values():
        one.method.register_forward_pre_hook(lambda _, args: seen.append((args[1], args[2])))
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    sum(loss for name, loss in losses.items() if "@memory" in name).backward()
    (_, by_neck), (_, by_memory) = seen
    assert all(torch.equal(*pair) for pair in zip(by_neck.feats, by_neck.neck_maps, strict=True))
    assert all(torch.equal(*pair) for pair in zip(by_memory.feats, by_memory.memory, strict=True))
    encoder = [parameter.grad for parameter in student.encoder.parameters()]
    assert all(grad is not None for grad in encoder)


def test_queries_that_begin_otherwise_are_other_priors(adapter: Any) -> None:
    two_stages = getattr(adapter.model, "as_two_stage", False)
    placed = "placed boxes" if adapter.facts.detector == "deformable_detr" else "boxes"
    assert adapter.facts.priors == (placed if two_stages else "points")


@pytest.mark.parametrize("detector", ["deformable_detr", "dino"])
def test_masks_are_learned_of_a_detr(
    build: Callable[..., Any], raw_batch: Callable[..., Any], detector: str
) -> None:
    teacher = build(detector, 99)
    facts = adapt(teacher).facts
    levels = tuple((level, level) for level in range(len(facts.strides)))
    preparation = method_class("maskd")(Pair(facts, facts, levels), tokens=3).prepared
    learning = TeacherWith(teacher, preparation).train()
    losses = learning(**learning.data_preprocessor(raw_batch(), True), mode="loss")
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(parameter.grad is not None for parameter in preparation.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(layer.training for layer in teacher.encoder.modules())


@pytest.mark.parametrize("mode", ["loss", "predict"])
def test_images_with_too_few_places_are_told_in_training_and_in_evaluation(
    build: Callable[..., Any], raw_batch: Callable[..., Any], mode: str
) -> None:
    distiller = Distiller(build("dino", queries=5000))
    with pytest.raises(JobError, match="chosen among the places"):
        distiller(**distiller.data_preprocessor(raw_batch(), True), mode=mode)


def test_queries_are_chosen_among_the_places_that_there_are(build: Callable[..., Any]) -> None:
    inputs = torch.zeros(1, 3, 64, 96)
    adapt(build("dino", queries=126)).forward_all(inputs)
    with pytest.raises(JobError, match="chosen among the places") as refused:
        adapt(build("dino", queries=127)).forward_all(inputs)
    assert refused.value.faults[0].got == "queries: 127, 126 places in maps of 12x8 and less"
    # of queries that are learned there may be any number
    adapt(build("deformable_detr", queries=127)).forward_all(inputs)


def test_dino_of_other_channels_is_refused(model_settings: Callable[..., Any]) -> None:
    settings = model_settings("dino").model_copy(update={"neck_channels": 64})
    with pytest.raises(JobError, match="codes boxes for 256 channels alone") as refused:
        detectors.config(settings, 3)
    assert refused.value.faults[0].fix == "neck_channels: 256"


@pytest.mark.parametrize("detector", ["deformable_detr", "dino"])
def test_mmdets_own_comes_out_of_its_own_sizes(detector: str, model_settings: Callable[..., Any]) -> None:
    sizes = model_settings(
        detector, backbone="resnet50", width=64, neck_channels=256, strides=(8, 16, 32, 64), layers=6,
        queries=catalog.detectors()[detector].queries,
    )  # fmt: skip
    ours, own = family(detector).config(sizes, 80), Config.fromfile(CONFIGS / family(detector).base).model
    assert [ours.train_cfg, ours.test_cfg] == [own.train_cfg, own.test_cfg]
    assert [ours.bbox_head[name] for name in LOSSES] == [own.bbox_head[name] for name in LOSSES]
    models = []
    for config in (ours, own):
        config.backbone.init_cfg = None
        with torch.device("meta"):
            models.append(MODELS.build(config))
    mine, theirs = ({name: value.shape for name, value in one.state_dict().items()} for one in models)
    assert mine == theirs


def test_more_objects_than_queries_leave_some_without_one(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    methods = {"detrdistill": term("detrdistill"), "kd_detr": term("kd_detr")}
    distiller = Distiller(
        build("deformable_detr", queries=3), methods, build("deformable_detr", 99, queries=4)
    )
    losses = distiller.train()(**distiller.data_preprocessor(raw_batch([0]), True), mode="loss")
    assert all(torch.isfinite(loss).all() for loss in losses.values())
