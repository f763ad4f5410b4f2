"""A student, a frozen teacher and weighted methods, trained as one mmengine model."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdlab.detectors import adapt
from kdlab.detectors.base import wrapped
from kdlab.detectors.outputs import Assignment, Batch, DetectorOutputs, Facts
from kdlab.errors import JobError
from kdlab.jobs.spec import MethodSettings, Precision
from kdlab.methods import method_class
from kdlab.methods.base import Method, Pair
from kdlab.training import ranks
from kdlab.training.averaging import Average
from kdlab.training.compiling import compiled_parts, running
from kdlab.training.precision import computing_in
from kdlab.training.weighting import LOOK_EVERY, Weight, gradient_shares


class Distiller(BaseModel):
    """Trains a student as mmdet would, and adds the weighted losses of its methods.

    Without methods a training step is mmdet's own, to the bit. The teacher is in eval mode, without gradient
    and outside `state_dict`, the optimiser and DDP's buckets.

    Args:
        student: an mmdet detector, its weights drawn already.
        methods: settings by instance name.
        teacher: a trained mmdet detector; required with methods.
        seed: from which, with the instance's name, each method draws its own trained parts and masks.
        teacher_precision: of the teacher's forward pass; None is the student's. Its outputs are fp32, and so
            is what methods run of its heads again.
        teacher_compiled: whether that pass is compiled by torch, on its first call.

    Raises:
        JobError: there are methods and no teacher, or a method meets the teacher at no level.
    """

    def __init__(
        self,
        student: nn.Module,
        methods: Mapping[str, MethodSettings] | None = None,
        teacher: nn.Module | None = None,
        seed: int = 0,
        teacher_precision: Precision | None = None,
        teacher_compiled: bool = False,
    ) -> None:
        methods = methods or {}
        teachers: tuple[nn.Module, ...] = ()
        if methods:
            if teacher is None:
                raise JobError("methods need a teacher", got=", ".join(methods), fix="hand one over")
            teachers = (teacher.eval().requires_grad_(False),)
        super().__init__(PairPreprocessor(*(model.data_preprocessor for model in (student, *teachers))))
        self.student, self.adapter = student, adapt(student)
        # a tuple, because a module kept as an attribute would be registered
        self._teacher, self._teacher_precision = teachers, teacher_precision
        self.terms = nn.ModuleDict()
        self.distilling = bool(methods)
        self.iteration, self.max_iterations = 0, 1
        self.raw_terms: dict[str, Tensor] = {}
        self.shares: dict[str, Tensor] = {}
        """Of each method in the gradient on the student's neck, in percent, where the last step looked."""
        if teachers:
            self.adapter_teacher = adapt(teachers[0])
        for name, settings in methods.items():
            self.terms[name] = Term(name, settings, self.adapter.facts, self.adapter_teacher.facts, seed)
        self.average: Average | None = None
        self._towers = sorted({tower for term in self.terms.values() for tower in term.method.towers})
        compiled = teachers if teacher_compiled else ()
        self._compiled = [part for one in compiled for part in compiled_parts(one, bool(self._towers))]

    @property
    def trained_parts(self) -> dict[str, int]:
        """Parameters that each method instance trains besides the student."""
        return {
            name: sum(p.numel() for p in term.parameters() if p.requires_grad)
            for name, term in self.terms.items()
        }

    @property
    def looks_at_shares(self) -> bool:
        """Whether this step looks at each method's share of the gradient: a pass back to the neck each."""
        return self.iteration % LOOK_EVERY == 0

    @property
    def kept(self) -> nn.Module:
        """The detector that is measured and kept: the student, or the average of its weights."""
        return self.student if self.average is None else self.average.model

    @property
    def models(self) -> dict[str, nn.Module]:
        """The student and, where there are methods, its teacher, by the names of their latencies."""
        return dict(zip(("latency_s", "teacher_latency_s"), (self.student, *self._teacher), strict=False))

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[Any] | None = None,
        mode: str = "tensor",
        inputs_teacher: Tensor | None = None,
    ) -> Any:
        """As mmdet's detectors; in mode "loss" with the methods' losses added.

        Args:
            inputs: (B, 3, H, W) as the student's preprocessor made them.
            data_samples: mmdet's `DetDataSample` of each image.
            mode: "loss", "predict" or "tensor".
            inputs_teacher: (B, 3, H, W) the same pixels as the teacher's preprocessor made them.
        """
        if mode != "loss":
            return self.kept(inputs, data_samples, mode=mode)
        self.raw_terms, self.shares = {}, {}
        weights = {
            name: weight
            for name, term in self.terms.items()
            if self.distilling and (weight := term.weight.at(self.iteration, self.max_iterations)) is not None
        }
        if not weights:
            return self.student(inputs, data_samples, mode=mode)
        with self.adapter.recording(self._towers) as caught, self.adapter.capturing(caught):
            losses = self.student.loss(inputs, data_samples)
        teacher = self.teacher_outputs(inputs if inputs_teacher is None else inputs_teacher, data_samples)
        # small differences of scores and features do not survive half precision
        with torch.autocast(inputs.device.type, enabled=False):
            student = self.adapter.outputs(caught)
            assignment = self.adapter.assignment(caught, student, data_samples)
            batch = make_batch(data_samples, inputs, self.iteration, self.max_iterations)
            parts = {"": self.parse_losses(losses)[0]} if self.looks_at_shares else {}
            for name, weight in weights.items():
                term = self.terms[name]
                own = replace(batch, generator=term.generator)
                found = term(own, student, teacher, assignment)
                for key, raw in found.items():
                    losses[f"loss_{key}"] = weight * raw
                    self.raw_terms[key] = raw.detach()
                if parts:
                    parts[name] = torch.stack([losses[f"loss_{key}"] for key in found]).sum()
            if parts:
                self.shares = gradient_shares(parts, caught.feats)
                for name, share in self.shares.items():
                    self.terms[name].weight.saw(share)
        return losses

    @torch.no_grad()
    def teacher_outputs(self, inputs: Tensor, data_samples: Sequence[Any] | None = None) -> DetectorOutputs:
        """The teacher's view of (B, 3, H, W) inputs, its head's only where a method reads it."""
        with_head = any(term.reads_head for term in self.terms.values())
        with computing_in(self._teacher_precision, inputs.device), running(self._compiled):
            return self.adapter_teacher.observe(inputs, self._towers, with_head, data_samples)

    def init_weights(self) -> None:
        """Nothing: the weights were drawn when the student was built, before anything else could draw."""

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        """Move the teacher with the student."""
        for model in self._teacher:
            model._apply(fn)
        return super()._apply(fn, recurse)

    def _set_device(self, device: torch.device) -> None:
        """Let the teacher's preprocessor put its images where the student's does."""
        for model in self._teacher:
            model._set_device(device)
            # from pinned memory
            model.data_preprocessor._non_blocking = device.type == "cuda"
        super()._set_device(device)


class PairPreprocessor(BaseDataPreprocessor):
    """Normalises the same pixels for each model: one tensor where their preprocessing is equal.

    The teacher's images are padded to the student's divisor, so that both see the same geometry.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        # a tuple, because a module kept as an attribute would be registered
        self._teacher: tuple[nn.Module, ...] = ()
        if teacher is not None:
            teacher.pad_size_divisor = student.pad_size_divisor
            if _preprocessing(teacher) != _preprocessing(student):
                self._teacher = (teacher,)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Inputs for the student and, in training, `inputs_teacher` where they differ."""
        if not training or not self._teacher:
            return _preprocessed(self.student, data, training)
        inputs_teacher = _preprocessed(self._teacher[0], data, training)["inputs"]
        return {**_preprocessed(self.student, data, training), "inputs_teacher": inputs_teacher}


def _preprocessed(preprocessor: nn.Module, data: dict[str, Any], training: bool) -> dict[str, Any]:
    # a copy, because a preprocessor changes what it is given
    if preprocessor.device.type != "cpu":
        return preprocessor(dict(data), training)
    # mmengine asks every tensor of every image to move, also where all lie on the CPU already
    with wrapped(preprocessor, "cast_data", lambda _cast, given: given):
        return preprocessor(dict(data), training)


def _preprocessing(preprocessor: nn.Module) -> tuple[Any, ...]:
    normalised = []
    if preprocessor._enable_normalize:
        normalised = [preprocessor.mean.tolist(), preprocessor.std.tolist()]
    return normalised, preprocessor._channel_conversion, preprocessor.pad_value


class Term(nn.Module):
    """One method instance: its connectors, levels, weight over time and random numbers."""

    def __init__(
        self, name: str, settings: MethodSettings, student: Facts, teacher: Facts, seed: int
    ) -> None:
        super().__init__()
        self.name, self.weight = name, Weight(settings)
        self.levels = matched_levels(student.strides, teacher.strides, settings.match, settings.levels)
        method = method_class(settings.method)
        needs = _needed(method, settings.options)
        if "feats" in needs and not self.levels:
            strides = f"student {student.strides}, teacher {teacher.strides}"
            raise JobError("no level is matched", where=f"methods.{name}", got=strides, fix="change levels")
        own_seed = seed_of(seed, name)
        # equal weights on all processes of a job, and other masks, for they have other images
        masks = f"{name} of rank {ranks.rank()}" if ranks.rank() else name
        self.generator = torch.Generator().manual_seed(seed_of(seed, masks))
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(own_seed)
            self.method: Method = method(Pair(student, teacher, tuple(self.levels)), **settings.options)
            if self.method.prepared is not None:
                self.method.prepared.requires_grad_(False)
            connector = self.method.connector
            self.connectors = connector and connector.build(
                student.channels, teacher.channels, len(self.levels)
            )
        self.on_memory = settings.maps == "memory"
        seen = needs - {"feats", "assignment", "anchor_boxes"} or self.method.towers or self.on_memory
        self.reads_head = bool(seen)
        """Whether the method looks at more of the teacher than its neck's maps."""

    def forward(
        self, batch: Batch, student: DetectorOutputs, teacher: DetectorOutputs, assignment: Assignment | None
    ) -> dict[str, Tensor]:
        """The method's raw losses, named after the instance."""
        levels_student, levels_teacher = ([pair[side] for pair in self.levels] for side in (0, 1))
        mine, theirs = (self.maps_of(outputs) for outputs in (student, teacher))
        feats_teacher = [theirs[level] for level in levels_teacher]
        feats_student = []
        for place, level in enumerate(levels_student):
            feat, size = mine[level], feats_teacher[place].shape[-2:]
            if self.connectors is not None:
                feat = self.connectors[place](feat)
            if feat.shape[-2:] != size:
                feat = F.interpolate(feat, size, mode="bilinear")
            feats_student.append(feat)
        loss = self.method(
            batch,
            student.through(levels_student, feats_student),
            teacher.through(levels_teacher, feats_teacher),
            assignment,
        )
        if isinstance(loss, Tensor):
            return {self.name: loss}
        return {f"{self.name}.{part}": value for part, value in loss.items()}

    def maps_of(self, outputs: DetectorOutputs) -> list[Tensor]:
        """The maps of a model that the method is to compare, over all levels."""
        if not self.on_memory:
            return outputs.neck_maps
        assert outputs.memory is not None
        return outputs.memory


def _needed(method: type[Method], options: Mapping[str, Any]) -> set[str]:
    """What a method needs, as `catalog.MethodInfo.needs_for` tells it of those that the catalog lists."""
    chosen = {key: one.default for key, one in inspect.signature(method).parameters.items()} | dict(options)
    cases = method.needs_when.items()
    return {*method.needs, *(name for (key, value), names in cases if chosen[key] == value for name in names)}


def matched_levels(
    strides_student: Sequence[int], strides_teacher: Sequence[int], match: str, wanted: Sequence[int] | None
) -> list[tuple[int, int]]:
    """(student level, teacher level) pairs of equal stride or, with `match` "index", of equal position."""
    pairs = []
    for level, stride in enumerate(strides_student):
        if wanted is not None and stride not in wanted:
            continue
        if match == "index" and level < len(strides_teacher):
            pairs.append((level, level))
        elif match != "index" and stride in strides_teacher:
            pairs.append((level, strides_teacher.index(stride)))
    return pairs


def make_batch(data_samples: Sequence[Any], inputs: Tensor, iteration: int, max_iterations: int) -> Batch:
    """The ground truth of mmdet's samples, all images together."""
    objects = [sample.gt_instances for sample in data_samples]
    rows = [
        (len(sample.gt_instances), *sample.metainfo["img_shape"][:2], *sample.metainfo["pad_shape"][:2])
        for sample in data_samples
    ]
    # one copy to the device, and nothing of it is asked back
    numbers = torch.tensor(rows, device=inputs.device)
    images = torch.arange(len(rows), device=inputs.device)
    total = sum(row[0] for row in rows)
    return Batch(
        gt_boxes=torch.cat([getattr(image.bboxes, "tensor", image.bboxes) for image in objects]).view(-1, 4),
        gt_labels=torch.cat([image.labels for image in objects]),
        gt_image=torch.repeat_interleave(images, numbers[:, 0], output_size=total),
        image_shapes=numbers[:, 1:3],
        pad_shapes=numbers[:, 3:5],
        input_shape=(inputs.shape[-2], inputs.shape[-1]),
        iteration=iteration,
        max_iterations=max_iterations,
    )


def averages_batches(model: nn.Module) -> bool:
    """Whether a model in training mode normalises by the statistics of its batch."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def seed_of(seed: int, name: str) -> int:
    """A seed for something named, from a recipe's seed: equal on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")
