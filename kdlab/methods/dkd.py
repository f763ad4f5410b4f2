"""Decoupled Knowledge Distillation: the target class and the rest, each on its own, at proposals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs
from kdlab.methods._logits import kendall_loss, standardised
from kdlab.methods.base import Method, Pair, averaged


def decoupled_log_softmax(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of "target or not" (R, 2) and of the others among themselves (R, K).

    Args:
        logits: (R, K + 1) of classes and background.
        target: (R,) int64 in [0, K].
    """
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, columns + (columns >= target[:, None]))
    pair = torch.stack([logits.gather(1, target[:, None]).squeeze(1), others.logsumexp(1)], dim=1)
    return pair.log_softmax(1), others.log_softmax(1)


def decoupled_losses(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of two softmax rows, split at the target class.

    Args:
        logits_student: (R, K + 1) at R proposals.
        logits_teacher: (R, K + 1) at the same proposals; no gradient flows here.
        target: (R,) int64, the class that each proposal is trained for; K is background.
        temperature: T; both losses are scaled by its square.

    Returns:
        (R,) >= 0 and (R,) >= 0 in nats: of the target class against all others (the paper's TCKD), and of
        the others among themselves (NCKD). Both 0 at equal logits; NCKD is 0 with a single other class.

    Source: Zhao et al., CVPR 2022, arXiv:2203.08679.
    Differs: exact, where the code takes 1000 off the target's logit and the logarithm of probabilities.
    """
    parts_student = decoupled_log_softmax(logits_student / temperature, target)
    parts_teacher = decoupled_log_softmax(logits_teacher.detach() / temperature, target)
    target_loss, other_loss = (
        temperature**2 * F.kl_div(mine, theirs, log_target=True, reduction="none").sum(1)
        for mine, theirs in zip(parts_student, parts_teacher, strict=True)
    )
    return target_loss, other_loss


class DecoupledKnowledgeDistillation(Method):
    """DKD on the second stage of a two-stage detector.

    Both models classify the student's own sampled proposals; the teacher's second stage reads its own neck.
    A sigmoid head has no softmax to decouple, so one-stage detectors are not served.

    Args:
        pair: the two models; they need equal classes.
        target: factor of the target class's part, the paper's alpha.
        non_target: factor of the other classes' part, the paper's beta, as published for detection.
        temperature: T.
        standardise: bring the rows of both models to mean 0 and deviation 1 before the temperature.
        kendall: adds this much of the disagreement on the order of the K + 1 classes; 0 leaves it out.

    Source: Zhao et al., CVPR 2022, arXiv:2203.08679; its result on detection is disputed (mdistiller#38).
    Differs: none known in the defaults; `standardise` and `kendall` are other papers'.
    """

    default_weight = 1.0
    limits = {"temperature": (0.01, 100.0)}
    needs = ("roi_outputs",)
    requires_equal = ("classes",)

    def __init__(
        self,
        pair: Pair,
        *,
        target: float = 1.0,
        non_target: float = 0.25,
        temperature: float = 1.0,
        standardise: bool = False,
        kendall: float = 0.0,
    ) -> None:
        super().__init__(pair)
        self.target, self.non_target, self.temperature = target, non_target, temperature
        self.standardise, self.kendall = standardise, kendall

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> dict[str, Tensor]:
        """The parts, each the mean over the student's proposals; background ones count too."""
        rois = student.rois
        assert rois is not None
        with torch.no_grad():
            logits_teacher = teacher.roi_outputs(rois).cls_logits.float()
        logits = [student.roi_outputs(rois).cls_logits.float(), logits_teacher]
        if self.standardise:
            logits = [standardised(rows) for rows in logits]
        count = averaged(logits_teacher.new_full((), len(rois.labels)))
        target, others = decoupled_losses(*logits, rois.labels, self.temperature)
        parts = {
            "target": self.target * target.sum() / count,
            "non_target": self.non_target * others.sum() / count,
        }
        if self.kendall:
            parts["kendall"] = self.kendall * kendall_loss(*logits).sum() / count
        return parts
