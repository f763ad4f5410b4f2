"""Feature-based Knowledge Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab import catalog
from kdlab.detectors.outputs import DetectorOutputs, Facts
from kdlab.methods.base import Pair
from kdlab.methods.fbkd import FeatureBasedDistillation, LevelBlocks, NonLocal, attention, norm_loss

PARTS = ["feature", "channel", "spatial", "relation"]
LN3 = math.log(3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def maps(*rows: list[float]) -> Tensor:
    """(1, C, 1, W) from the values of each channel."""
    return torch.tensor(rows).view(1, len(rows), 1, -1)


# --- attention ---


def test_attention_is_the_mean_of_both_models_softmax_over_cells_times_their_number() -> None:
    # magnitudes ln 3 and 0 of the teacher: shares 3/4 and 1/4; of the student's equal ones 1/2
    teacher = maps([LN3, 0.0], [-LN3, 0.0])
    mask = attention(maps([1.0, -1.0]), teacher, temperature=1.0)
    assert torch.allclose(mask, maps([1.25, 0.75]))


def test_temperature_sharpens_attention() -> None:
    # ln 3 / 0.5: shares 9/10 and 1/10
    mask = attention(maps([0.0, 0.0]), maps([LN3, 0.0]), temperature=0.5)
    assert torch.allclose(mask, maps([1.4, 0.6]))


def test_attention_carries_no_gradient() -> None:
    feats = [random(1, 2, 2, 2, seed=seed).requires_grad_() for seed in (0, 1)]
    assert not attention(*feats, temperature=0.5).requires_grad


# --- norms ---


def test_norms_are_averaged_over_images() -> None:
    # of (3, 4) and (0, 1)
    assert norm_loss(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]]), whole_batch=False).item() == 3


def test_a_norm_over_the_batch_grows_with_its_square_root() -> None:
    images = torch.tensor([[3.0, 4.0]]).repeat(4, 1)
    assert norm_loss(images, whole_batch=True).item() == 10
    assert norm_loss(images, whole_batch=False).item() == 5


def test_both_norms_are_equal_for_one_image() -> None:
    image = random(1, 3, 4, 5)
    assert norm_loss(image, whole_batch=True) == norm_loss(image, whole_batch=False) > 0


@pytest.mark.parametrize("whole_batch", [False, True])
def test_a_difference_of_zero_has_a_gradient_of_zero(whole_batch: bool) -> None:
    difference = torch.zeros(2, 3, requires_grad=True)
    loss = norm_loss(difference, whole_batch)
    loss.backward()
    assert loss.item() == 0
    assert difference.grad.tolist() == [[0, 0, 0]] * 2


# --- non-local blocks ---


def block(channels: int, reduction: int, pool: int, weights: float = 1.0) -> NonLocal:
    """Every convolution of one weight and without bias."""
    made = NonLocal(channels, reduction, pool)
    for parameter in made.parameters():
        nn.init.constant_(parameter, weights if parameter.dim() > 1 else 0)
    return made


def test_a_block_starts_as_the_identity() -> None:
    feat = random(2, 4, 5, 6)
    assert torch.equal(NonLocal(4, 2, 2)(feat), feat)


def test_a_cell_gathers_all_pooled_cells_by_dot_product() -> None:
    # pooled by 2: 3 and 5; mean of key times value (9 + 25) / 2 = 17, times each cell's query
    feat = maps([1.0, 3.0, 5.0, 2.0]).repeat(1, 1, 2, 1)
    expected = torch.tensor([1 + 17.0, 3 + 51, 5 + 85, 2 + 34])
    assert block(1, 1, 2)(feat)[0, 0, 0].tolist() == expected.tolist()


def test_the_short_way_equals_the_product_of_all_cells_by_all_cells() -> None:
    made, feat = NonLocal(4, 2, 2), random(2, 4, 4, 6)
    nn.init.normal_(made.out.weight, generator=torch.Generator().manual_seed(1))
    query = made.query(feat).flatten(2)
    key, value = (nn.functional.max_pool2d(conv(feat), 2).flatten(2) for conv in (made.key, made.value))
    weights = torch.einsum("bcp,bcq->bpq", query, key) / key.shape[-1]
    gathered = torch.einsum("bpq,bcq->bcp", weights, value).view(2, 2, 4, 6)
    assert torch.allclose(made(feat), feat + made.out(gathered), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_maps_smaller_than_the_pooling_are_pooled_as_a_whole(size: tuple[int, int]) -> None:
    feat = random(1, 1, *size)
    related = block(1, 1, 8)(feat)
    # one key and value: the largest cell
    assert torch.allclose(related, feat + feat * feat.max() ** 2)


@pytest.mark.parametrize(("level", "inner", "pool"), [(0, 4, 8), (1, 4, 4), (2, 8, 2), (3, 8, 2), (4, 8, 2)])
def test_fine_levels_are_reduced_and_pooled_more(level: int, inner: int, pool: int) -> None:
    made = LevelBlocks(16, 16, level).relation_teacher
    assert (made.query.out_channels, made.pool) == (inner, pool)


# --- the method, on one level ---


def facts(channels: int) -> Facts:
    return Facts("retinanet", ("feats",), 3, (8,), channels, "head")


def method(channels_student: int = 1, channels_teacher: int = 1, **options: Any) -> FeatureBasedDistillation:
    return FeatureBasedDistillation(
        Pair(facts(channels_student), facts(channels_teacher), ((0, 0),)), **options
    )


def passing(made: FeatureBasedDistillation) -> FeatureBasedDistillation:
    """Adaptations that let everything through as it is."""
    for blocks in made.blocks:
        for conv in (blocks.feature, blocks.relation, blocks.spatial):
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.eye_(blocks.channel.weight)
        nn.init.zeros_(blocks.channel.bias)
    return made


def losses_of(made: FeatureBasedDistillation, student: Tensor, teacher: Tensor) -> dict[str, float]:
    outputs = [DetectorOutputs(None, [feat], [feat], (0,)) for feat in (student, teacher)]
    return {name: loss.item() for name, loss in made(None, *outputs, None).items()}


FACTORS_OF_ONE = dict.fromkeys(PARTS, 1.0)


def test_parts_are_the_norms_of_their_differences() -> None:
    # equal magnitudes: attention 1 everywhere; differences 6 and 8 of cells, their mean 7
    student, teacher = maps([3.0, 4.0]), maps([-3.0, -4.0])
    made = passing(method(temperature=1e9, **FACTORS_OF_ONE))
    assert losses_of(made, student, teacher) == pytest.approx(
        {"feature": 10, "channel": 7, "spatial": 10, "relation": 10}
    )


def test_features_count_by_the_root_of_their_attention() -> None:
    # of the teacher's shares 3/4, 1/4 and the student's halves: 1.25 and 0.75, at differences ln 3 and 0
    made = passing(method(temperature=1.0, **FACTORS_OF_ONE))
    losses = losses_of(made, maps([0.0, 0.0]), maps([LN3, 0.0]))
    assert losses["feature"] == pytest.approx(math.sqrt(1.25) * LN3)
    assert losses["relation"] == pytest.approx(LN3)


def test_parts_carry_their_factors() -> None:
    feats = random(2, 2, 3, 4), random(2, 3, 3, 4, seed=1)
    made = method(2, 3)
    default = losses_of(made, *feats)
    made.factors = FACTORS_OF_ONE
    factors = {"feature": 4e-4, "channel": 2e-2, "spatial": 2e-2, "relation": 4e-4}
    raw = losses_of(made, *feats)
    assert default == pytest.approx({part: factors[part] * raw[part] for part in PARTS})


def test_two_stage_students_have_factors_of_their_own() -> None:
    options = catalog.methods()["fbkd"].serving("faster_rcnn").options
    assert [options[part].default for part in PARTS] == [7e-5, 4e-3, 4e-3, 7e-5]


def test_parity_grows_with_the_batch() -> None:
    feats = random(1, 1, 3, 4), random(1, 1, 3, 4, seed=1)
    four = [feat.repeat(4, 1, 1, 1) for feat in feats]
    for parity, growth in ((False, 1), (True, 2)):
        made = passing(method(parity=parity))
        once = losses_of(made, *feats)
        assert losses_of(made, *four) == pytest.approx({part: growth * once[part] for part in PARTS})


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_equal_models_cost_nothing_once_adaptations_let_through(
    distil: Callable[..., Any], build: Callable[..., Any], term: Callable[..., Any],
    raw_batch: Callable[..., Any], detector: str,
) -> None:  # fmt: skip
    distiller = distil(detector, {"fbkd": term("fbkd")}, teacher=build(detector, 0)).eval()
    for head in ("bbox_head", "rpn_head", "roi_head"):
        if hasattr(distiller.student, head):
            getattr(distiller.student, head).train()
    passing(distiller.terms["fbkd"].method)
    distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    costs = [distiller.raw_terms[f"fbkd.{part}"].item() for part in PARTS]
    assert costs == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_every_block_of_the_matched_levels_is_trained_and_no_gradient_reaches_the_teacher() -> None:
    made = method(2, 3)
    for blocks in made.blocks:
        # zeros at the start would keep the gradient from what stands before
        nn.init.ones_(blocks.relation_student.out.weight)
        nn.init.ones_(blocks.relation_teacher.out.weight)
    feats = [random(2, channels, 8, 8, seed=channels).requires_grad_() for channels in (2, 3)]
    outputs = [DetectorOutputs(None, [feat], [feat], (0,)) for feat in feats]
    torch.stack(list(made(None, *outputs, None).values())).sum().backward()
    assert feats[0].grad is not None
    assert feats[1].grad is None
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
