"""Soft labels: copy the teacher's class scores at the student's positives."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._logits import kendall_loss, standardised
from kdlab.methods.base import Method, Pair


def sigmoid_soft_label_loss(logits_student: Tensor, logits_teacher: Tensor, avg_factor: Tensor) -> Tensor:
    """Binary cross-entropy of each class with the teacher's probability as its target.

    Args:
        logits_student: (P, K) at the positives of the batch.
        logits_teacher: (P, K) at the same priors; no gradient flows here.
        avg_factor: () positives, averaged over ranks.

    Returns:
        Scalar >= 0, sum over classes and positives over `avg_factor`; 0 and in the graph without positives.
        At equal logits it is the teacher's entropy, not 0.

    Source: the usual form for dense sigmoid heads; docs/methods/predictions.md.  Differs: none known.
    """
    target = logits_teacher.detach().sigmoid()
    return F.binary_cross_entropy_with_logits(logits_student, target, reduction="sum") / avg_factor


def softmax_soft_label_loss(
    logits_student: Tensor, logits_teacher: Tensor, avg_factor: Tensor, temperature: float
) -> Tensor:
    """KL of softened class distributions, as mmdet's knowledge distillation loss and LD's main KD have it.

    Args:
        logits_student: (P, K) at the positives of the batch.
        logits_teacher: (P, K) at the same priors; no gradient flows here.
        avg_factor: () positives, averaged over ranks.
        temperature: T; the loss is scaled by its square.

    Returns:
        Scalar >= 0: T^2 times the mean over classes of the KL's terms, over `avg_factor`; 0 at equal logits.

    Source: Hinton et al., 2015, in the form of Zheng et al., CVPR 2022 (LD).  Differs: none known.
    """
    log_student = (logits_student / temperature).log_softmax(1)
    log_teacher = (logits_teacher.detach() / temperature).log_softmax(1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="none").mean(1)
    return temperature**2 * divergence.sum() / avg_factor


class SoftLabel(Method):
    """Soft labels at the positives of the student's own assigner.

    Args:
        pair: the two models; they need equal classes and equal priors.
        form: `sigmoid` for dense heads, whose classes are independent (weight 1); `softmax` for parity with
            LD (weight 10).
        temperature: T of the softmax form; the sigmoid form has none.
        standardise: bring the rows of both models to mean 0 and deviation 1 before the temperature, so that
            the student copies how the teacher's logits relate and not their scale; softmax form only.
        kendall: adds this much of the disagreement on the order of classes, a smooth 1 - Kendall's tau of the
            same rows; 0 leaves it out. Softmax form only: the classes of a sigmoid are no distribution.

    Source: docs/methods/predictions.md, soft_label.
    Differs: LD divides by the positives of each level and adds the levels up; here all levels are one mean.
    """

    default_weight = 1.0
    default_weight_when = {("form", "softmax"): 10.0}
    unused_when = {("form", "sigmoid"): ("temperature", "standardise", "kendall")}
    limits = {"temperature": (0.01, 100.0)}
    needs = ("cls_maps", "assignment")
    requires_equal = ("classes", "priors")

    def __init__(
        self,
        pair: Pair,
        *,
        form: Literal["sigmoid", "softmax"] = "sigmoid",
        temperature: float = 2.0,
        standardise: bool = False,
        kendall: float = 0.0,
    ) -> None:
        super().__init__(pair)
        self.form, self.temperature = form, temperature
        self.standardise, self.kendall = standardise, kendall

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor:
        """The loss over all positives of the batch at once."""
        image, prior, _ = assignment.positives(batch)
        logits = [student.gather_logits(image, prior), teacher.gather_logits(image, prior)]
        if self.form == "sigmoid":
            return sigmoid_soft_label_loss(*logits, assignment.num_positives)
        if self.standardise:
            logits = [standardised(rows) for rows in logits]
        loss = softmax_soft_label_loss(*logits, assignment.num_positives, self.temperature)
        if self.kendall:
            loss = loss + self.kendall * kendall_loss(*logits).sum() / assignment.num_positives
        return loss
