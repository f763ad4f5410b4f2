"""The settings of a job: typed and frozen from the recipe to the loss, a union over the kinds of jobs.

A key with a default that changes nothing changes no id: ids are hashed without defaults (`planning/ids.py`).
"""

from __future__ import annotations

import json
import marshal
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kdlab.jobs.augment import Augment
from kdlab.jobs.settings import Channels, Fraction, Listed, Seed, Settings, Side

VERSIONS = {"loop": 1, "evaluation": 1}
"""Of what all jobs share: training (batches, augmentation, optimiser) and measuring. The commit that moves a
number raises its version, and with it the ids of the jobs that use it. A plugin has its own `VERSION`."""

_WITHOUT_MILESTONES = ("cosine", "flat_cosine")
_STEP = {"milestones": (8 / 12, 11 / 12), "optimizer": "sgd", "lr": 0.01, "batch_size": 16}
_PRESETS: dict[str, dict[str, Any]] = {
    "1x": {"epochs": 12, **_STEP},
    "2x": {"epochs": 24, **_STEP},
    "3x": {"epochs": 36, **_STEP, "milestones": (27 / 36, 33 / 36)},
    "300e": {
        "epochs": 300,
        "batch_size": 256,
        "optimizer": "adamw",
        "lr": 4e-3,
        "decay": "flat_cosine",
        "warmup_iters": 1000,
        "warmup_factor": 1e-5,
        "decay_norms": False,
        "ema": 2e-4,
    },
    "custom": {},
}


class ImageSettings(Settings):
    """How images are read.

    Args:
        scale: width and height that images are resized to fit, keeping their ratio; None leaves them.
        flip: probability of a horizontal flip in training, after `augment`.
        augment: what else is done to training images, in this order; a list of steps or a preset.
        augment_stop: so many epochs at the end mix no images (mosaic, mixup, random_affine).
        broken_images: what a job does at an image that cannot be read: "stop", or "skip" it and say so.
    """

    scale: Annotated[tuple[Side, Side], Listed] | None = None
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    augment: Augment = ()
    augment_stop: Annotated[NonNegativeInt, Field(le=100_000)] = 0
    broken_images: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _augments_to_a_size(self) -> Self:
        sized = [one.step for one in self.augment if one.needs_scale]
        if sized and self.scale is None:
            raise ValueError(f"augment: {sized[0]} needs dataset.scale, the size that it makes")
        steps = [one.step for one in self.augment]
        if {"mosaic", "random_affine"} <= {*steps} and self.scale and any(side % 2 for side in self.scale):
            raise ValueError("augment: random_affine cuts a mosaic in half, so scale needs even sides")
        if self.augment_stop and not any(one.mixes for one in self.augment):
            raise ValueError("augment_stop has no effect: no step of augment mixes images")
        return self


class DatasetSpec(ImageSettings):
    """The dataset of a job.

    Args:
        name: a dataset of the catalog.
        fingerprint: of its labels and images (`datasets.base.fingerprint`).
    """

    name: str
    fingerprint: str


class ModelSettings(Settings):
    """`student:`, a detector and its size.

    Args:
        detector: a detector family of the catalog; or an mmdet config, by path or by its name in mmdet
            ("retinanet/retinanet_r50_fpn_1x_coco"): that says all sizes, and the keys below, down to
            layers, are None.
        backbone: a backbone of the catalog.
        width: channels of its first stage (MobileNetV2: of its stem); those of its paper where left out.
        neck_channels: channels of every level.
        head_convs: convolutions of each tower; 0 for a family without towers.
        strides: of the levels, in input pixels: 4 or 8 and on, each twice the one before; the family's where
            left out.
        queries: how many a DETR's decoder has; None for other families.
        layers: of a DETR's encoder, and as many of its decoder.
        init: the backbone's first weights: "none" draws them, "imagenet" fetches torchvision's, else the path
            or URL of a file.
        overrides: values by dotted key of the mmdet config, which begin with "model.".
    """

    detector: str
    backbone: str | None = None
    width: Channels | None = None
    neck_channels: Channels | None = None
    head_convs: Annotated[NonNegativeInt, Field(le=32)] | None = None
    strides: Annotated[tuple[int, ...], Field(max_length=8), Listed] | None = None
    queries: Annotated[PositiveInt, Field(le=10_000)] | None = None
    layers: Annotated[PositiveInt, Field(le=64)] | None = None
    init: Annotated[str, Field(min_length=1)] = "none"
    overrides: dict[str, Any] = {}

    @field_validator("strides")
    @classmethod
    def _doubling(cls, strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if strides is None:
            return None
        if strides[:1] not in ((4,), (8,)) or any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError("must start with 4 or 8 and double at each level")
        return strides


Precision = Literal["fp32", "fp16", "bf16"]


class Schedule(Settings):
    """`schedule:`; keys that are left out come from the preset.

    Args:
        preset: "1x", "2x" and "3x" are mmdet's 12, 24 and 36 epochs, "300e" is RTMDet's; "custom" leaves
            epochs or iterations, batch size, learning rate and optimizer to be said.
        epochs: passes over the training images; None where `iterations` are given.
        iterations: steps of the optimiser in all, in place of `epochs`; the last epoch ends with them.
        batch_size: images of one step, over all GPUs of the job; each takes an equal share.
        lr: the peak learning rate.
        optimizer: "sgd" or "adamw".
        momentum: of sgd.
        weight_decay: 1e-4 for sgd and 0.05 for adamw where it is left out.
        decay: "step" divides the learning rate by ten at each milestone, "cosine" lowers it to zero,
            "flat_cosine" in the second half of the training to a twentieth.
        milestones: ascending fractions of the training.
        warmup_iters: steps of linear warm-up.
        warmup_factor: where the warm-up starts, as a fraction of `lr`.
        clip_grad: largest norm of the gradient; None does not clip.
        decay_norms: whether weight decay is applied to normalisers and biases too.
        lr_factors: of the learning rate, by part of the student as its weights are called: {backbone: 0.1}.
        layer_decay: factor between the learning rates of a layer and the next, for a backbone of blocks in
            sequence; None leaves them equal.
        accumulate: forward passes of one step, whose gradients are summed; each normalises by its own images.
        ema: share of the newest weights in a moving average of the detector, 2e-4 in mmdet's recipes. What is
            measured, kept and exported is that average; None has none.
        gpus: of one job, each with a process of its own. Without GPUs it is that many processes of `threads`
            threads each, for trials: docs/several-gpus.md.
        precision: of convolutions and products: "fp32", or in 16 bits "fp16" (losses are scaled, so that no
            gradient vanishes) or "bf16" (the range of fp32).
        channels_last: memory layout of images and features.
        threads: CPU threads of each process.
        eval_every: epochs between evaluations; 0 evaluates after the last epoch only.
        keep_best: keep the weights of the best evaluation besides the last.
    """

    preset: Literal["1x", "2x", "3x", "300e", "custom"] = "1x"
    epochs: Annotated[PositiveInt, Field(le=100_000)] | None
    iterations: Annotated[PositiveInt, Field(le=10**8)] | None = None
    batch_size: Annotated[PositiveInt, Field(le=65_536)]
    lr: PositiveFloat
    optimizer: Literal["sgd", "adamw"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat
    decay: Literal["step", "cosine", "flat_cosine"] = "step"
    milestones: Annotated[tuple[Fraction, ...], Listed] = ()
    warmup_iters: Annotated[NonNegativeInt, Field(le=10**8)] = 500
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.001
    clip_grad: PositiveFloat | None = None
    decay_norms: bool = True
    lr_factors: dict[str, NonNegativeFloat] = {}
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    accumulate: Annotated[PositiveInt, Field(le=65_536)] = 1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    precision: Precision = "fp32"
    channels_last: bool = False
    threads: Annotated[PositiveInt, Field(le=1024)] = 1
    eval_every: Annotated[NonNegativeInt, Field(le=100_000)] = 1
    keep_best: bool = False

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in what the preset says, and the weight decay that is usual for the optimizer."""
        if not isinstance(data, dict):
            return data
        full = dict(_PRESETS.get(str(data.get("preset", "1x")), _PRESETS["1x"]))
        if data.get("decay") in _WITHOUT_MILESTONES:
            full["milestones"] = ()
        if data.get("iterations") is not None:
            full["epochs"] = None
        full |= data
        if full.get("iterations") is None and full.get("epochs") is None:
            # so that they are missing, not of the wrong type
            full.pop("epochs", None)
        return {"weight_decay": 0.05 if full.get("optimizer") == "adamw" else 1e-4} | full

    @field_validator("iterations")
    @classmethod
    def _one_length(cls, iterations: int | None, info: ValidationInfo) -> int | None:
        if iterations and (epochs := info.data.get("epochs")):
            raise ValueError(f"cannot be given next to epochs ({epochs}): remove one, or set it to null")
        return iterations

    @field_validator("gpus")
    @classmethod
    def _shares_the_batch(cls, gpus: int, info: ValidationInfo) -> int:
        if (batch_size := info.data.get("batch_size", gpus)) % gpus:
            whole = batch_size // gpus * gpus
            near = " or ".join(str(size) for size in (whole, whole + gpus) if size)
            raise ValueError(f"must divide batch_size {batch_size}; with {gpus} GPUs {near} would do")
        return gpus

    @model_validator(mode="after")
    def _accumulates_images(self) -> Self:
        if (share := self.batch_size // self.gpus) % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide the {share} images of a step")
        return self

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if milestones and (decay := info.data.get("decay")) in _WITHOUT_MILESTONES:
            raise ValueError(f"has no effect with decay: {decay}")
        if list(milestones) != sorted(set(milestones)):
            raise ValueError("must ascend")
        return milestones


class Share(Settings):
    """A part of the gradient that a method is held to, by its weight.

    Args:
        target: of the gradient on the student's neck, in percent.
        band: the weight changes after an epoch whose mean is further away than this, in percent.
    """

    target: Annotated[float, Field(gt=0, lt=100)]
    band: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.band < min(self.target, 100 - self.target):
            raise ValueError(f"band {self.band:g} around {self.target:g} reaches 0 or 100 percent")
        return self


class MethodSettings(Settings):
    """One method of an arm.

    Args:
        method: a method of the catalog.
        weight: factor of its loss.
        warmup_iters: steps over which the weight rises linearly from 0.
        decay: how the weight falls to 0 at the end of the training, or where it stops.
        stop: fraction of the iterations after which the weight is 0.
        gradient_share: hold its part of the gradient; the weight is what it starts from.
        match: "stride" pairs levels of equal stride, "index" pairs them by position.
        levels: strides of the levels to use; None uses all.
        maps: what a method on neck maps reads: "neck", or "memory", the maps behind a DETR's encoder.
        options: all options of the method; in YAML they stand beside `weight`.
    """

    method: str
    weight: NonNegativeFloat
    warmup_iters: NonNegativeInt = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    stop: Fraction | None = None
    gradient_share: Share | None = None
    match: Literal["stride", "index"] = "stride"
    levels: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Listed] | None = None
    maps: Literal["neck", "memory"] = "neck"
    options: dict[str, Any] = {}


class ModelSpec(ModelSettings):
    """The detector of a job: what is in files is here by content, `init` as "sha256:<hex>".

    Args:
        config: the model part of an mmdet config, as `detectors.mmdet_config.read_config` gives it.
        imports: modules that the config needs.
        code: SHA-256 of the source of each of them.
    """

    config: dict[str, Any] | None = None
    imports: Annotated[tuple[str, ...], Listed] = ()
    code: dict[str, str] = {}


class JobSpec(Settings):
    """Everything that can change the result of a job; each kind of job is a subclass.

    Args:
        dataset: what is read.
        model: the detector that is trained or measured.
        seed: draws the first weights, the order of the data and the augmentation.
        threads: of each process on the CPU, where their number changes sums; None on a GPU.
        micro_batch: images per forward pass where the GPU is too small for a batch; None for all.
    """

    work: ClassVar[str] = "trainer.Trainer"
    """What does it: module and class in `kdlab/training/`."""
    is_teacher: ClassVar[bool] = False
    """A kind that is made to teach and for nothing else; what teaches in a plan, `Job.is_teacher` says."""
    is_student: ClassVar[bool] = False
    """An arm of a recipe, one job per seed; whether of the plan's own, `Job.is_student` says."""
    instead: ClassVar[str] = ""
    """What the job makes where it does not end in the weights of a detector."""
    counts: ClassVar[Literal["epochs", "steps", "images"]] = "epochs"
    """Unit of its progress."""
    shrinks: ClassVar[bool] = True
    """Smaller micro-batches make a job that ran out of memory fit."""
    doubts: ClassVar[str] = "a schedule too short, or other data than the number was found on"
    """Likely causes of an AP below what is expected of the job."""

    dataset: DatasetSpec
    model: ModelSpec
    seed: Seed
    threads: PositiveInt | None = None
    micro_batch: PositiveInt | None = None

    @property
    def ranks(self) -> int:
        """Processes that work together."""
        return 1

    @property
    def length(self) -> tuple[float, str]:
        """How much it reads and in which unit; compared among jobs of a kind and a unit only."""
        return 1.0, "epochs"


class EvaluateSpec(JobSpec):
    """Measure a teacher whose weights come from a file.

    Args:
        checkpoint: SHA-256 of the file.
        ema: whether its averaged weights are measured.
        pad_divisor: the student's; images of a batch are padded to one size, which convolutions see.
        batch_size: of the evaluation, for the same reason.
    """

    work = "evaluating.Measurement"
    is_teacher = True
    counts = "images"
    shrinks = False
    doubts = (
        "other preprocessing (mean, std, order of channels), other classes or order of classes, "
        "other labels or another dataset.scale than the number was found with"
    )

    kind: Literal["evaluate"] = "evaluate"
    checkpoint: str
    ema: bool = False
    pad_divisor: PositiveInt
    batch_size: PositiveInt


class DiagnoseSpec(JobSpec):
    """Compare a trained student with its teacher: rankings, kept boxes, predictions and features.

    Args:
        teacher: its model.
        batch_size: of the evaluation; images of a batch are padded to one size, which convolutions see.
    """

    work = "diagnosing.Diagnoser"
    instead = "compares a student with its teacher and trains nothing"
    counts = "images"
    shrinks = False
    version: ClassVar[int] = 1
    """Of the measures; raised by the commit that moves one of their numbers."""

    kind: Literal["diagnose"] = "diagnose"
    teacher: ModelSpec
    batch_size: PositiveInt


class TrainingSpec(JobSpec):
    """Any job that trains.

    Args:
        schedule: of the training.
        iterations: steps of the training where the kind of job says so; None leaves it to its schedule.
    """

    schedule: Schedule
    iterations: PositiveInt | None = None

    @property
    def batch_size(self) -> int:
        """Images of one step, over all processes."""
        return self.schedule.batch_size

    @property
    def epochs(self) -> int | None:
        """Passes over the training images; None where iterations are counted."""
        return None if self.iterations else self.schedule.epochs

    @property
    def mixed_epochs(self) -> float:
        """First epochs in which images are mixed; a training that counts iterations stops it never."""
        return float("inf") if self.epochs is None else self.epochs - self.dataset.augment_stop

    @property
    def images_a_forward(self) -> int | None:
        """At most, of each process; None for all of a batch."""
        schedule = self.schedule
        part = self.batch_size // self.ranks // schedule.accumulate
        limits = [self.micro_batch, part if part < self.batch_size else None]
        return min((limit for limit in limits if limit), default=None)

    @property
    def ranks(self) -> int:
        """One process per GPU of the schedule."""
        return self.schedule.gpus

    @property
    def length(self) -> tuple[float, str]:
        """Epochs, or the images that its steps see."""
        if self.epochs is None:
            return float((self.iterations or self.schedule.iterations or 0) * self.batch_size), "images"
        return float(self.epochs), "epochs"


class DetectorSpec(TrainingSpec):
    """Train a detector, by its own losses and those of methods.

    Args:
        methods: by instance ("cwd@neck").
        teacher: model of its teacher; None where it learns from none.
        teacher_precision: of its forward pass; None is the schedule's. What methods run again of its heads
            is fp32.
        teacher_compiled: whether that pass is compiled; what methods run again of its heads is not.
        inherit: whether its neck and head start from the teacher's.
        prepared: the job that prepared what a method instance needs, by instance.
    """

    methods: dict[str, MethodSettings] = {}
    teacher: ModelSpec | None = None
    teacher_precision: Precision | None = None
    teacher_compiled: bool = False
    inherit: bool = False
    prepared: dict[str, str] = {}


class TeacherSpec(DetectorSpec):
    """Train the teacher."""

    is_teacher = True

    kind: Literal["teacher"] = "teacher"


class StudentSpec(DetectorSpec):
    """Train one student of one arm."""

    is_student = True

    kind: Literal["student"] = "student"


class ScaleSpec(DetectorSpec):
    """Train as a student does for some steps, to measure the size of each loss and the latency."""

    work = "scaling.Scale"
    instead = "takes a few steps to measure how large the losses are and keeps no weights"
    counts = "steps"

    kind: Literal["scale"] = "scale"


class BenchSpec(DetectorSpec):
    """Time the steps of a student and what is around them; weights are random, and so are a teacher's.

    Args:
        asked: when, in UTC, for what was measured then says nothing of now.
        rounds: how often each thing is measured.
        student: id of the one that would train so.
    """

    work = "benching.Bench"
    instead = "measures time and memory and keeps no weights"
    counts = "steps"
    shrinks = False

    kind: Literal["bench"] = "bench"
    asked: str
    rounds: PositiveInt
    student: str = ""


class PrepareSpec(TrainingSpec):
    """Learn what a method needs of the teacher before any student is trained.

    Args:
        method: which.
        options: those that decide what is learned.
        pad_divisor: the student's.
    """

    work = "preparing.Preparer"
    instead = "trains no detector"
    shrinks = False

    kind: Literal["prepare"] = "prepare"
    method: str
    options: dict[str, Any] = {}
    pad_divisor: PositiveInt


Spec = TeacherSpec | EvaluateSpec | PrepareSpec | StudentSpec | ScaleSpec | BenchSpec | DiagnoseSpec
_SPEC: TypeAdapter[Spec] = TypeAdapter(Annotated[Spec, Field(discriminator="kind")])

BY_CONTENT = 2
"""The version of `marshal` in which equal values are equal bytes; as a key in a third of the time of JSON."""


def plain(spec: Spec) -> dict[str, Any]:
    """The settings as JSON values, without those that have their default; inverse of `read_spec`."""
    return {"kind": spec.kind, **spec.model_dump(mode="json", exclude_defaults=True)}


def read_spec(data: dict[str, Any]) -> Spec:
    """The settings in plain JSON values.

    Raises:
        ValueError: they are not those of a job.
    """
    # thousands of jobs of a plan differ in their seed alone
    shared = _validated(marshal.dumps({**data, "seed": 0}, BY_CONTENT))
    return shared.model_copy(update={"seed": data["seed"]})


@lru_cache(maxsize=4096)
def _validated(content: bytes) -> Spec:
    return _SPEC.validate_json(json.dumps(marshal.loads(content)))
