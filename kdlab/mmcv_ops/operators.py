"""The compiled part of mmcv, served by torch's and torchvision's operators.

mmcv's compiled module `mmcv._ext` has no wheel for current torch, and mmdet imports `mmcv.ops` at once, which
asks for every operator by name. Where no compiled one is found, `kdlab.mmcv_ops` puts a `StandIn` in its
place: the operators that detectors call most compute here, all others say on their first call that they are
missing.

The operators keep the calling convention of `mmcv/ops/*.py` (2.1): tensors by position, among them scratch
buffers that have no use here, settings by name, results written into tensors that mmcv allocated. Half and
bfloat16 are computed in float32 and written back in the caller's dtype. Most gradients come from running the
differentiable operator again, which costs one more forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from kdlab.errors import MachineError

Operator = TypeVar("Operator", bound=Callable[..., Any])

_NAME = "mmcv._ext"
_SERVED: dict[str, Callable[..., Any]] = {}
_FIX = "install a compiled mmcv that matches torch, or choose a detector that does not use it"
FOCAL_ROWS = 1 << 17  # at once: ten tensors of 80 classes are 0.4 GB then, where a batch of COCO has 8


def served() -> tuple[str, ...]:
    """Names of the operators that compute here, sorted."""
    return tuple(sorted(_SERVED))


def _serve(operator: Operator) -> Operator:
    _SERVED[operator.__name__] = operator
    return operator


class StandIn(ModuleType):
    """`mmcv._ext`: the served operators, and a refusal under any other name."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "mmcv's compiled operators, served by torchvision.")
        vars(self).update(_SERVED)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")

        def refuse(*_args: object, **_kwargs: object) -> NoReturn:
            raise _missing(f"the mmcv operator {name}")

        return refuse


def _missing(what: str) -> MachineError:
    known = "served by torchvision are " + ", ".join(served())
    return MachineError(f"{what} needs mmcv's compiled part", where=_NAME, known=known, fix=_FIX)


def _wide(tensor: Tensor) -> Tensor:
    """float64 stays, anything narrower becomes float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _backward(
    targets: Sequence[Tensor],
    operator: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_output: Tensor,
) -> None:
    """Fill targets with the gradients of `operator(*inputs)` for each of `inputs`."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = operator(*leaves)
    grads = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
    for target, grad in zip(targets, grads, strict=True):
        target.copy_(grad)


def _half_open(boxes: Tensor, offset: int) -> Tensor:
    """Boxes (N, 4) xyxy of width x2 - x1, out of boxes of width x2 - x1 + offset."""
    return torch.cat((boxes[:, :2], boxes[:, 2:4] + offset), dim=1)


def _overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """IoU (N,) of one box (4,) with boxes (N, 4); 0 where both areas are 0."""
    return torchvision.ops.box_iou(box[None], boxes)[0].nan_to_num(0.0)


@_serve
def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices (M,) int64 of the kept boxes (N, 4), by falling score (N,); suppressed is IoU > threshold."""
    # mmcv takes boxes and scores of different dtypes, as autocast makes them
    dtype = torch.promote_types(_wide(boxes).dtype, scores.dtype)
    return torchvision.ops.nms(_half_open(boxes.to(dtype), offset), scores.to(dtype), iou_threshold)


@_serve
def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor,
    *, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int,
) -> Tensor:  # fmt: skip
    """Indices (M,) int64 of the boxes (N, 4) that soft-NMS keeps, by falling decayed score.

    As in mmcv the best box is kept whatever its score; others leave once their score is below `min_score`.
    Overlapping boxes lose all of their score with method 0, the share of their IoU with 1, and with 2 every
    box decays by a Gaussian of its IoU.
    The first M rows of dets (N, 5) are filled with the kept boxes and their decayed scores.
    """
    areas, scores = _half_open(_wide(boxes), offset), _wide(scores).clone()
    rest = torch.arange(len(boxes), device=boxes.device)
    kept: list[int] = []
    while len(rest):
        best = int(rest[scores[rest].argmax()])
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        rest = rest[rest != best]
        iou = _overlaps(areas[best], areas[rest])
        if method == 2:
            scores[rest] *= torch.exp(-(iou**2) / sigma)
        else:
            scores[rest] *= (method * (1 - iou)).where(iou >= iou_threshold, 1.0)
        rest = rest[scores[rest] >= min_score]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


@_serve
def nms_match(dets: Tensor, *, iou_threshold: float) -> list[list[int]]:
    """Groups of indices into dets (N, 5), by falling score: a kept box, then those that it suppresses."""
    boxes = _wide(dets[:, :4])
    rest = dets[:, 4].argsort(descending=True, stable=True)
    groups: list[list[int]] = []
    while len(rest):
        hit = _overlaps(boxes[rest[0]], boxes[rest]) >= iou_threshold
        hit[0] = True
        groups.append(rest[hit].tolist())
        rest = rest[~hit]
    return groups


def _roi_align(
    feat: Tensor, rois: Tensor, *, aligned_height: int, aligned_width: int, pool_mode: int, **sampling: Any
) -> Tensor:
    if pool_mode == 0:
        raise _missing("roi_align with pool_mode='max'")
    feat, size = _wide(feat), (aligned_height, aligned_width)
    return torchvision.ops.roi_align(feat, rois.to(feat), size, **sampling)


@_serve
def roi_align_forward(*tensors: Tensor, **pooling: Any) -> None:
    """RoIAlign of feat (B, C, H, W) at rois (R, 5) of image, xyxy into output (R, C, h, w); averages only."""
    feat, rois, output, _argmax_y, _argmax_x = tensors
    output.copy_(_roi_align(feat, rois, **pooling))


@_serve
def roi_align_backward(*tensors: Tensor, **pooling: Any) -> None:
    """Fill grad_feat (B, C, H, W); the operator is linear in feat, so any feat does."""
    grad_output, rois, _argmax_y, _argmax_x, grad_feat = tensors
    _backward([grad_feat], lambda feat: _roi_align(feat, rois, **pooling), [grad_feat], grad_output)


def _bins(start: Tensor, end: Tensor, count: int, limit: int) -> list[list[tuple[int, int]]]:
    """First cell and the one behind the last of each of `count` bins between start (R,) and end (R,)."""
    edge = torch.arange(count, dtype=start.dtype, device=start.device)
    step = (end - start)[:, None] / count
    low = (edge * step + start[:, None]).floor()
    high = ((edge + 1) * step + start[:, None]).ceil().where(step > 0, low)
    pairs = torch.stack((low, high), dim=-1).clamp(0, limit).long()
    return [[(first, behind) for first, behind in row] for row in pairs.tolist()]


@_serve
def roi_pool_forward(*tensors: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float) -> None:
    """RoIPool of feat (B, C, H, W) at rois (R, 5) of image, xyxy.

    Fills output (R, C, h, w) with the maximum over every cell that a bin touches, 0 where it touches none,
    and argmax with its place y * W + x, -1 where there is none. Computed here because torchvision rounds the
    box to cells first; mmcv does not, and counts x2 and y2 in.
    """
    feat, rois, output, argmax = tensors
    height, width = feat.shape[-2:]
    start, end = _wide(rois[:, 1:3]) * spatial_scale, _wide(rois[:, 3:5] + 1) * spatial_scale
    columns = _bins(start[:, 0], end[:, 0], pooled_width, width)
    rows = _bins(start[:, 1], end[:, 1], pooled_height, height)
    output.zero_()
    argmax.fill_(-1)
    for roi, image in enumerate(rois[:, 0].long().tolist()):
        for i, j in product(range(pooled_height), range(pooled_width)):
            (top, bottom), (left, right) = rows[roi][i], columns[roi][j]
            if top < bottom and left < right:
                cells = feat[image, :, top:bottom, left:right].flatten(1)
                output[roi, :, i, j], place = cells.max(dim=1)
                y, x = place // (right - left) + top, place % (right - left) + left
                argmax[roi, :, i, j] = y * width + x


@_serve
def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **_pooling: Any
) -> None:
    """Add grad_output (R, C, h, w) to grad_input (B, C, H, W) at the places of argmax."""
    place = argmax.flatten(2).long()
    image = rois[:, 0, None, None].long()
    channel = torch.arange(grad_input.shape[1], device=rois.device)[:, None]
    values = grad_output.flatten(2).masked_fill(place < 0, 0)
    cells = grad_input.view(*grad_input.shape[:2], -1)
    cells.index_put_((image, channel, place.clamp(min=0)), values, accumulate=True)


def _deform_conv(
    feat: Tensor, weight: Tensor, offset: Tensor, *mask_and_bias: Tensor, **geometry: int
) -> Tensor:
    """Deformable convolution; groups and offset groups follow from the shapes of weight and offset."""
    if "dW" in geometry:
        names = ("dH", "dW"), ("padH", "padW"), ("dilationH", "dilationW")
    else:
        names = ("stride_h", "stride_w"), ("pad_h", "pad_w"), ("dilation_h", "dilation_w")
    stride, padding, dilation = ((geometry[y], geometry[x]) for y, x in names)
    mask, bias, *_ = (*map(_wide, mask_and_bias), None, None)
    return torchvision.ops.deform_conv2d(
        _wide(feat), _wide(offset), _wide(weight), bias, stride, padding, dilation, mask
    )


@_serve
def deform_conv_forward(*tensors: Tensor, **geometry: int) -> None:
    """DCN v1 of feat (B, C, H, W) into output (B, O, h, w).

    The weight is (O, C / groups, kh, kw); the offset (B, deform_groups * kh * kw * 2, h, w), in cells, holds
    y and x of each tap, row by row.
    """
    feat, weight, offset, output, _columns, _ones = tensors
    output.copy_(_deform_conv(feat, weight, offset, **geometry))


@_serve
def deform_conv_backward_input(*tensors: Tensor, **geometry: int) -> None:
    """Fill grad_feat and grad_offset of DCN v1."""
    feat, offset, grad_output, grad_feat, grad_offset, weight, _columns = tensors
    targets, inputs = [grad_feat, grad_offset], [feat, offset]
    _backward(targets, lambda f, o: _deform_conv(f, weight, o, **geometry), inputs, grad_output)


@_serve
def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **geometry: int) -> None:
    """Fill grad_weight of DCN v1, times `scale`; the operator is linear in the weight, so any weight does."""
    feat, offset, grad_output, grad_weight, _columns, _ones = tensors
    grad_output, filled = grad_output * scale, [grad_weight]
    _backward(filled, lambda w: _deform_conv(feat, w, offset, **geometry), filled, grad_output)


@_serve
def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **geometry: int) -> None:
    """DCN v2: as v1, each tap times mask (B, deform_groups * kh * kw, h, w), plus bias (O,) if with_bias."""
    feat, weight, bias, _ones, offset, mask, output, _columns = tensors
    mask_and_bias = [mask, bias] if with_bias else [mask]
    output.copy_(_deform_conv(feat, weight, offset, *mask_and_bias, **geometry))


@_serve
def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **geometry: int) -> None:
    """Fill the gradients of DCN v2, that of the bias only if `with_bias`."""
    feat, weight, bias, _ones, offset, mask, _columns, *grads, grad_output = tensors
    grad_feat, grad_weight, grad_bias, grad_offset, grad_mask = grads
    inputs, targets = [feat, weight, offset, mask], [grad_feat, grad_weight, grad_offset, grad_mask]
    if with_bias:
        inputs, targets = [*inputs, bias], [*targets, grad_bias]
    _backward(targets, lambda *t: _deform_conv(*t, **geometry), inputs, grad_output)


def _ms_deform_attn(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # mmcv.ops asks for this module while it is imported
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # one wait for a GPU, in place of two a level
    return multi_scale_deformable_attn_pytorch(
        _wide(value), shapes.tolist(), _wide(locations), _wide(weights)
    )


@_serve
def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, _starts: Tensor, locations: Tensor, weights: Tensor, *, im2col_step: int
) -> Tensor:
    """Multi-scale deformable attention (B, Q, heads * C), by mmcv's own formula for the CPU.

    Args:
        value: (B, sum of H_l * W_l, heads, C).
        shapes: (L, 2) int64, H_l and W_l.
        locations: (B, Q, heads, L, points, 2), x and y, 0 to 1 over the map.
        weights: (B, Q, heads, L, points).
    """
    return _ms_deform_attn(value, shapes, locations, weights).to(value.dtype)


@_serve
def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    """Fill the gradients of value, locations and weights of multi-scale deformable attention."""
    value, shapes, _starts, locations, weights, grad_output, *targets = tensors
    inputs = [value, locations, weights]
    _backward(targets, lambda v, at, w: _ms_deform_attn(v, shapes, at, w), inputs, grad_output)


def _focal_terms(
    logits: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sign of each (N, K) logit in favour of its target, logit in that sign, and factor of its loss."""
    classes = logits.shape[1]
    logits = _wide(logits)
    hit = (target[:, None] == torch.arange(classes, device=target.device)).to(logits)
    sign, factor = 2 * hit - 1, alpha * hit + (1 - alpha) * (1 - hit)
    if weight.numel():
        # mmcv looks the weight up at the row's target, which reads past the end for background
        foreground = (target >= 0) & (target < classes)
        factor = factor * weight[target.clamp(0, classes - 1)].where(foreground, 1)[:, None]
    return sign, sign * logits, factor


@_serve
def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Focal loss of logits (N, K), unreduced, into output (N, K).

    A target (N,) outside 0 to K - 1 is background. The weight is empty, or (K,) and looked up at the row's
    target; background rows weigh 1.
    """
    for rows, targets, out in zip(*(t.split(FOCAL_ROWS) for t in (logits, target, output)), strict=True):
        _, margin, factor = _focal_terms(rows, targets, weight, alpha)
        out.copy_(-factor * torch.sigmoid(-margin) ** gamma * F.logsigmoid(margin))


@_serve
def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Fill grad_input (N, K), in closed form: autograd of a power gives NaN where it saturates."""
    for rows, targets, out in zip(*(t.split(FOCAL_ROWS) for t in (logits, target, grad_input)), strict=True):
        sign, margin, factor = _focal_terms(rows, targets, weight, alpha)
        p, rest = torch.sigmoid(margin), torch.sigmoid(-margin)
        out.copy_(sign * factor * rest**gamma * (gamma * p * F.logsigmoid(margin) - rest))
