"""A backbone as the catalog, configs and checkpoints see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


class Backbone:
    """A kind of backbone, under one name for each depth.

    The attributes of a subclass are literals: the catalog reads them without running the file.
    """

    names: ClassVar[tuple[str, ...]]
    """What recipes call it; torchvision's weights are looked for under the same name."""
    width: ClassVar[int | tuple[int, ...]]
    """Channels of the first stage in its paper, of each name where they differ; torchvision's weights have
    no other."""
    width_step: ClassVar[int] = 1
    """Every width is a multiple of it."""
    one_width: ClassVar[bool] = False
    """Whether it comes in `width` alone."""
    foreign_keys: ClassVar[tuple[str, ...]] = ()
    """Tensors that stand only in checkpoints with other names than mmdet's; one of them is enough."""

    @staticmethod
    def config(name: str, width: int, stages: int, learned: bool) -> tuple[dict[str, Any], list[int]]:
        """The mmdet config of its first stages, and the channels of each.

        Args:
            name: one of `names`.
            width: channels of the first stage.
            stages: how many, at most 4; the first has stride 4.
            learned: whether it starts from learned weights: only then layers and statistics may be frozen.
        """
        raise NotImplementedError

    @staticmethod
    def name_of(config: Mapping[str, Any]) -> str | None:
        """The name of the backbone that an mmdet config describes; None where it is of another kind."""
        raise NotImplementedError

    @staticmethod
    def renamed(
        model: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What a checkpoint with `foreign_keys` must have of a model, and the checkpoint under mmdet's names.

        Args:
            model: the state of mmdet's backbone.
            given: the checkpoint.
            where: names the checkpoint in errors.

        Raises:
            JobError: the checkpoint is of another model, and names cannot tell which tensor is which.
        """
        raise NotImplementedError
