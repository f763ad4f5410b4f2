"""Regions of maps that methods share: the cells that a box covers, and what an image's objects make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlab.detectors.outputs import Batch, Priors

_CANONICAL_CELLS = 14  # an object's side on its own level, of which it has up to twice as many


def cells_by_centre(boxes: Tensor, stride: float) -> Tensor:
    """(G, 4) the cells whose centre lies in boxes (G, 4) in pixels; see `covered`."""
    return boxes / stride - 0.5


def cells_inside(boxes: Tensor, stride: float) -> Tensor:
    """(G, 4) from the cell of a box's first corner to before that of its last, or one; see `covered`."""
    first, end = (boxes / stride).floor().clamp(min=0).chunk(2, dim=1)
    return torch.cat([first, torch.maximum(end, first + 1)], dim=1)


def cells_around(boxes: Tensor, stride: float) -> Tensor:
    """(G, 4) from the cell of a box's first corner through the next to begin at or beyond its last."""
    first, end = (boxes / stride).chunk(2, dim=1)
    return torch.cat([first.floor(), end.ceil() + 1], dim=1)


def covered(ranges: Tensor, size: tuple[int, int]) -> Tensor:
    """The cells of each object.

    Args:
        ranges: (G, 4) left, top, right and bottom in cells, which may lie between two and outside the map;
            cells from left and top on, and before right and bottom.
        size: height and width of the map.

    Returns:
        (G, H, W) bool.
    """
    height, width = size
    left, top, right, bottom = ranges[..., None].unbind(1)
    x, y = (torch.arange(side, device=ranges.device) for side in (width, height))
    across, down = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return down[:, :, None] & across[:, None, :]


def largest_of_image(values: Tensor, batch: Batch) -> Tensor:
    """(B, ...) at each place the largest of an image's objects in `values` (G, ...) >= 0; 0 without any."""
    image = batch.gt_image.view(-1, *(1 for _ in values.shape[1:])).expand_as(values)
    empty = values.new_zeros(len(batch.image_shapes), *values.shape[1:])
    return empty.scatter_reduce(0, image, values, "amax")


def union(ranges: Tensor, size: tuple[int, int], batch: Batch, chosen: Tensor | None = None) -> Tensor:
    """(B, H, W) 1 where an object's cells are, else 0; of all objects or those `chosen` (G,)."""
    cells = covered(ranges, size)
    if chosen is not None:
        cells = cells & chosen[:, None, None]
    return largest_of_image(cells.to(ranges), batch)


def by_level(flat: Tensor, priors: Priors) -> list[Tensor]:
    """(B, H_l, W_l) of each level, from (B, P) over the cells of all."""
    levels = flat.split([height * width for height, width in priors.sizes], dim=1)
    return [level.unflatten(1, size) for level, size in zip(levels, priors.sizes, strict=True)]


def level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """(G,) int64: which of the levels is an object's own, by its size.

    A level has objects of 14 to 28 of its cells, the first one all smaller, the last one all larger. On
    strides 4, 8, 16... this is the rule of feature pyramids, floor(log2(side / 56)).

    Args:
        boxes: (G, 4) xyxy in pixels; a side is the root of (width + 1) (height + 1).
        strides: ascending.
    """
    side = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1).sqrt()
    starts = _CANONICAL_CELLS * torch.tensor(strides, device=boxes.device, dtype=boxes.dtype)
    return (torch.searchsorted(starts, side, right=True) - 1).clamp(min=0)
