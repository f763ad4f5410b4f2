"""What methods on a DETR's queries share: how far two models' are apart, and which belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kdlab.detectors.queries import Queries

L1, GIOU = 5.0, 2.0
"""Factors of both distances of boxes beside that of classes, as in DETR."""
_WORST = 1e6


def pair_costs(student: Queries, teacher: Queries) -> Tensor:
    """How far each of the student's queries is from each of the teacher's.

    Args:
        student: of L layers and Q queries.
        teacher: of as many layers and T queries.

    Returns:
        (L, B, Q, T), without gradient: binary cross-entropy with the teacher's probabilities, summed over
        classes, + 5 L1 of centre and size in fractions of the image - 2 GIoU.

    Source: Chang et al., ICCV 2023, arXiv:2211.10156, code.  Differs: none known.
    """
    with torch.no_grad():
        logits, target = student.logits, teacher.logits.sigmoid()
        classes = -(F.logsigmoid(logits) @ target.mT + F.logsigmoid(-logits) @ (1 - target).mT)
        apart = torch.cdist(student.boxes, teacher.boxes, p=1)
        corners = (bbox_cxcywh_to_xyxy(one.boxes).flatten(0, 1) for one in (student, teacher))
        overlap = bbox_overlaps(*corners, mode="giou").unflatten(0, apart.shape[:2])
        return classes + L1 * apart - GIOU * overlap


def matched(costs: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of least cost in all, no query in two of them; one transfer, and scipy on the host.

    Args:
        costs: (L, B, Q, T).

    Returns:
        (L, B, M) int64 places among Q and among T, M the smaller of both.
    """
    # of a teacher that says no numbers the loss will be none, and the training names it
    rows = costs.nan_to_num(_WORST, _WORST, -_WORST).flatten(0, 1).cpu().numpy()
    pairs = torch.stack([torch.stack([*map(torch.from_numpy, linear_sum_assignment(row))]) for row in rows])
    first, second = pairs.to(costs.device).unflatten(0, costs.shape[:2]).unbind(2)
    return first, second


def query_losses(student: Queries, teacher: Queries) -> Tensor:
    """How far each of the student's queries is from the teacher's query of the same place.

    Args:
        student: of L layers and Q queries.
        teacher: of as many; no gradient flows here.

    Returns:
        (L, B, Q): binary cross-entropy with the teacher's probabilities, summed over classes, + 5 L1
        + 2 (1 - GIoU).
    """
    target, boxes = teacher.logits.detach().sigmoid(), teacher.boxes.detach()
    classes = F.binary_cross_entropy_with_logits(student.logits, target, reduction="none").sum(-1)
    apart = (student.boxes - boxes).abs().sum(-1)
    corners = (bbox_cxcywh_to_xyxy(one) for one in (student.boxes, boxes))
    overlap = bbox_overlaps(*corners, mode="giou", is_aligned=True)
    return classes + L1 * apart + GIOU * (1 - overlap)


def taken(queries: Queries, place: Tensor) -> Queries:
    """The queries at places (L, B, M) of each layer and image."""
    parts = (queries.logits, queries.boxes, queries.states)
    return Queries(*(torch.take_along_dim(part, place[..., None], dim=2) for part in parts))
