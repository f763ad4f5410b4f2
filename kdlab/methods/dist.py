"""DIST: copy how scores relate, over the classes of a prior and over the priors of a class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._logits import without_spread
from kdlab.methods.base import Method, Pair, averaged

_EPSILON = 1e-8


def correlation_losses(scores_student: Tensor, scores_teacher: Tensor) -> Tensor:
    """One minus Pearson's correlation of each row.

    Args:
        scores_student: (P, K).
        scores_teacher: (P, K); no gradient flows here.

    Returns:
        (P,) in [0, 2]: 0 where the row is a linear function of the teacher's that rises, 2 where it falls, 1
        without spread. 0 where a row has one number or none.

    Source: Huang et al., NeurIPS 2022, arXiv:2205.10536, code.
    Differs: each row's length is at least 1e-8, where the code adds that to the product of the two, which
    damps the small scores of a detector that has just begun.
    """
    if scores_student.shape[1] < 2:
        return scores_student.sum(1) * 0
    mine, theirs = (
        scores - scores.mean(1, keepdim=True) for scores in (scores_student, scores_teacher.detach())
    )
    # the clamp of a length bounds no gradient
    mine = mine.masked_fill(without_spread(scores_student), 0)
    return 1 - F.cosine_similarity(mine, theirs, dim=1, eps=_EPSILON)


class StrongerTeacher(Method):
    """DIST on the positives of a dense head.

    Where a stronger teacher is far from the student, an exact match of scores asks for much that does not
    matter: what is copied is their relation, which shift and scale leave as it is.

    Args:
        pair: the two models; they need equal classes and priors.
        inter: factor of the part over the classes of each positive; nothing where there is one class.
        intra: factor of the part over the positives of each class, those of the batch on one GPU.
        temperature: T; both parts are scaled by its square.

    Source: Huang et al., NeurIPS 2022, arXiv:2205.10536, with mmrazor's factors, code; both for classifiers.
    Differs: scores are probabilities of the head's own kind, sigmoid, where a classifier has a softmax; rows
    are the student's positives, where a classifier has images.
    """

    default_weight = 1.0
    limits = {"temperature": (0.01, 100.0)}
    needs = ("cls_maps", "assignment")
    requires_equal = ("classes", "priors")

    def __init__(
        self, pair: Pair, *, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(pair)
        self.inter, self.intra, self.temperature = inter, intra, temperature

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The two parts; both 0 where the batch has no positive."""
        image, prior, _ = assignment.positives(batch)
        mine, theirs = (
            (outputs.gather_logits(image, prior).float() / self.temperature).sigmoid()
            for outputs in (student, teacher)
        )
        scale = self.temperature**2
        rows, columns = correlation_losses(mine, theirs), correlation_losses(mine.T, theirs.T)
        return {
            "inter": self.inter * scale * rows.sum() / averaged(rows.new_full((), len(rows))),
            "intra": self.intra * scale * columns.mean(),
        }
