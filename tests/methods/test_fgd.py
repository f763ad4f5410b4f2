"""Focal and Global Distillation against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch, DetectorOutputs
from kdlab.methods.fgd import (
    ContextBlock,
    FocalAndGlobalDistillation,
    attended_difference,
    attention_loss,
    focal_weights,
)
from kdlab.training.distiller import Distiller

LN3 = math.log(3)


def batch_of(boxes: list[list[float]], image: list[int] | None = None, images: int = 1) -> Batch:
    shapes = torch.tensor([[16, 32]] * images)
    return Batch(
        torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long),
        torch.tensor(image or [0] * len(boxes), dtype=torch.long), shapes, shapes, (16, 32),
    )  # fmt: skip


# --- the weights of cells, on a map of 2 x 4 cells of stride 8 ---


def test_a_cell_counts_by_the_smallest_object_that_covers_it() -> None:
    # (8, 0, 16, 0) covers column 1 through 2 of row 0: 2 cells; (0, 0, 23, 7) columns 0 through 3 of both: 8
    foreground, background = focal_weights(batch_of([[8, 0, 16, 0], [0, 0, 23, 7]]), 8, (2, 4))
    assert foreground[0].tolist() == [[1 / 8, 1 / 2, 1 / 2, 1 / 8], [1 / 8] * 4]
    assert background.sum() == 0


def test_rows_are_rows_also_of_a_flat_object() -> None:
    # an early version of the authors' code swapped them
    foreground, background = focal_weights(batch_of([[0, 0, 16, 0]]), 8, (2, 4))
    assert foreground.flatten().tolist() == pytest.approx([1 / 3] * 3 + [0] * 5)
    assert background.flatten().tolist() == pytest.approx([0] * 3 + [1 / 5] * 5)


def test_cells_beyond_the_map_count_for_an_objects_size() -> None:
    # columns 3 through 5, of which the map has one
    foreground, _ = focal_weights(batch_of([[24, 0, 40, 0]]), 8, (2, 4))
    assert foreground[0, 0].tolist() == pytest.approx([0, 0, 0, 1 / 3])


def test_an_image_without_objects_is_background_alone() -> None:
    foreground, background = focal_weights(batch_of([[0, 0, 8, 8]], [1], images=2), 8, (2, 4))
    assert foreground[0].sum() == 0
    assert background[0].tolist() == [[1 / 8] * 4] * 2


def test_objects_are_found_by_the_stride_in_an_image_smaller_than_the_batch() -> None:
    batch = batch_of([[0, 0, 8, 0]])
    small = Batch(batch.gt_boxes, batch.gt_labels, batch.gt_image, torch.tensor([[8, 8]]),
                  batch.pad_shapes, batch.input_shape)  # fmt: skip
    # the reference stretches the box over the whole map
    assert focal_weights(small, 8, (2, 4))[0][0, 0].tolist() == [1 / 2, 1 / 2, 0, 0]


# --- attention: one image of 1 x 2 cells, two channels ---

# mean magnitudes ln 3 and 0 over places, ln 3 and 0 over channels: both attentions are 3/2 and 1/2
TEACHER = torch.tensor([[[[2 * LN3, 0.0]], [[0.0, 0.0]]]])


def test_difference_is_weighed_by_both_attentions_of_the_teacher() -> None:
    # errors 1 and 4 at the first cell, 0 and 9 at the second
    student = TEACHER + torch.tensor([[[[1.0, 0.0]], [[2.0, 3.0]]]])
    expected = [1.5 * (1.5 * 1 + 0.5 * 4), 0.5 * (0.5 * 9)]
    assert attended_difference(student, TEACHER, 1.0).flatten().tolist() == pytest.approx(expected)


def test_attentions_cost_their_absolute_difference() -> None:
    # an even student: 1 everywhere, so 1/2 at each of two places and two channels
    assert attention_loss(torch.zeros_like(TEACHER), TEACHER, 1.0).item() == pytest.approx(2)
    assert attention_loss(-TEACHER, TEACHER, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_attentions_cost_the_mean_over_images() -> None:
    student = torch.cat([torch.zeros_like(TEACHER), TEACHER])
    assert attention_loss(student, TEACHER.repeat(2, 1, 1, 1), 1.0).item() == pytest.approx(1)


def test_no_gradient_reaches_the_teacher() -> None:
    feats = [feat.clone().requires_grad_() for feat in (TEACHER + 1, TEACHER)]
    (attention_loss(*feats, 0.5) + attended_difference(*feats, 0.5).sum()).backward()
    assert feats[0].grad is not None
    assert feats[1].grad is None


# --- the context ---


def test_a_block_begins_as_the_identity() -> None:
    feat = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ContextBlock(4)(feat), feat)


def test_a_block_adds_one_vector_to_all_cells_of_an_image() -> None:
    block = ContextBlock(4)
    torch.nn.init.normal_(block.transform[-1].weight, generator=torch.Generator().manual_seed(0))
    feat = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    added = block(feat) - feat
    assert torch.allclose(added, added.mean((2, 3), keepdim=True).expand_as(added), atol=1e-6)
    assert added[0].abs().sum() > 0


def test_a_block_gathers_where_its_attention_points() -> None:
    block = ContextBlock(2)
    torch.nn.init.zeros_(block.attention.weight)
    seen: list[Tensor] = []
    block.transform.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(torch.tensor([[[[1.0, 3.0]], [[5.0, 7.0]]]]))
    # even attention: the mean over cells
    assert seen[0].flatten().tolist() == pytest.approx([2, 6])


# --- the method: one level of stride 8 with 1 x 2 cells, two channels ---


def outputs(feats: list[Tensor], levels: tuple[int, ...] = (0,)) -> DetectorOutputs:
    adapter: Any = SimpleNamespace(facts=SimpleNamespace(strides=(8, 16)))
    return DetectorOutputs(adapter, feats, feats, levels)


def method_of(**options: Any) -> Any:
    return on_levels((0,), **options)


def on_levels(levels: tuple[int, ...], **options: Any) -> Any:
    pair: Any = SimpleNamespace(
        levels=[(level, level) for level in levels], teacher=SimpleNamespace(channels=2)
    )
    return FocalAndGlobalDistillation(pair, **options)


ONES = {"foreground": 1.0, "background": 1.0, "attention": 1.0, "relation": 1.0, "temperature": 1.0}


def losses_of(student: Tensor, teacher: Tensor, batch: Batch, **options: Any) -> dict[str, float]:
    found = method_of(**options)(batch, outputs([student]), outputs([teacher]), None)
    return {name: loss.item() for name, loss in found.items()}


def test_parts_are_summed_over_cells_with_their_factors() -> None:
    # the object has the first cell and, by its right side, the one after
    student = TEACHER + torch.tensor([[[[1.0, 0.0]], [[2.0, 3.0]]]])
    found = losses_of(student, TEACHER, batch_of([[0, 0, 8, 0]]), **ONES)
    assert found["foreground"] == pytest.approx((1.5 * 3.5 + 0.5 * 4.5) / 2)
    assert found["background"] == 0
    # fresh blocks add nothing: the plain sum of squares
    assert found["relation"] == pytest.approx(1 + 4 + 9)
    nothing = losses_of(student, TEACHER, batch_of([]), **ONES)
    assert nothing["foreground"] == 0
    assert nothing["background"] == pytest.approx((1.5 * 3.5 + 0.5 * 4.5) / 2)


@pytest.mark.parametrize("name", ["foreground", "background", "attention", "relation"])
def test_each_factor_multiplies_its_part(name: str) -> None:
    student, batch = torch.ones_like(TEACHER), batch_of([[0, 0, 0, 0]])
    once = losses_of(student, TEACHER, batch, **ONES)
    found = losses_of(student, TEACHER, batch, **ONES | {name: 3.0})
    assert once[name] > 0
    assert found == pytest.approx(once | {name: 3 * once[name]})


def test_levels_are_summed_and_each_has_its_own_blocks() -> None:
    method, batch = on_levels((0, 1), **ONES), batch_of([[0, 0, 8, 0]])
    student, teacher = [torch.ones_like(TEACHER)] * 2, [TEACHER] * 2
    one = method_of(**ONES)(batch, outputs(student[:1]), outputs(teacher[:1]), None)
    other = on_levels((1,), **ONES)(batch, outputs(student[:1], (1,)), outputs(teacher[:1], (1,)), None)
    both = method(batch, outputs(student, (0, 1)), outputs(teacher, (0, 1)), None)
    assert all(both[name] == one[name] + other[name] for name in both)
    blocks = [*method.blocks_student, *method.blocks_teacher]
    assert len({id(block) for block in blocks}) == 4


def test_the_teachers_block_is_trained_and_the_teacher_is_not(
    build: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    distiller = Distiller(build("fcos"), {"fgd": term("fgd")}, build("fcos", 99)).train()
    losses = distiller(**distiller.data_preprocessor(raw_batch(), True), mode="loss")
    losses["loss_fgd.relation"].backward()
    method = distiller.terms["fgd"].method
    for block in (*method.blocks_student, *method.blocks_teacher):
        assert block.transform[-1].bias.grad.abs().sum() > 0
    assert all(parameter.grad is None for model in distiller._teacher for parameter in model.parameters())
