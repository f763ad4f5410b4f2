"""Every served operator, through mmcv's own API, against loops that spell out its definition in float64."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from kdlab.errors import MachineError
from kdlab.mmcv_ops import operators as mmcv_ops

if not isinstance(importlib.import_module("mmcv._ext"), mmcv_ops.StandIn):
    pytest.skip("a compiled mmcv serves the operators here", allow_module_level=True)
ops = importlib.import_module("mmcv.ops")

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)
NO_WEIGHT = None


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, device: str, seed: int = 0, grad: bool = False) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.to(device).requires_grad_(grad)


def random_boxes(count: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) crowded into 40 px, so that many overlap, and distinct scores (N,)."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 30
    size = 2 + torch.rand(count, 2, dtype=torch.float64, generator=generator) * 12
    scores = torch.rand(count, dtype=torch.float64, generator=generator)
    return torch.cat((corner, corner + size), dim=1).to(device), scores.to(device)


def same(actual: Tensor, expected: np.ndarray | list) -> None:
    expected = torch.as_tensor(np.asarray(expected), dtype=actual.dtype, device=actual.device)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-9)


# --- suppression ---


def iou(a: list[float], b: list[float], offset: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    area_a, area_b = ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    return inter / (area_a + area_b - inter)


def greedy_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    places, kept = boxes.tolist(), []
    for i in sorted(range(len(places)), key=lambda i: -scores[i].item()):
        if all(iou(places[i], places[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_the_greedy_loop_keeps(device: str, offset: int) -> None:
    boxes, scores = random_boxes(60, device)
    dets, kept = ops.nms(boxes, scores, 0.4, offset=offset)
    assert kept.tolist() == greedy_nms(boxes, scores, 0.4, offset)
    torch.testing.assert_close(dets, torch.cat((boxes[kept], scores[kept, None]), dim=1))


def test_nms_offset_counts_the_last_pixel(device: str) -> None:
    # widths 2 and 2, overlap 1: IoU 1/3; with the last pixel 3 and 3, overlap 2: IoU 1/2
    boxes = torch.tensor([[0.0, 0, 2, 9], [1, 0, 3, 9]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]


def test_nms_takes_scores_of_another_dtype(device: str) -> None:
    boxes, scores = random_boxes(20, device)
    kept = ops.nms(boxes.float(), scores.half(), 0.4)[1]
    assert kept.tolist() == greedy_nms(boxes.float(), scores.half(), 0.4)


def test_nms_of_no_boxes_keeps_none(device: str) -> None:
    dets, kept = ops.nms(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5)
    assert dets.shape == (0, 5)
    assert kept.tolist() == []


def test_batched_nms_suppresses_within_a_class_only(device: str) -> None:
    boxes, scores = random_boxes(60, device, seed=1)
    labels = torch.arange(60, device=device) % 3
    _, kept = ops.batched_nms(boxes, scores, labels, {"type": "nms", "iou_threshold": 0.3})
    expected = []
    for label in range(3):
        members = (labels == label).nonzero()[:, 0]
        expected += members[greedy_nms(boxes[members], scores[members], 0.3)].tolist()
    assert kept.tolist() == sorted(expected, key=lambda i: -scores[i].item())


def soft_nms_loop(
    boxes: Tensor, scores: Tensor, threshold: float, sigma: float, floor: float, method: str, offset: int
) -> tuple[list[int], list[float]]:
    places, left, kept = boxes.tolist(), dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=lambda i: left[i])
        kept.append((best, left.pop(best)))
        for i in list(left):
            overlap = iou(places[best], places[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < floor:
                del left[i]
    return [i for i, _ in kept], [score for _, score in kept]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_decays_as_the_loop_does(device: str, method: str, offset: int) -> None:
    boxes, scores = random_boxes(40, device, seed=2)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, sigma=0.4, min_score=0.05, method=method, offset=offset)
    expected, decayed = soft_nms_loop(boxes, scores, 0.3, 0.4, 0.05, method, offset)
    assert len(expected) < 40
    assert kept.tolist() == expected
    same(dets[:, 4], decayed)
    torch.testing.assert_close(dets[:, :4].to(device), boxes[kept])


def test_soft_nms_leaves_its_input_scores_alone() -> None:
    boxes, scores = random_boxes(40, "cpu")
    before = scores.clone()
    ops.soft_nms(boxes, scores)
    assert torch.equal(scores, before)


def test_soft_nms_keeps_boxes_without_area() -> None:
    boxes = torch.tensor([[3.0, 1, 3, 1], [3, 1, 3, 1], [0, 0, 4, 4]])
    dets, kept = ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="gaussian")
    assert kept.tolist() == [0, 1, 2]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.8, 0.7]))


def test_batched_soft_nms_returns_decayed_scores(device: str) -> None:
    boxes, scores = random_boxes(30, device)
    labels = torch.zeros(30, dtype=torch.long, device=device)
    dets, _ = ops.batched_nms(boxes, scores, labels, {"type": "soft_nms", "iou_threshold": 0.3})
    same(dets[:, 4], soft_nms_loop(boxes, scores, 0.3, 0.5, 1e-3, "linear", 0)[1])


def test_nms_match_groups_each_box_with_the_one_that_suppresses_it(device: str) -> None:
    boxes, scores = random_boxes(60, device, seed=3)
    groups = ops.nms_match(torch.cat((boxes, scores[:, None]), dim=1), 0.4)
    places, left, expected = boxes.tolist(), sorted(range(60), key=lambda i: -scores[i].item()), []
    while left:
        expected.append([i for i in left if i == left[0] or iou(places[left[0]], places[i], 0) >= 0.4])
        left = [i for i in left if i not in expected[-1]]
    assert max(map(len, expected)) > 2
    assert [group.tolist() for group in groups] == expected


def test_nms_match_gives_a_box_without_area_a_group_of_its_own() -> None:
    dets = torch.tensor([[3.0, 1, 3, 1, 0.9], [0, 0, 4, 4, 0.8]])
    assert [group.tolist() for group in ops.nms_match(dets, 0.4)] == [[0], [1]]


# --- pooling ---


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Value of plane (H, W) between its cells, where cells outside are 0."""
    top, left, total = math.floor(y), math.floor(x), 0.0
    for i, j in product((top, top + 1), (left, left + 1)):
        if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
            total += (1 - abs(y - i)) * (1 - abs(x - j)) * plane[i, j]
    return total


def bilinear_clamped(plane: np.ndarray, y: float, x: float) -> float:
    """As RoIAlign samples: the border cells reach one cell outwards, beyond that it is 0."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    return bilinear(plane, min(max(y, 0), height - 1), min(max(x, 0), width - 1))


def roi_align_loop(
    feat: Tensor, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> np.ndarray:
    maps = feat.detach().cpu().numpy()
    output = np.zeros((len(rois), maps.shape[1], *size))
    for r, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (edge * scale - 0.5 * aligned for edge in box)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        rows, columns = (
            ratio or math.ceil(length / n) for length, n in ((height, size[0]), (width, size[1]))
        )
        for c, i, j in product(range(maps.shape[1]), range(size[0]), range(size[1])):
            samples = [
                bilinear_clamped(
                    maps[int(image), c],
                    y1 + height / size[0] * (i + (a + 0.5) / rows),
                    x1 + width / size[1] * (j + (b + 0.5) / columns),
                )
                for a, b in product(range(rows), range(columns))
            ]
            output[r, c, i, j] = sum(samples) / len(samples)
    return output


def rois_px(device: str) -> Tensor:
    """Image and xyxy: inside, over the border, thinner than a cell, on the other image."""
    rows = [[0, 3.0, 4.1, 19.3, 21.7], [0, -6.2, -5.1, 9.4, 30.3], [1, 7.1, 8.2, 8.4, 9.1], [1, 2, 2, 27, 18]]
    return torch.tensor(rows, dtype=torch.float64, device=device)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_averages_its_samples(device: str, ratio: int, aligned: bool) -> None:
    feat, rois = random(2, 2, 6, 7, device=device), rois_px(device)
    output = ops.roi_align(feat, rois, (3, 2), 0.25, ratio, "avg", aligned)
    same(output, roi_align_loop(feat, rois, (3, 2), 0.25, ratio, aligned))


@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, False)])
def test_roi_align_gradient(device: str, ratio: int, aligned: bool) -> None:
    feat, rois = random(2, 2, 6, 7, device=device, grad=True), rois_px(device)
    layer = ops.RoIAlign((2, 3), 0.25, ratio, aligned=aligned)
    assert gradcheck(lambda feat: layer(feat, rois), feat, nondet_tol=1e-9)


def test_roi_align_of_no_boxes_gives_no_output_and_no_gradient(device: str) -> None:
    feat = random(1, 2, 4, 4, device=device, grad=True)
    output = ops.roi_align(feat, feat.new_zeros(0, 5), 2)
    assert output.shape == (0, 2, 2, 2)
    output.sum().backward()
    assert torch.equal(feat.grad, torch.zeros_like(feat))


def test_roi_align_by_maximum_is_refused(device: str) -> None:
    with pytest.raises(MachineError, match="pool_mode='max'"):
        ops.roi_align(random(2, 2, 6, 7, device=device), rois_px(device), 2, 0.25, 0, "max", True)


def roi_pool_loop(feat: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> np.ndarray:
    maps = feat.detach().cpu().numpy()
    output = np.zeros((len(rois), maps.shape[1], *size))
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if right <= left or bottom <= top:
            continue
        for c, i, j in product(range(maps.shape[1]), range(size[0]), range(size[1])):
            start_y, end_y = (top + (bottom - top) / size[0] * k for k in (i, i + 1))
            start_x, end_x = (left + (right - left) / size[1] * k for k in (j, j + 1))
            touched = [
                maps[int(image), c, y, x]
                for y, x in product(range(maps.shape[2]), range(maps.shape[3]))
                if y + 1 > start_y and y < end_y and x + 1 > start_x and x < end_x
            ]
            output[r, c, i, j] = max(touched, default=0)
    return output


def test_roi_pool_takes_the_maximum_of_touched_cells(device: str) -> None:
    feat, rois = random(2, 2, 6, 7, device=device), rois_px(device)
    same(ops.RoIPool((3, 2), 0.25)(feat, rois), roi_pool_loop(feat, rois, (3, 2), 0.25))


def test_roi_pool_gradient(device: str) -> None:
    feat, rois = random(2, 2, 6, 7, device=device, grad=True), rois_px(device)
    assert gradcheck(lambda feat: ops.roi_pool(feat, rois, (3, 2), 0.25), feat, nondet_tol=1e-9)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([20.0, 4, 8, 9], id="inverted"),
        pytest.param([21.0, 4, 19.9, 9], id="inverted within one cell"),
        pytest.param([400.0, 400, 440, 440], id="outside the map"),
    ],
)
def test_roi_pool_of_an_empty_box_is_zero_without_gradient(device: str, box: list[float]) -> None:
    feat = random(1, 2, 6, 7, device=device, grad=True)
    output = ops.roi_pool(feat, feat.new_tensor([[0, *box]]), (3, 2), 0.25)
    output.sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert torch.equal(feat.grad, torch.zeros_like(feat))


# --- deformable convolution and attention ---

STRIDE, PADDING, DILATION, GROUPS, DEFORM_GROUPS = (2, 1), (1, 2), (1, 2), 2, 2


def deform_inputs(device: str) -> dict[str, Tensor]:
    """A 2x3 kernel over (2, 4, 5, 6): output (2, 4, 3, 6)."""
    taps = 2 * 3 * DEFORM_GROUPS
    return {
        "feat": random(2, 4, 5, 6, device=device, seed=0, grad=True),
        "offset": random(2, 2 * taps, 3, 6, device=device, seed=1, grad=True),
        "mask": random(2, taps, 3, 6, device=device, seed=2, grad=True),
        "weight": random(4, 4 // GROUPS, 2, 3, device=device, seed=3, grad=True),
        "bias": random(4, device=device, seed=4, grad=True),
    }


def deform_conv_loop(
    feat: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> np.ndarray:
    feat, offset, weight = (tensor.detach().cpu().numpy() for tensor in (feat, offset, weight))
    batch, channels = feat.shape[:2]
    filters, group_channels, kernel_h, kernel_w = weight.shape
    rows, columns = offset.shape[2:]
    output = np.zeros((batch, filters, rows, columns))
    for b, o, y, x in product(range(batch), range(filters), range(rows), range(columns)):
        output[b, o, y, x] = 0 if bias is None else bias[o].item()
        for k, i, j in product(range(group_channels), range(kernel_h), range(kernel_w)):
            c = o // (filters // GROUPS) * group_channels + k
            tap = (c // (channels // DEFORM_GROUPS) * kernel_h + i) * kernel_w + j
            at_y = y * STRIDE[0] - PADDING[0] + i * DILATION[0] + offset[b, 2 * tap, y, x]
            at_x = x * STRIDE[1] - PADDING[1] + j * DILATION[1] + offset[b, 2 * tap + 1, y, x]
            share = 1 if mask is None else mask[b, tap, y, x].item()
            output[b, o, y, x] += weight[o, k, i, j] * share * bilinear(feat[b, c], at_y, at_x)
    return output


def deform_conv(feat: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return ops.deform_conv2d(feat, offset, weight, STRIDE, PADDING, DILATION, GROUPS, DEFORM_GROUPS)


def modulated(feat: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    settings = (STRIDE, PADDING, DILATION, GROUPS, DEFORM_GROUPS)
    return ops.modulated_deform_conv2d(feat, offset, mask, weight, bias, *settings)


def test_deform_conv_samples_where_the_offset_says(device: str) -> None:
    t = deform_inputs(device)
    arguments = t["feat"], t["offset"], t["weight"]
    same(deform_conv(*arguments), deform_conv_loop(*arguments))


def test_deform_conv_gradients(device: str) -> None:
    t = deform_inputs(device)
    assert gradcheck(deform_conv, (t["feat"], t["offset"], t["weight"]), nondet_tol=1e-9, fast_mode=True)


@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv_weighs_each_tap_by_the_mask(device: str, with_bias: bool) -> None:
    t = deform_inputs(device)
    bias = t["bias"] if with_bias else None
    output = modulated(t["feat"], t["offset"], t["mask"], t["weight"], bias)
    same(output, deform_conv_loop(t["feat"], t["offset"], t["weight"], t["mask"], bias))


@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deform_conv_gradients(device: str, with_bias: bool) -> None:
    t = deform_inputs(device)
    arguments = (t["feat"], t["offset"], t["mask"], t["weight"], t["bias"] if with_bias else None)
    assert gradcheck(modulated, arguments, nondet_tol=1e-9, fast_mode=True)


def test_deform_conv_without_offset_is_a_convolution(device: str) -> None:
    feat, weight = random(4, 3, 6, 6, device=device), random(5, 3, 3, 3, device=device, seed=1)
    offset = feat.new_zeros(4, 18, 6, 6)
    expected = torch.nn.functional.conv2d(feat, weight, padding=1)
    # im2col_step 2 splits the batch in the compiled operator and must not matter
    torch.testing.assert_close(ops.deform_conv2d(feat, offset, weight, 1, 1, 1, 1, 1, False, 2), expected)


SHAPES = [(3, 4), (2, 2)]


def attention_inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value (2, 16, heads 2, C 3), locations (2, 5, 2, L 2, points 3, 2) partly off the map, weights."""
    value = random(2, 16, 2, 3, device=device, grad=True)
    locations = (random(2, 5, 2, 2, 3, 2, device=device, seed=1) * 0.4 + 0.5).requires_grad_()
    return value, locations, random(2, 5, 2, 2, 3, device=device, seed=2, grad=True)


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    function = importlib.import_module("mmcv.ops.multi_scale_deform_attn").MultiScaleDeformableAttnFunction
    shapes = torch.tensor(SHAPES, device=value.device)
    return function.apply(value, shapes, torch.tensor([0, 12], device=value.device), locations, weights, 64)


def test_deformable_attention_sums_its_samples(device: str) -> None:
    value, locations, weights = attention_inputs(device)
    maps, at, share = (tensor.detach().cpu().numpy() for tensor in (value, locations, weights))
    expected = np.zeros((2, 5, 2, 3))
    for (level, (height, width)), start in zip(enumerate(SHAPES), (0, 12), strict=True):
        planes = maps[:, start : start + height * width].reshape(2, height, width, 2, 3)
        for b, q, h, p, c in product(range(2), range(5), range(2), range(3), range(3)):
            x, y = at[b, q, h, level, p]
            sample = bilinear(planes[b, :, :, h, c], y * height - 0.5, x * width - 0.5)
            expected[b, q, h, c] += share[b, q, h, level, p] * sample
    same(attend(value, locations, weights), expected.reshape(2, 5, 6))


def test_deformable_attention_gradients(device: str) -> None:
    assert gradcheck(attend, attention_inputs(device), nondet_tol=1e-9, fast_mode=True)


# --- focal loss ---


def focal_loop(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: list[float] | None
) -> np.ndarray:
    output = np.zeros(tuple(logits.shape))
    for n, k in np.ndindex(*output.shape):
        p, label = 1 / (1 + math.exp(-logits[n, k].item())), target[n].item()
        if label == k:
            loss = -alpha * (1 - p) ** gamma * math.log(p)
        else:
            loss = -(1 - alpha) * p**gamma * math.log(1 - p)
        output[n, k] = loss * (weight[label] if weight and label < logits.shape[1] else 1)
    return output


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 3.0]])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_loss_is_its_formula(device: str, gamma: float, weight: list[float] | None) -> None:
    logits = random(4, 3, device=device)
    target = torch.tensor([0, 2, 3, 1], device=device)
    class_weight = None if weight is None else logits.new_tensor(weight)
    loss = ops.sigmoid_focal_loss(logits, target, gamma, 0.3, class_weight, "none")
    same(loss, focal_loop(logits, target, gamma, 0.3, weight))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sigmoid_focal_loss_gradient(device: str, reduction: str) -> None:
    logits = random(4, 3, device=device, grad=True)
    target, weight = torch.tensor([0, 2, 3, 1], device=device), logits.new_tensor([0.5, 2, 3])
    assert gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, 1.5, 0.3, weight, reduction), logits)


@pytest.mark.parametrize("rows", [0, 3, 4, 7])
def test_sigmoid_focal_loss_of_many_rows_is_that_of_its_parts(
    device: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, weight = torch.arange(rows, device=device) % 4, torch.tensor([0.5, 2, 3], device=device).double()

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        logits = random(rows, 3, device=device, grad=True)
        loss = ops.sigmoid_focal_loss(logits, target, 1.5, 0.3, weight, "none")
        return loss, torch.autograd.grad(loss.sum(), logits)[0]

    whole = loss_and_gradient()
    monkeypatch.setattr(mmcv_ops, "FOCAL_ROWS", 3)
    assert all(
        torch.equal(part, all_at_once) for part, all_at_once in zip(loss_and_gradient(), whole, strict=True)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_loss_stays_finite_where_the_sigmoid_saturates(device: str, gamma: float) -> None:
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], device=device, requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0], device=device), gamma, 0.25, NO_WEIGHT, "sum")
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


# --- narrow dtypes ---


def narrow_calls() -> dict[str, Callable[[Tensor], Tensor]]:
    """Operators as functions of one map (1, 2, 6, 6)."""
    roi, offset = [[0, 1.0, 1, 5, 4]], random(1, 18, 6, 6, device="cpu")
    weight, mask = random(3, 2, 3, 3, device="cpu"), random(1, 9, 6, 6, device="cpu")
    target = torch.tensor([0, 1])
    return {
        "roi_align": lambda feat: ops.roi_align(feat, feat.new_tensor(roi), 2),
        "roi_pool": lambda feat: ops.roi_pool(feat, feat.new_tensor(roi), 2),
        "deform_conv": lambda feat: ops.deform_conv2d(feat, offset.to(feat), weight, 1, 1),
        "modulated_deform_conv": lambda feat: ops.modulated_deform_conv2d(
            feat, offset.to(feat), mask, weight, None, 1, 1
        ),
        "sigmoid_focal_loss": lambda feat: ops.sigmoid_focal_loss(
            feat.reshape(2, 36), target.to(feat.device), 2.0, 0.25, NO_WEIGHT, "none"
        ),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(narrow_calls()))
def test_narrow_dtypes_are_kept_and_close_to_float32(name: str, dtype: torch.dtype) -> None:
    call, results = narrow_calls()[name], []
    start = random(1, 2, 6, 6, device="cpu").to(torch.bfloat16)
    for kind in (dtype, torch.float32):
        feat = start.to(kind).detach().requires_grad_()
        output = call(feat)
        output.sum().backward()
        assert output.dtype == feat.grad.dtype == kind
        results.append((output.detach().float(), feat.grad.float()))
    torch.testing.assert_close(results[0], results[1], rtol=0.05, atol=0.05)


# --- the module itself ---


def test_operator_that_is_not_served_says_so_when_called() -> None:
    with pytest.raises(MachineError, match="carafe_forward") as error:
        ops.carafe(torch.zeros(1, 4, 4, 4), torch.zeros(1, 9, 8, 8), 3, 1, 2)
    fault = error.value.faults[0]
    assert "roi_align_forward" in fault.known
    assert "compiled mmcv" in fault.fix


def test_served_names_compute_and_others_do_not() -> None:
    module = sys.modules["mmcv._ext"]
    assert "nms" in mmcv_ops.served()
    assert all(getattr(module, name).__name__ == name for name in mmcv_ops.served())
    assert "carafe_forward" not in mmcv_ops.served()


def test_module_has_no_path_or_file() -> None:
    module = sys.modules["mmcv._ext"]
    assert not any(hasattr(module, name) for name in ("__path__", "__file__", "__wrapped__"))


def test_mmengine_takes_the_module_for_a_compiled_mmcv() -> None:
    assert importlib.util.find_spec("mmcv._ext").name == "mmcv._ext"
    assert importlib.import_module("mmengine.utils.dl_utils").mmcv_full_available()


def forget_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmcv")
    monkeypatch.delitem(sys.modules, "mmcv._ext")


@pytest.fixture
def compiled_mmcv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_ext.py").write_text("nms = 'compiled'\n")
    forget_mmcv(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("compiled_mmcv")
def test_compiled_extension_comes_before_the_stand_in() -> None:
    assert importlib.import_module("mmcv._ext").nms == "compiled"
