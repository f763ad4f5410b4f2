"""How any detector shows itself to methods: its neck maps, and what its family adds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from kdlab.detectors.outputs import Assignment, Branch, DetectorOutputs, Facts, RoiOutputs, Rois
from kdlab.jobs.spec import ModelSettings

_PROBED_PX = 256


@dataclass
class Recording:
    """What hooks caught during one pass of a model.

    Args:
        feats: the neck's maps.
        raw: what the head gave.
        towers: pre-activation maps by (branch, conv).
        assigned: the objects of an image and, (M,) over the priors that the head tried, which object each
            serves: -1 none, -2 ignored by the loss. An image without objects may be missing.
        rois: the sampled proposals of a two-stage loss.
        roi_outputs: what the second stage said of them.
        decoding: what a DETR's decoder was given.
        states: (L, B, Q, C) what its layers gave.
    """

    feats: tuple[Tensor, ...] = ()
    raw: tuple[Any, ...] = ()
    towers: dict[tuple[Branch, int], list[Tensor]] = field(default_factory=dict)
    assigned: list[tuple[InstanceData, Tensor]] = field(default_factory=list)
    rois: Rois | None = None
    roi_outputs: RoiOutputs | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    states: Tensor | None = None


class Adapter:
    """How a detector shows itself to methods. Of one whose head kdlab does not know these are its neck maps.

    A family names the heads that it serves and writes what it adds.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    """Class names of the heads that the family serves; a subclass of one is another head."""
    provides: ClassVar[tuple[str, ...]] = ("feats",)
    masks: ClassVar[bool] = False
    """Whether it learns masks too, which kdlab's data sets lack: then it serves as a teacher only."""
    one_class: ClassVar[bool] = False
    """Whether it detects at a prior the best of its classes alone."""
    clips: ClassVar[bool] = True
    """Whether its detections end at the image's border."""
    counts_on: ClassVar[str] = "meta"
    """The device on which its FLOPs are counted: "cpu" where shapes are values in its forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @staticmethod
    def config(settings: ModelSettings, num_classes: int) -> ConfigDict:
        """The mmdet config of the family for a recipe's model settings."""
        raise NotImplementedError

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether a model is of this family."""
        return type(Adapter(model).head).__name__ in cls.heads

    @property
    def head(self) -> nn.Module:
        """The part that tells objects from the neck's maps."""
        return getattr(self.model, "bbox_head", None) or self.model.roi_head

    @cached_property
    def facts(self) -> Facts:
        """What the plan and the methods may know of the model."""
        strides, channels = self.neck()
        layers = [f"{name}:{tuple(p.shape)}" for name, p in self.head.named_parameters()]
        return Facts(
            detector=type(self.model).__name__.lower(),
            provides=self.provides if strides else (),
            num_classes=self.num_classes,
            strides=strides,
            channels=channels,
            head=f"{type(self.head).__name__} {' '.join(layers)}",
            trains=getattr(self.head, "mask_head", None) is None and not self.model.with_mask,
        )

    @property
    def num_classes(self) -> int:
        """K, as the first part of the head says that knows it."""
        return next(int(part.num_classes) for part in self.head.modules() if hasattr(part, "num_classes"))

    def neck(self) -> tuple[tuple[int, ...], int]:
        """Strides, ascending, and channels of the neck's maps.

        None without a neck, where levels differ in width, or where the coarsest comes first.
        """
        if not getattr(self.model, "with_neck", False):
            return (), 0
        was_training = self.model.training
        device = next(self.model.parameters()).device
        with torch.no_grad():
            maps = self.model.eval().extract_feat(torch.zeros(1, 3, _PROBED_PX, _PROBED_PX, device=device))
        self.model.train(was_training)
        channels = {level.shape[1] for level in maps}
        strides = tuple(round(_PROBED_PX / level.shape[-1]) for level in maps)
        if len(channels) > 1 or list(strides) != sorted(strides):
            return (), 0
        return strides, channels.pop()

    @contextmanager
    def recording(self, towers: Sequence[tuple[Branch, int]] = ()) -> Iterator[Recording]:
        """Catch the neck's maps, and what the family adds, of the pass made inside."""
        caught = Recording()
        with ExitStack() as hooks:
            for module, keep in self.hooks(caught, towers):
                hooks.callback(module.register_forward_hook(keep).remove)
            yield caught

    def hooks(
        self, caught: Recording, towers: Sequence[tuple[Branch, int]]
    ) -> Iterator[tuple[nn.Module, Any]]:
        """(module, forward hook) of all that is caught."""
        if getattr(self.model, "with_neck", False):
            yield self.model.neck, lambda _m, _i, out: setattr(caught, "feats", tuple(out))

    @contextmanager
    def capturing(self, caught: Recording) -> Iterator[None]:
        """Learn what the loss inside decides: which prior or proposal serves which object."""
        yield

    def look(self, inputs: Tensor, with_head: bool = True, data_samples: Sequence[Any] | None = None) -> None:
        """Run the model on (B, 3, H, W) inputs as far as methods see it.

        mmdet's `data_samples` tell where an image ends and its padding begins, which some families ask.
        """
        self.model.extract_feat(inputs)

    def observe(
        self,
        inputs: Tensor,
        towers: Sequence[tuple[Branch, int]] = (),
        with_head: bool = True,
        data_samples: Sequence[Any] | None = None,
    ) -> DetectorOutputs:
        """The model's view of (B, 3, H, W) inputs; without its head the neck's maps alone.

        Without mmdet's `data_samples` of these images they are taken to have no padding.
        """
        with self.recording(towers) as caught:
            self.look(inputs, with_head, data_samples)
        return self.outputs(caught)

    def finish(self) -> None:
        """Change what its family changes for the last epochs, in which images are no longer mixed."""

    def forward_all(self, inputs: Tensor) -> None:
        """Every layer once, without decoding, for counting FLOPs."""
        self.look(inputs)

    def outputs(self, caught: Recording) -> DetectorOutputs:
        """The interface over what one pass produced, in fp32."""
        feats = [feat.float() for feat in caught.feats]
        return DetectorOutputs(adapter=self, neck_maps=feats, feats=feats, levels=tuple(range(len(feats))))

    def assignment(
        self, caught: Recording, outputs: DetectorOutputs, data_samples: Sequence[Any]
    ) -> Assignment | None:
        """What `capturing` read from the loss of these samples; None for a head without priors."""
        return None


@contextmanager
def wrapped(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """While inside, `owner.name(...)` is `wrapper(original, ...)`."""
    setattr(owner, name, partial(wrapper, getattr(owner, name)))
    try:
        yield
    finally:
        delattr(owner, name)


def strides_of(prior_generator: Any) -> tuple[int, ...]:
    """The strides of the maps for which mmdet's generator makes anchors or points."""
    return tuple(int(s[0] if isinstance(s, tuple) else s) for s in prior_generator.strides)
