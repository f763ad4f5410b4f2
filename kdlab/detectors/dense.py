"""What one-stage dense heads share: maps over levels, priors, and the assignment of their own loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from kdlab.detectors.base import Adapter, Recording, strides_of, wrapped
from kdlab.detectors.outputs import Assignment, Branch, DetectorOutputs, Facts, Priors

BACKGROUND, IGNORED = -1, -2
_KEPT = 16


class DenseAdapter(Adapter):
    """A head that predicts at every cell. A family sets the literals and writes what differs."""

    provides = (*Adapter.provides, "cls_maps", "box_maps", "boxes", "assignment", "towers")
    cls_predictor: ClassVar[str]
    reg_predictor: ClassVar[str]

    @cached_property
    def facts(self) -> Facts:
        """What the plan and the methods may know of the model."""
        head = self.head
        sizes = [(-(-256 // stride),) * 2 for stride in strides_of(head.prior_generator)]
        priors = torch.cat(head.prior_generator.grid_priors(sizes, device="cpu")).double().numpy().round(3)
        # methods read class maps as sigmoid logits
        lacking = [] if head.use_sigmoid_cls else ["cls_maps"]
        if not self.has_towers:
            lacking.append("towers")
        found = super().facts
        return replace(
            found,
            provides=tuple(name for name in found.provides if name not in lacking),
            detector=type(self).__module__.rpartition(".")[2],
            anchors=head.prior_generator.num_base_priors[0],
            priors=hashlib.sha256(priors.tobytes()).hexdigest()[:16],
            tower_depth=head.stacked_convs,
            softmax=not head.use_sigmoid_cls,
        )

    def neck(self) -> tuple[tuple[int, ...], int]:
        """Strides and channels of the maps that the head reads."""
        return strides_of(self.head.prior_generator), self.head.in_channels

    def priors(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Priors:
        """The head's priors for maps of these sizes; those of the last sizes are kept: they come again."""
        sizes = tuple(sizes)
        return self._kept(("priors", sizes, device), lambda: self._priors_of(sizes, device))

    def _kept(self, key: tuple[Any, ...], made: Callable[[], Any]) -> Any:
        """What follows from the size of the inputs alone, of the sizes that were used last."""
        found = self._of_sizes.pop(key, None)
        if found is None:
            found = made()
            if len(self._of_sizes) == _KEPT:
                del self._of_sizes[next(iter(self._of_sizes))]
        self._of_sizes[key] = found
        return found

    @cached_property
    def _of_sizes(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def _priors_of(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Priors:
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
            # most heads have one for all levels
            layers = (self._convs(key[0], level)[key[1]] for level in range(len(self.facts.strides)))
            for layer in dict.fromkeys(layers):
                before_activation = layer.norm if layer.with_norm else layer.conv
                # a copy, because the activation works in place
                yield before_activation, lambda _m, _i, out, maps=maps: maps.append(out.clone())

    def look(self, inputs: Tensor, with_head: bool = True, data_samples: Sequence[Any] | None = None) -> None:
        """The neck's maps and, unless nobody asks for them, the head's."""
        feats = self.model.extract_feat(inputs)
        if with_head:
            self.head(feats)

    @contextmanager
    def capturing(self, caught: Recording) -> Iterator[None]:
        """Learn which object each prior serves from what the head's sampler hands to the loss inside.

        Whatever an assigner looks at (IoU, costs of predictions), and however many a head has, what they
        decide reaches the loss through `sampler.sample`.
        """

        # mmdet's own names: some heads hand them over by name
        def sample(
            original: Any, assign_result: Any, pred_instances: Any, gt_instances: Any, **kwargs: Any
        ) -> Any:
            sampled = original(assign_result, pred_instances, gt_instances, **kwargs)
            gt_index = torch.full_like(assign_result.gt_inds, IGNORED)
            gt_index[sampled.neg_inds] = BACKGROUND
            gt_index[sampled.pos_inds] = sampled.pos_assigned_gt_inds
            caught.assigned.append((gt_instances, gt_index))
            return sampled

        with wrapped(self.head.sampler, "sample", sample):
            yield

    def outputs(self, caught: Recording) -> DetectorOutputs:
        """The interface over what one pass produced, in fp32."""
        if not caught.raw:
            return super().outputs(caught)
        cls_maps, box_maps, *quality = ([level.float() for level in part] for part in caught.raw)
        towers = {key: [level.float() for level in maps] for key, maps in caught.towers.items()}
        outputs = replace(super().outputs(caught), towers=towers)
        return self.with_maps(outputs, cls_maps, self.as_in_training(box_maps), *quality)

    def assignment(
        self, caught: Recording, outputs: DetectorOutputs, data_samples: Sequence[Any]
    ) -> Assignment:
        """The assignment that `capturing` read from the loss of these samples."""
        rows = []
        for sample in data_samples:
            # a head may try no prior of an image without objects
            found = torch.full_like(outputs.priors.level, BACKGROUND)
            for objects, gt_index in caught.assigned:
                if objects is sample.gt_instances:
                    found = gt_index
            if len(found) < len(outputs.priors.level):
                inside = self._inside(outputs.priors, sample.pad_shape, sample.img_shape)
                found = _of_all(found, inside)
            rows.append(found)
        gt_index = torch.stack(rows)
        positive = gt_index >= 0
        label_weights = torch.where(positive, self.positive_weight, 1.0) * (gt_index != IGNORED)
        of_images = positive.sum(1).float()
        return Assignment(
            gt_index,
            label_weights,
            reduce_mean(of_images.sum()).clamp(min=1),
            reduce_mean(of_images.clamp(min=1).sum()),
        )

    @property
    def has_towers(self) -> bool:
        """Whether there are convolutions between the neck and the predictions."""
        return bool(self.head.stacked_convs)

    @property
    def positive_weight(self) -> float:
        """The weight of positives in the loss of classes, where that of background is 1."""
        weight = self.head.train_cfg.get("pos_weight", -1)
        return weight if weight > 0 else 1.0

    def with_maps(
        self,
        outputs: DetectorOutputs,
        cls_maps: list[Tensor],
        box_maps: list[Tensor],
        quality_maps: list[Tensor] | None = None,
    ) -> DetectorOutputs:
        """The same outputs with what the head gave in training mode, over all levels."""
        return replace(outputs, cls_maps=cls_maps, box_maps=box_maps, quality_maps=quality_maps)

    def as_in_training(self, box_maps: list[Tensor]) -> list[Tensor]:
        """Raw box maps as the head makes them in training mode."""
        return box_maps

    def decode(self, priors: Tensor, strides: Tensor, raw: Tensor) -> Tensor:
        """(P, 4) xyxy in input pixels from raw box values (P, X) at priors (P, 2|4) of strides (P,).

        Here raw values are deltas to anchors; a family with others overrides this and `encode`.
        """
        return self.head.bbox_coder.decode(priors, raw)

    def encode(self, priors: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
        """(P, 4) the inverse of `decode`; for distributions, the distances in strides."""
        return self.head.bbox_coder.encode(priors, boxes)

    @torch.no_grad()
    def match(self, boxes: Tensor, pad_shape: tuple[int, int], priors: Priors) -> Tensor:
        """(N,) which of `boxes` (M, 4) the head's own assigner gives to each prior; -1 none, -2 ignored."""
        inside, tried, per_level = self._tried(priors, pad_shape)
        assigned = self.head.assigner.assign(
            InstanceData(priors=tried),
            gt_instances=InstanceData(bboxes=boxes, labels=boxes.new_zeros(len(boxes), dtype=torch.long)),
            num_level_priors=per_level,
        )
        # mmdet counts objects from 1: 0 is background, -1 ignored
        return _of_all(assigned.gt_inds - 1, inside)

    def _tried(self, priors: Priors, pad_shape: tuple[int, int]) -> tuple[Tensor, Tensor, list[int]]:
        """Which priors (N,) of an image are tried, their boxes, and how many there are of each level."""

        def made() -> tuple[Tensor, Tensor, list[int]]:
            inside = self._inside(priors, pad_shape, pad_shape)
            per_level = priors.level[inside].bincount(minlength=len(priors.sizes)).tolist()
            return inside, priors.boxes[inside], per_level

        return self._kept(("tried", priors.sizes, priors.boxes.device, pad_shape), made)

    def run_tail(self, conv: int, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> DetectorOutputs:
        """What the head makes of maps before the activation of tower conv `conv`, over all levels.

        Args:
            conv: counted from 0; the ones after it follow.
            cls: (B, C, H_l, W_l) of the branch of classes.
            reg: of the branch of boxes.
        """
        raw = [
            self.predict(
                level, self._rest("cls", conv, level, of_cls), self._rest("reg", conv, level, of_reg)
            )
            for level, (of_cls, of_reg) in enumerate(zip(cls, reg, strict=True))
        ]
        outputs = DetectorOutputs(adapter=self, neck_maps=[], feats=[], levels=())
        return self.with_maps(outputs, *map(list, zip(*raw, strict=True)))

    def _rest(self, branch: Branch, conv: int, level: int, level_map: Tensor) -> Tensor:
        """The last map of a tower from the one before an activation."""
        convs = self._convs(branch, level)
        x = convs[conv].activate(level_map.clone())
        for layer in convs[conv + 1 :]:
            x = layer(x)
        return x

    def predict(self, level: int, cls: Tensor, reg: Tensor) -> tuple[Tensor, ...]:
        """What the head gives of a level in training mode, from the last maps of its two towers."""
        boxes = getattr(self.head, self.reg_predictor)(reg)
        if hasattr(self.head, "scales"):
            boxes = self.head.scales[level](boxes).float()
        return getattr(self.head, self.cls_predictor)(cls), boxes

    def _convs(self, branch: Branch, level: int) -> nn.ModuleList:
        return self.head.cls_convs if branch == "cls" else self.head.reg_convs

    def _inside(self, priors: Priors, pad_shape: tuple[int, ...], img_shape: tuple[int, ...]) -> Tensor:
        """(N,) bool: the priors of an image that the head tries to give to objects."""
        flags = self.head.prior_generator.valid_flags(priors.sizes, pad_shape, device=priors.boxes.device)
        border = self.head.train_cfg.get("allowed_border", -1)
        return anchor_inside_flags(priors.boxes, torch.cat(flags), img_shape, border)


def _of_all(gt_index: Tensor, inside: Tensor) -> Tensor:
    """(N,) the objects of all priors from those (M,) of the priors that were tried; others are ignored."""
    return torch.full_like(inside, IGNORED, dtype=torch.long).masked_scatter(inside, gt_index)
