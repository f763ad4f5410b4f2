"""What one-stage dense heads share: maps over levels, priors, and the assignment of their own loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from kdlab.detectors.base import Adapter, Recording, strides_of
from kdlab.detectors.outputs import Assignment, Branch, DetectorOutputs, Facts, Priors, Tail


class DenseAdapter(Adapter):
    """A head that predicts at every cell. A family sets the literals and writes what differs."""

    provides = (*Adapter.provides, "cls_maps", "box_maps", "boxes", "assignment", "towers")
    labels_at: ClassVar[int] = 0
    label_weights_at: ClassVar[int | None] = 1
    cls_predictor: ClassVar[str]
    reg_predictor: ClassVar[str]

    @cached_property
    def facts(self) -> Facts:
        """What the plan and the methods may know of the model."""
        head = self.head
        sizes = [(-(-256 // stride),) * 2 for stride in strides_of(head.prior_generator)]
        priors = torch.cat(head.prior_generator.grid_priors(sizes, device="cpu")).double().numpy().round(3)
        found = super().facts
        return replace(
            found,
            # methods read class maps as sigmoid logits
            provides=tuple(name for name in found.provides if name not in self.lacks()),
            detector=type(self).__module__.rpartition(".")[2],
            anchors=head.prior_generator.num_base_priors[0],
            priors=hashlib.sha256(priors.tobytes()).hexdigest()[:16],
            tower_depth=head.stacked_convs,
            softmax=not head.use_sigmoid_cls,
        )

    def lacks(self) -> tuple[str, ...]:
        """What only other heads of its class have: class maps before a sigmoid, towers."""
        softmax = () if self.head.use_sigmoid_cls else ("cls_maps",)
        return (*softmax, *(() if self.head.stacked_convs else ("towers",)))

    def neck(self) -> tuple[tuple[int, ...], int]:
        """Strides and channels of the maps that the head reads."""
        return strides_of(self.head.prior_generator), self.head.in_channels

    def priors(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Priors:
        """The head's priors for maps of these sizes."""
        levels = self.head.prior_generator.grid_priors(sizes, device=device)
        counts = torch.tensor([len(level) for level in levels])
        level = torch.repeat_interleave(torch.arange(len(levels)), counts).to(device)
        strides = torch.tensor(self.facts.strides, dtype=torch.float32, device=device)
        first = (0, *counts.cumsum(0).tolist())
        return Priors(torch.cat(levels), strides[level], level, first, tuple(sizes))

    def hooks(
        self, caught: Recording, towers: Sequence[tuple[Branch, int]]
    ) -> Iterator[tuple[nn.Module, Any]]:
        """Also the head's maps and the asked towers."""
        yield from super().hooks(caught, towers)
        yield self.head, lambda _m, _i, out: setattr(caught, "raw", tuple(out))
        for key in towers:
            maps = caught.towers.setdefault(key, [])
            # a copy, because the activation that follows works in place
            yield self._before_activation(*key), lambda _m, _i, out, maps=maps: maps.append(out.clone())

    def look(self, inputs: Tensor, with_head: bool = True) -> None:
        """The neck's maps and, unless nobody asks for them, the head's."""
        feats = self.model.extract_feat(inputs)
        if with_head:
            self.head(feats)

    @contextmanager
    def capturing(self, caught: Recording) -> Iterator[None]:
        """Learn which object each prior serves from the one target computation of the loss inside.

        Object k enters under the label -1-k; the labels that come out, mapped to all priors by mmdet
        itself, name the objects, and are given back as the true ones.
        """
        head, original = self.head, self.head._get_targets_single

        def marked(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            place = next(i for i, arg in enumerate(args) if isinstance(arg, InstanceData))
            objects = args[place]
            out = list(original(*args[:place], _mark(objects), *args[place + 1 :], **kwargs))
            marks = out[self.labels_at]
            gt_index = torch.where(marks < 0, -1 - marks, -1)
            if len(objects):
                true = objects.labels[gt_index.clamp(min=0)]
                out[self.labels_at] = torch.where(marks < 0, true, marks)
            weights = (
                torch.ones_like(marks, dtype=torch.float32)
                if self.label_weights_at is None
                else out[self.label_weights_at]
            )
            caught.gt_index.append(torch.where(weights > 0, gt_index, -2))
            caught.label_weights.append(weights)
            return tuple(out)

        head._get_targets_single = marked
        try:
            yield
        finally:
            del head._get_targets_single

    def outputs(self, caught: Recording) -> DetectorOutputs:
        """The interface over what one pass produced, in fp32."""
        if not caught.raw:
            return super().outputs(caught)
        cls_maps, box_maps, *quality = ([level.float() for level in part] for part in caught.raw)
        return replace(
            super().outputs(caught),
            cls_maps=cls_maps,
            box_maps=self.as_in_training(box_maps),
            quality_maps=quality[0] if quality else None,
            towers={key: [level.float() for level in maps] for key, maps in caught.towers.items()},
        )

    def assignment(self, caught: Recording) -> Assignment:
        """The assignment that `capturing` read."""
        gt_index = torch.stack(caught.gt_index)
        count = (gt_index >= 0).sum().float()
        return Assignment(gt_index, torch.stack(caught.label_weights), reduce_mean(count).clamp(min=1))

    def as_in_training(self, box_maps: list[Tensor]) -> list[Tensor]:
        """Raw box maps as the head makes them in training mode."""
        return box_maps

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) xyxy in input pixels from raw box values (P, X) at priors (P, 2|4) of strides (P,)."""
        raise NotImplementedError

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) the inverse of `decode`; for distributions, the distances in strides."""
        raise NotImplementedError

    def targets(self, objects: InstanceData, priors: Priors, pad_shape: tuple[int, int]) -> None:
        """Have the head compute the targets of one image with these objects."""
        raise NotImplementedError

    @torch.no_grad()
    def match(self, boxes: Tensor, pad_shape: Tensor, priors: Priors) -> Tensor:
        """(N,) which of `boxes` (M, 4) the head's own matcher gives to each prior; -1 none, -2 ignored."""
        objects = InstanceData(bboxes=boxes, labels=boxes.new_zeros(len(boxes), dtype=torch.long))
        caught = Recording()
        with self.capturing(caught):
            self.targets(objects, priors, tuple(int(side) for side in pad_shape))
        return caught.gt_index[0]

    def run_tail(self, branch: Branch, conv: int, maps: Sequence[Tensor]) -> Tail:
        """The head from the activation of tower conv `conv` on, over levels (B, C, H_l, W_l)."""
        convs = self._convs(branch)
        out, quality = [], []
        for level, level_map in enumerate(maps):
            x = convs[conv].activate(level_map.clone())
            for layer in convs[conv + 1 :]:
                x = layer(x)
            out.append(self.predict(branch, level, x))
            quality.extend(self.predict_quality(branch, x))
        return Tail(out, quality or None)

    def predict(self, branch: Branch, level: int, x: Tensor) -> Tensor:
        """Logits or raw boxes (as in training mode) from the last tower map of a level."""
        return getattr(self.head, self.cls_predictor if branch == "cls" else self.reg_predictor)(x)

    def predict_quality(self, branch: Branch, x: Tensor) -> list[Tensor]:
        """The quality logits of a level where this branch makes them, else nothing."""
        return []

    def _convs(self, branch: Branch) -> nn.ModuleList:
        return self.head.cls_convs if branch == "cls" else self.head.reg_convs

    def _before_activation(self, branch: Branch, conv: int) -> nn.Module:
        layer = self._convs(branch)[conv]
        return layer.norm if layer.with_norm else layer.conv

    def _inside(self, priors: Priors, pad_shape: tuple[int, int]) -> Tensor:
        """(N,) bool: the prior's cell lies in the padded image."""
        flags = self.head.prior_generator.valid_flags(priors.sizes, pad_shape, device=priors.boxes.device)
        return torch.cat(flags)


def _mark(objects: InstanceData) -> InstanceData:
    marked = objects.clone()
    marked.labels = -1 - torch.arange(len(objects), device=objects.labels.device)
    return marked
