"""The Distiller: mmdet's own step without methods, and a teacher that nothing else sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from torch import Tensor, nn

from kdlab import catalog, detectors
from kdlab.detectors import family
from kdlab.errors import JobError
from kdlab.methods.base import Connector, Method
from kdlab.training.distiller import Distiller, make_batch, matched_levels
from kdlab.training.optimising import build_optimiser
from tests.stubs.jobs import schedule

DETECTORS = [name for name in catalog.detectors() if not family(name).masks]
SCHEDULE = {"lr": 0.01, "weight_decay": 0.01}
BATCHES = ([0, 1], [2, 0], [0], [1, 2], [2, 1, 0]) * 2


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def loss_dict(distiller: Distiller, data: dict[str, Any]) -> dict[str, Any]:
    return distiller(**distiller.data_preprocessor(data, True), mode="loss")


# --- without methods ---


@pytest.mark.parametrize(
    ("detector", "optimizer", "count"),
    [
        ("gfl", "adamw", 10),
        ("gfl", "sgd", 10),
        ("deformable_detr", "adamw", 10),
        ("dino", "adamw", 10),
        *((name, "sgd", 3) for name in DETECTORS if name != "gfl"),
    ],
)
def test_steps_without_methods_are_mmdets_to_the_bit(
    model_settings: Callable[..., Any],
    raw_batch: Callable[..., Any],
    detector: str,
    optimizer: str,
    count: int,
) -> None:
    settings = model_settings(detector)
    torch.manual_seed(0)
    plain = MODELS.build(detectors.config(settings, 3).model)
    plain.init_weights()
    torch.manual_seed(0)
    distiller = Distiller(detectors.build(settings, 3))
    models = [plain.train(), distiller.train()]
    optimisers = [build_optimiser(model, schedule(**SCHEDULE, optimizer=optimizer)) for model in models]
    for images in BATCHES[:count]:
        logs = []
        for model, optimiser in zip(models, optimisers, strict=True):
            torch.manual_seed(1)  # of a DETR's dropout and denoising
            logs.append(model.train_step(raw_batch(images), optimiser))
        assert logs[0] == logs[1]
    assert equal_states(plain, distiller.student)


def test_a_method_of_weight_zero_changes_nothing(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    arms = [distil("gfl"), distil("gfl", {"rm": term("rm", weight=0.0)})]
    for arm in arms:
        optimiser = build_optimiser(arm.train(), schedule(**SCHEDULE, optimizer="sgd"))
        for images in BATCHES[:3]:
            arm.train_step(raw_batch(images), optimiser)
    assert equal_states(arms[0].student, arms[1].student)


def test_a_teacher_without_methods_is_not_run(distil: Callable[..., Distiller], build: Any) -> None:
    distiller = distil("gfl", {}, teacher=build("gfl", 3))
    assert not distiller.distilling
    assert not distiller._teacher


# --- the teacher ---


@pytest.fixture
def pair(distil: Callable[..., Distiller], term: Callable[..., Any]) -> Distiller:
    return distil("gfl", {"pfi": term("pfi")}, neck_channels=8)


def test_teacher_is_in_no_state_dict_and_no_optimiser(pair: Distiller) -> None:
    (teacher,) = pair._teacher
    mine = {id(parameter) for parameter in pair.parameters()}
    assert not any(id(parameter) in mine for parameter in teacher.parameters())
    expected = {f"student.{name}" for name in pair.student.state_dict()}
    assert {name for name in pair.state_dict() if not name.startswith("terms.")} == expected


def test_training_mode_and_steps_leave_the_teacher_alone(
    pair: Distiller, raw_batch: Callable[..., Any]
) -> None:
    (teacher,) = pair._teacher
    before = states(teacher)
    optimiser = build_optimiser(pair.train(), schedule(**SCHEDULE, optimizer="adamw"))
    for images in BATCHES[:3]:
        pair.train_step(raw_batch(images), optimiser)
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_moving_the_distiller_moves_the_teacher_and_its_images(pair: Distiller) -> None:
    pair.to("meta")
    (teacher,) = pair._teacher
    assert all(parameter.is_meta for parameter in teacher.parameters())
    assert teacher.data_preprocessor.device == torch.device("meta")


def test_predictions_are_the_students(pair: Distiller, raw_batch: Callable[..., Any]) -> None:
    pair.eval()
    pair.student.bbox_head.test_cfg.score_thr = 0.0
    mine, theirs = (model.test_step(raw_batch([0])) for model in (pair, pair.student))
    assert len(mine[0].pred_instances) > 0
    assert torch.equal(mine[0].pred_instances.bboxes, theirs[0].pred_instances.bboxes)


# --- preprocessing ---


def caffe_style(model: nn.Module, mean_bgr: list[float]) -> nn.Module:
    """A copy that reads BGR pixels of deviation 1, its first convolution changed to undo that."""
    copied = copy.deepcopy(model)
    deviation = copied.data_preprocessor.std.view(1, 3, 1, 1)
    first = copied.backbone.conv1.weight
    first.data = (first.data / deviation).flip(1)
    copied.data_preprocessor = DetDataPreprocessor(mean=mean_bgr, std=[1, 1, 1], bgr_to_rgb=False)
    return copied


MEAN_BGR = [103.53, 116.28, 123.675]


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_caffe_style_copy_of_a_teacher_predicts_the_same(
    distil: Callable[..., Distiller], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any], detector: str,
) -> None:  # fmt: skip
    teacher, maps = build(detector, 1), []
    for model in (copy.deepcopy(teacher), caffe_style(teacher, MEAN_BGR)):
        distiller = distil(detector, {"soft_label": term("soft_label")}, teacher=model)
        inputs = distiller.data_preprocessor(raw_batch(), True)
        outputs = distiller.teacher_outputs(inputs.get("inputs_teacher", inputs["inputs"]))
        maps.append([*outputs.neck_maps, *(outputs.cls_maps or []), *(outputs.box_maps or [])])
    for one, other in zip(*maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_each_model_normalises_the_same_pixels_and_pads_to_the_same_size(
    distil: Callable[..., Distiller], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any],
) -> None:  # fmt: skip
    teacher = caffe_style(build("gfl", 1), [1.0, 2.0, 3.0])
    distiller = distil("gfl", {"rm": term("rm")}, teacher=teacher)
    # 40 x 56 pixels, of which the teacher's own preprocessor would not pad any
    inputs = distiller.data_preprocessor(raw_batch([2]), True)
    assert inputs["inputs_teacher"].shape == inputs["inputs"].shape == (1, 3, 64, 64)
    (pixels,), (found,) = raw_batch([2])["inputs"], inputs["inputs_teacher"]
    assert torch.equal(found[:, :40, :56], pixels - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
    assert found[:, 40:].abs().sum() + found[:, :, 56:].abs().sum() == 0


def test_equal_preprocessing_is_done_once(pair: Distiller, raw_batch: Callable[..., Any]) -> None:
    assert "inputs_teacher" not in pair.data_preprocessor(raw_batch(), True)


def test_evaluation_prepares_no_images_for_the_teacher(
    distil: Callable[..., Distiller], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any],
) -> None:  # fmt: skip
    distiller = distil("gfl", {"rm": term("rm")}, teacher=caffe_style(build("gfl", 1), MEAN_BGR))
    assert "inputs_teacher" not in distiller.data_preprocessor(raw_batch(), False)


# --- seeds pair the arms ---

ARMS = [(), *((name,) for name in catalog.methods()), tuple(catalog.methods())]


@pytest.mark.parametrize("arm", ARMS, ids="+".join)
def test_all_arms_of_a_seed_start_from_the_same_student_and_random_numbers(
    build: Callable[..., Any], term: Callable[..., Any], arm: tuple[str, ...]
) -> None:
    student, teacher = build("gfl", 0, neck_channels=8), build("gfl", 1)
    before = states(student)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Distiller(student, {name: term(name) for name in arm}, teacher, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_what_a_method_draws_depends_on_the_seed_and_its_own_name(
    distil: Callable[..., Distiller], term: Callable[..., Any]
) -> None:
    def drawn(seed: int, methods: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
        made = distil("gfl", methods, seed=seed, neck_channels=8).terms[name]
        return made.connectors[0].weight, torch.rand(5, generator=made.generator)

    alone = drawn(0, {"pfi": term("pfi")}, "pfi")
    beside = drawn(0, {"rm": term("rm"), "pfi": term("pfi")}, "pfi")
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone, beside, strict=True))
    for other in (drawn(1, {"pfi": term("pfi")}, "pfi"), drawn(0, {"pfi@b": term("pfi")}, "pfi@b")):
        assert not any(torch.equal(mine, theirs) for mine, theirs in zip(alone, other, strict=True))


# --- weights and names ---


def test_weight_grows_linearly_over_the_warm_up(
    distil: Callable[..., Distiller], term: Callable[..., Any]
) -> None:
    made = distil("gfl", {"rm": term("rm", weight=8.0, warmup_iters=3)}).terms["rm"]
    assert [made.weight.at(iteration, 100) for iteration in range(5)] == [2, 4, 6, 8, 8]
    assert distil("gfl", {"rm": term("rm", weight=8.0)}).terms["rm"].weight.at(0, 100) == 8


def test_losses_are_weighted_and_raw_ones_kept(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"rm": term("rm", weight=8.0, warmup_iters=3)})
    distiller.iteration = 1
    losses = loss_dict(distiller, raw_batch())
    assert losses["loss_rm"].item() == pytest.approx(4 * distiller.raw_terms["rm"].item())
    assert not distiller.raw_terms["rm"].requires_grad


def test_the_total_is_the_detection_loss_plus_the_weighted_terms(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = distil("gfl", {"rm": term("rm", weight=4.0), "pfi": term("pfi", weight=2.0)})
    total, logged = distiller.parse_losses(loss_dict(distiller, raw_batch()))
    plain = distil("gfl")
    detection, _ = plain.parse_losses(loss_dict(plain, raw_batch()))
    raw = distiller.raw_terms
    assert total.item() == pytest.approx(detection.item() + 4 * raw["rm"].item() + 2 * raw["pfi"].item())
    assert {"loss_rm", "loss_pfi", "loss_cls", "loss_bbox", "loss_dfl", "loss"} == logged.keys()


def test_two_instances_of_a_method_are_kept_apart(
    distil: Callable[..., Distiller], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    methods = {"pfi@fine": term("pfi", levels=(8,)), "pfi@coarse": term("pfi", levels=(32,))}
    distiller = distil("gfl", methods, neck_channels=8)
    losses = loss_dict(distiller, raw_batch())
    assert losses["loss_pfi@fine"] != losses["loss_pfi@coarse"]
    fine, coarse = (distiller.terms[name].connectors[0] for name in methods)
    assert fine is not coarse
    # one level each: a 1x1 convolution from 8 to 16 channels
    assert distiller.trained_parts == {"pfi@fine": 8 * 16 + 16, "pfi@coarse": 8 * 16 + 16}


def test_connectors_are_trained_and_saved_but_not_the_students(pair: Distiller) -> None:
    assert any("connectors" in name for name in pair.state_dict())
    assert not any("connectors" in name for name in pair.student.state_dict())
    trained = {id(p) for group in build_optimiser(pair, schedule(**SCHEDULE, optimizer="sgd")).param_groups
               for p in group["params"]}  # fmt: skip
    assert all(id(parameter) in trained for parameter in pair.terms.parameters())


# --- levels ---


@pytest.mark.parametrize(
    ("student", "teacher", "match", "wanted", "expected"),
    [
        ((8, 16, 32), (8, 16, 32), "stride", None, [(0, 0), (1, 1), (2, 2)]),
        ((8, 16, 32), (4, 8, 16), "stride", None, [(0, 1), (1, 2)]),
        ((8, 16, 32), (4, 8, 16), "index", None, [(0, 0), (1, 1), (2, 2)]),
        ((8, 16, 32), (8, 16), "index", None, [(0, 0), (1, 1)]),
        ((8, 16, 32), (4, 8, 16), "stride", (16,), [(1, 2)]),
        ((8, 16), (32, 64), "stride", None, []),
    ],
)
def test_levels_meet(student: Any, teacher: Any, match: str, wanted: Any, expected: Any) -> None:
    assert matched_levels(student, teacher, match, wanted) == expected


class Shapes(Method):
    """Notes the sizes of the neck maps that it is given."""

    connector = Connector()

    def forward(self, batch: Any, student: Any, teacher: Any, assignment: Any) -> dict[str, Tensor]:
        self.seen = [[tuple(feat.shape[1:]) for feat in one.feats] for one in (student, teacher)]
        self.strides = [one.level_strides for one in (student, teacher)]
        return {"first": student.feats[0].sum(), "last": student.feats[-1].sum()}


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch, build: Callable[..., Any], term: Callable[..., Any]) -> Any:
    """A Distiller of `Shapes` over a student with strides 8 to 32 and a teacher with strides 4 to 16."""

    def shapes(connector: Connector | None, **settings: Any) -> Distiller:
        monkeypatch.setattr(Shapes, "connector", connector)
        monkeypatch.setattr("kdlab.training.distiller.method_class", lambda key: Shapes)
        teacher = build("gfl", 1, strides=(4, 8, 16))
        return Distiller(build("gfl", 0), {"it": term("it", **settings)}, teacher)

    return shapes


def test_levels_of_equal_stride_reach_the_method(shapes: Any, raw_batch: Callable[..., Any]) -> None:
    distiller = shapes(Connector())
    loss_dict(distiller, raw_batch())
    method = distiller.terms["it"].method
    assert method.strides == [(8, 16), (8, 16)]
    assert method.seen == [[(16, 8, 12), (16, 4, 6)]] * 2


@pytest.mark.parametrize("connector", [Connector(), None], ids=["connector", "none"])
def test_levels_matched_by_position_are_resized_to_the_teachers(
    shapes: Any, raw_batch: Callable[..., Any], connector: Connector | None
) -> None:
    distiller = shapes(connector, match="index")
    loss_dict(distiller, raw_batch())
    student, teacher = distiller.terms["it"].method.seen
    assert student == teacher == [(16, 16, 24), (16, 8, 12), (16, 4, 6)]


def test_several_terms_of_a_method_are_named_after_the_instance(
    shapes: Any, raw_batch: Callable[..., Any]
) -> None:
    losses = loss_dict(shapes(None), raw_batch())
    assert {"loss_it.first", "loss_it.last"} <= losses.keys()


@pytest.mark.parametrize(
    ("connector", "modules", "parameters"),
    [
        (Connector(), 3, 3 * (8 * 16 + 16)),
        (Connector(kernel=3), 3, 3 * (8 * 16 * 9 + 16)),
        (Connector(shared_over_levels=True), 1, 8 * 16 + 16),
    ],
)
def test_connector_has_the_shape_that_is_asked(connector: Connector, modules: int, parameters: int) -> None:
    made = connector.build(8, 16, levels=3)
    assert len(made) == 3
    assert len({id(module) for module in made}) == modules
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert made[0](torch.zeros(1, 8, 5, 7)).shape == (1, 16, 5, 7)


def test_connector_is_the_identity_where_channels_agree_unless_asked_always() -> None:
    assert not list(Connector().build(8, 8, levels=2).parameters())
    assert list(Connector(always=True).build(8, 8, levels=2).parameters())


def test_near_zero_connector_starts_near_zero() -> None:
    (made,) = Connector(init="near_zero").build(8, 16, levels=1)
    assert 0 < made.weight.abs().max() < 1e-3
    assert made.bias.abs().max() == 0


# --- refusals ---


def test_methods_without_a_teacher_are_refused(build: Callable[..., Any], term: Callable[..., Any]) -> None:
    with pytest.raises(JobError, match="need a teacher"):
        Distiller(build("gfl"), {"rm": term("rm")})


def test_levels_that_nobody_has_are_refused(
    distil: Callable[..., Distiller], term: Callable[..., Any]
) -> None:
    with pytest.raises(JobError, match="no level is matched"):
        distil("gfl", {"pfi": term("pfi", levels=(128,))})


# --- the batch ---


def test_batch_holds_all_objects_image_by_image(build: Callable[..., Any], raw_batch: Any) -> None:
    data = build("gfl").data_preprocessor(raw_batch(), True)
    batch = make_batch(data["data_samples"], data["inputs"], 7, 9)
    assert batch.gt_image.tolist() == [0] * 5 + [2] * 2
    assert batch.gt_labels.tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert batch.gt_boxes[-1].tolist() == [8, 8, 28, 30]
    assert batch.image_shapes.tolist() == [[64, 96], [64, 64], [40, 56]]
    assert batch.pad_shapes.tolist() == [[64, 96], [64, 64], [64, 64]]
    assert (batch.input_shape, batch.iteration, batch.max_iterations) == ((64, 96), 7, 9)
    assert batch.first_object.tolist() == [0, 5, 5]
