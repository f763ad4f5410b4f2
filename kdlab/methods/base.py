"""What every method is: a module that compares two models' outputs and returns raw scalars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmdet.utils import reduce_mean
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs, Facts


@dataclass(frozen=True)
class Pair:
    """What a method may know of the two models before it sees data.

    Args:
        student: its facts.
        teacher: its facts.
        levels: (student level, teacher level) of the neck maps that will meet, in the order of `feats`.
    """

    student: Facts
    teacher: Facts
    levels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Connector:
    """How a method wants the student's neck maps brought to the teacher's channels.

    Args:
        kernel: size of the convolution.
        shared_over_levels: one convolution for all levels.
        init: "default" of torch, or "near_zero": N(0, 1e-4).
        always: a convolution also where the channels agree; else the identity there.
        mlp: two 1x1 convolutions with a ReLU between them in place of one of `kernel`.
    """

    kernel: Literal[1, 3] = 1
    shared_over_levels: bool = False
    init: Literal["default", "near_zero"] = "default"
    always: bool = False
    mlp: bool = False

    def build(self, channels_student: int, channels_teacher: int, levels: int) -> nn.ModuleList:
        """One module a level: a convolution, the same convolution, or the identity."""
        if channels_student == channels_teacher and not self.always:
            return nn.ModuleList(nn.Identity() for _ in range(levels))
        convs = [
            self._layer(channels_student, channels_teacher)
            for _ in range(1 if self.shared_over_levels else levels)
        ]
        if self.init == "near_zero":
            for conv in convs:
                nn.init.normal_(conv.weight, std=1e-4)
                nn.init.zeros_(conv.bias)
        return nn.ModuleList(convs * levels if self.shared_over_levels else convs)

    def _layer(self, channels_student: int, channels_teacher: int) -> nn.Module:
        if not self.mlp:
            return nn.Conv2d(channels_student, channels_teacher, self.kernel, padding=self.kernel // 2)
        first = nn.Conv2d(channels_student, channels_teacher, 1)
        return nn.Sequential(first, nn.ReLU(), nn.Conv2d(channels_teacher, channels_teacher, 1))


class Preparation(nn.Module):
    """What a method learns of a teacher before any student is trained, by a job of kind "prepare".

    It stands between the teacher's neck and head, and learns from the detection loss of the frozen teacher.
    """

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The neck's maps (B, C, H_l, W_l) as the teacher's head is to see them, and further losses."""
        raise NotImplementedError


class Method(nn.Module):
    """A distillation loss. Literals below are read from source with `ast`, so that plans need no torch.

    A subclass takes its options as annotated keyword arguments of `__init__` and implements `forward`.
    It never owns its weight, warm-up, connectors or names of losses: the Distiller does. Where a method is a
    sum of parts, options give their published factors, and each part is returned by name with its factor.
    """

    default_weight: ClassVar[float]
    """The published weight, or the first one that worked; the docstring says which."""
    default_weight_when: ClassVar[dict[tuple[str, Any], float]] = {}
    """Another weight under an option's value: {("region", "whole"): 0.002}."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of the interface without which the method cannot run."""
    needs_when: ClassVar[dict[tuple[str, Any], tuple[str, ...]]] = {}
    """More of them under an option's value: {("rank", "loc"): ("boxes",)}."""
    requires_equal: ClassVar[tuple[str, ...]] = ()
    """Facts in which both must agree: classes, strides, anchors, priors, channels, head, bins."""
    requires_equal_when: ClassVar[dict[tuple[str, Any], tuple[str, ...]]] = {}
    """More of them under an option's value."""
    defaults_for: ClassVar[dict[str, dict[str, Any]]] = {}
    """Other defaults for students of a detector family: {"fcos": {"temperature": 0.8, "weight": 2.0}}. A
    weight scales those under options too."""
    measured_for: ClassVar[tuple[str, ...]] = ()
    """Families among them whose defaults no paper says, because they were measured here."""
    unused_when: ClassVar[dict[tuple[str, Any], tuple[str, ...]]] = {}
    """Options that a recipe may not set under an option's value: {("form", "sigmoid"): ("temperature",)}."""
    limits: ClassVar[dict[str, tuple[float, float]]] = {}
    """Lowest and highest value of options; a number that is not named here is from 0 on."""
    prepares: ClassVar[tuple[str, ...]] = ()
    """Options that decide what is prepared, "prepare_iters" among them; none where nothing is."""
    towers: tuple[tuple[Literal["cls", "reg"], int], ...] = ()
    """Tower convolutions to record; set in `__init__` where they depend on the pair."""
    connector: Connector | None = None
    """How `student.feats` are to be aligned; None leaves them as they are. May be set in `__init__`."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair
        self.prepared: Preparation | None = None
        """What a job of kind "prepare" learns; a student's job gets it frozen, with that job's weights."""

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment
    ) -> Tensor | dict[str, Tensor]:
        """The raw, unweighted loss: one scalar, or several by name; in the graph even where it is 0."""
        raise NotImplementedError


def averaged(count: Tensor) -> Tensor:
    """A count () that normalises a loss: averaged over ranks, at least 1."""
    return reduce_mean(count.float()).clamp(min=1)
