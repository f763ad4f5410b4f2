"""What losses on rows of class logits share: standardised rows, their order, weights by disagreement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-7


def without_spread(rows: Tensor) -> Tensor:
    """(P, 1) whether the numbers of a row (P, K >= 1) are equal, as those of half precision often are."""
    rows = rows.detach()
    return rows.amax(1, keepdim=True) == rows.amin(1, keepdim=True)


def standardised(logits: Tensor) -> Tensor:
    """Rows of mean 0 and standard deviation 1, so that their relation counts and not their scale.

    Args:
        logits: (P, K), of either model; gradient flows through mean and deviation too.

    Returns:
        (P, K) (z - mean) / (std + 1e-7) by row, std with K - 1 in its denominator. A row of equal logits, and
        so every row of a single class, becomes 0 and has no gradient.

    Source: Sun et al., CVPR 2024, arXiv:2403.01427.  Differs: a single class is not NaN.
    """
    centred = (logits - logits.mean(1, keepdim=True)).masked_fill(without_spread(logits), 0)
    # torch's own std warns where there are no rows
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / (norm / max(1, logits.shape[1] - 1) ** 0.5 + _EPSILON)


def kendall_loss(logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
    """How far two models disagree on the order of the classes: a smooth 1 - Kendall's tau.

    Args:
        logits_student: (P, K).
        logits_teacher: (P, K) of the same rows; no gradient flows here.

    Returns:
        (P,) in [0, 2], the mean over pairs of classes i < j of 1 - tanh(s_i - s_j) tanh(t_i - t_j): small
        where both are sure of the same order, 1 where one is undecided, above 1 where they contradict. Equal
        rows do not cost 0 but as much as they are undecided. 0 for a single class, which has no pairs.
        Memory: two tensors (P, K (K - 1) / 2).

    Source: Guan et al., arXiv:2409.17823 (form and steepness k = 1 unverified).  Differs: none known.
    """
    first, second = torch.triu_indices(*[logits_student.shape[1]] * 2, offset=1, device=logits_student.device)
    order_student, order_teacher = (
        torch.tanh(logits[:, first] - logits[:, second])
        for logits in (logits_student, logits_teacher.detach())
    )
    return (1 - order_student * order_teacher).sum(1) / max(1, len(first))


def disagreement_loss(logits_student: Tensor, logits_teacher: Tensor, beta: float = 1.0) -> Tensor:
    """Binary cross-entropy with the teacher's probability, weighted by how far the two are apart.

    Args:
        logits_student: (..., K) before the sigmoid; gradient flows through the weight too.
        logits_teacher: (..., K) at the same priors; no gradient flows here.
        beta: power of the weight.

    Returns:
        (...) >= 0, sum over classes of |sigmoid(z_T) - sigmoid(z_S)|^beta BCE(z_S, sigmoid(z_T)); 0 at
        equality.

    Source: quality focal loss, with beta = 1 in CrossKD (Wang et al., CVPR 2024) and BCKD (Yang et al., ICCV
    2023), with 2 in PP-YOLOE.  Differs: none known.
    """
    target = logits_teacher.detach().sigmoid()
    weight = (target - logits_student.sigmoid()).abs() ** beta
    return (weight * F.binary_cross_entropy_with_logits(logits_student, target, reduction="none")).sum(-1)
