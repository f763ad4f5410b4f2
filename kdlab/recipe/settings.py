"""Sections of a recipe: frozen settings, each value with its type, its range and its default."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Listed = Strict(False)  # a YAML list is read as a tuple; its entries stay strict

_Choices = Annotated[tuple[Any, ...], Field(min_length=2), Listed]
Objective = Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "latency"]
Sampler = Literal["tpe", "random", "gp", "cmaes", "nsgaii", "qmc"]
Pruner = Literal["hyperband", "halving", "median", "none"]

_STEP = {"milestones": (8 / 12, 11 / 12), "optimizer": "sgd", "lr": 0.01, "batch_size": 16}
_PRESETS: dict[str, dict[str, Any]] = {
    "1x": {"epochs": 12, **_STEP},
    "2x": {"epochs": 24, **_STEP},
    "custom": {},
}


class Settings(BaseModel):
    """One section of a recipe: frozen, no unknown keys, no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DatasetSettings(Settings):
    """`dataset:`.

    Args:
        name: a dataset of the catalog.
        options: all options of its `prepare`; in YAML they stand beside `name`.
        scale: width and height that images are resized to fit, keeping their ratio; None leaves them.
        flip: probability of a horizontal flip in training.
        broken_images: what a job does at an image that cannot be read: "stop", or "skip" it and say so.
    """

    name: str
    options: dict[str, Any] = {}
    scale: Annotated[tuple[PositiveInt, PositiveInt], Listed] | None = None
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    broken_images: Literal["stop", "skip"] = "stop"


class ModelSettings(Settings):
    """`student:`, a detector and its size.

    Args:
        detector: a detector family of the catalog; or an mmdet config, by path or by its name in mmdet
            ("retinanet/retinanet_r50_fpn_1x_coco"): that says all sizes, and the five keys below are None.
        backbone: a backbone of the catalog.
        width: channels of its first stage (MobileNetV2: of its stem); those of its paper where left out.
        neck_channels: channels of every level.
        head_convs: convolutions of each tower; 0 for a family without towers.
        strides: of the levels, in input pixels: 4 or 8 and on, each twice the one before; the family's where
            left out.
        init: the backbone's first weights: "none" draws them, "imagenet" fetches torchvision's, else the path
            or URL of a file.
        overrides: values by dotted key of the mmdet config, which begin with "model.".
    """

    detector: str
    backbone: str | None = None
    width: PositiveInt | None = None
    neck_channels: PositiveInt | None = None
    head_convs: NonNegativeInt | None = None
    strides: Annotated[tuple[int, ...], Listed] | None = None
    init: Annotated[str, Field(min_length=1)] = "none"
    overrides: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """An override elsewhere would change nothing."""
        strays = [key for key in self.overrides if not key.startswith("model.")]
        if strays:
            raise ValueError(f"overrides must begin with model.: {', '.join(strays)}")
        return self

    @field_validator("strides")
    @classmethod
    def _doubling(cls, strides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if strides is None:
            return None
        if strides[:1] not in ((4,), (8,)) or any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError("must start with 4 or 8 and double at each level")
        return strides


class Schedule(Settings):
    """`schedule:`; keys that are left out come from the preset.

    Args:
        preset: "1x" and "2x" are mmdet's 12 and 24 epochs; "custom" leaves epochs, batch size, learning rate
            and optimizer to be said.
        epochs: passes over the training images.
        batch_size: images of one step, over all GPUs of the job; each takes an equal share.
        lr: the peak learning rate.
        optimizer: "sgd" or "adamw".
        momentum: of sgd.
        weight_decay: 1e-4 for sgd and 0.05 for adamw where it is left out.
        decay: "step" divides the learning rate by ten at each milestone, "cosine" lowers it to zero.
        milestones: ascending fractions of the epochs.
        warmup_iters: steps of linear warm-up.
        warmup_factor: where the warm-up starts, as a fraction of `lr`.
        clip_grad: largest norm of the gradient; None does not clip.
        gpus: of one job, each with a process of its own. Without GPUs it is that many processes of `threads`
            threads each, for trials: docs/several-gpus.md.
        precision: "fp32" or "amp".
        channels_last: memory layout of images and features.
        threads: CPU threads of each process.
        eval_every: epochs between evaluations; 0 evaluates after the last epoch only.
        keep_best: keep the weights of the best evaluation besides the last.
    """

    preset: Literal["1x", "2x", "custom"] = "1x"
    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    optimizer: Literal["sgd", "adamw"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat
    decay: Literal["step", "cosine"] = "step"
    milestones: Annotated[tuple[Fraction, ...], Listed] = ()
    warmup_iters: NonNegativeInt = 500
    warmup_factor: Annotated[float, Field(gt=0, le=1)] = 0.001
    clip_grad: PositiveFloat | None = None
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    precision: Literal["fp32", "amp"] = "fp32"
    channels_last: bool = False
    threads: PositiveInt = 1
    eval_every: NonNegativeInt = 1
    keep_best: bool = False

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in what the preset says, and the weight decay that is usual for the optimizer."""
        if not isinstance(data, dict):
            return data
        full = dict(_PRESETS.get(str(data.get("preset", "1x")), _PRESETS["1x"]))
        if data.get("decay") == "cosine":
            full["milestones"] = ()
        full |= data
        return {"weight_decay": 0.05 if full.get("optimizer") == "adamw" else 1e-4} | full

    @field_validator("gpus")
    @classmethod
    def _shares_the_batch(cls, gpus: int, info: ValidationInfo) -> int:
        if (batch_size := info.data.get("batch_size", gpus)) % gpus:
            whole = batch_size // gpus * gpus
            near = " or ".join(str(size) for size in (whole, whole + gpus) if size)
            raise ValueError(f"must divide batch_size {batch_size}; with {gpus} GPUs {near} would do")
        return gpus

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if milestones and info.data.get("decay") == "cosine":
            raise ValueError("has no effect with decay: cosine")
        if list(milestones) != sorted(set(milestones)):
            raise ValueError("must ascend")
        return milestones


class TeacherSettings(ModelSettings):
    """`teacher:`, the source; trained by the plan, or read from a checkpoint and measured.

    Args:
        seed: of its training.
        schedule: of its training; keys that are left out are the recipe's.
        checkpoint: path or URL of its weights; None trains it.
        partial: accept a checkpoint that is not whole.
        expect_ap: the AP that it should reach, 0 to 100; the run ends where it is more than 0.5 below.
    """

    seed: Seed = 0
    schedule: Schedule
    checkpoint: Annotated[str, Field(min_length=1)] | None = None
    partial: bool = False
    expect_ap: Annotated[float, Field(ge=0, le=100)] | None = None

    @model_validator(mode="after")
    def _partial_of_something(self) -> Self:
        if self.partial and self.checkpoint is None:
            raise ValueError("partial: true needs a checkpoint")
        return self


class MethodSettings(Settings):
    """One method of an arm.

    Args:
        method: a method of the catalog.
        weight: factor of its loss.
        warmup_iters: steps over which the weight rises linearly from 0.
        match: "stride" pairs levels of equal stride, "index" pairs them by position.
        levels: strides of the levels to use; None uses all.
        options: all options of the method; in YAML they stand beside `weight`.
    """

    method: str
    weight: NonNegativeFloat
    warmup_iters: NonNegativeInt = 0
    match: Literal["stride", "index"] = "stride"
    levels: Annotated[tuple[PositiveInt, ...], Field(min_length=1), Listed] | None = None
    options: dict[str, Any] = {}


class Resources(Settings):
    """`resources:`, what does not change results.

    Args:
        workers: loader processes of one job.
        checkpoint_minutes: time between checkpoints for resuming.
        share: jobs of one GPU that may run on one side by side, as far as its memory holds them.
        on_oom: what becomes of a job that its GPU is too small for: "micro_batch" trains it in smaller
            parts of the same batch, under an id of its own; "fail" leaves it failed.
        executors: what an executor is told, by its key; in YAML each stands beside `workers`.
    """

    workers: NonNegativeInt = 0
    checkpoint_minutes: PositiveFloat = 10.0
    share: Annotated[int, Field(ge=1, le=8)] = 1
    on_oom: Literal["micro_batch", "fail"] = "micro_batch"
    executors: dict[str, dict[str, Any]] = {}


class TuneSettings(Settings):
    """`tune:`, what `kdlab tune` searches and how.

    Args:
        arm: whose methods a trial trains; None for the smallest arm that has all that `over` names.
        over: what is searched: "pfi.weight", "rm.rank"; nothing for the weights of the arm's methods.
        space: of some of it, in place of what its method declares: [lowest, highest] of a number, or the
            values to choose from.
        student: settings of the student to choose from, by key: `width: [8, 16]`.
        objectives: AP, more of which is better, and what it is weighed against: seconds for one image.
        trials: how many, all runs of the command together.
        epochs: of a trial, the schedule stretched or shrunk to them; None for those of the recipe.
        split: part of the training images that a trial is measured on, and does not learn from.
        seed: of all trials; none of `seeds`.
        sampler: of Optuna; None is "tpe", and "nsgaii" for two objectives.
        pruner: of Optuna, which ends hopeless trials by their AP after each epoch; "none" lets all end.
        storage: an Optuna URL, or a path ending in .log for a journal; None is `optuna.db` in runs.
    """

    arm: str | None = None
    over: Annotated[tuple[str, ...], Listed] = ()
    space: dict[str, Annotated[tuple[Any, ...], Field(min_length=2), Listed]] = {}
    student: dict[Literal["backbone", "width", "neck_channels", "head_convs"], _Choices] = {}
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), Listed] = ("AP",)
    trials: PositiveInt = 30
    epochs: PositiveInt | None = None
    split: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    seed: Seed = 1000
    sampler: Sampler | None = None
    pruner: Pruner = "halving"
    storage: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("objectives")
    @classmethod
    def _of_each_kind(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if objectives[0] == "latency" or objectives[1:] not in ((), ("latency",)):
            raise ValueError("must be one AP, or that and latency: [AP, latency]")
        return objectives


class Recipe(Settings):
    """A whole recipe, every default filled in.

    Args:
        name: what people type ("digits/quickstart"; "ablate/..." for one that a command derived); the file's
            stem for others.
        path: its file.
        title: the file's first comment.
        command: what a person types for it; a path of this machine in it is `PATH`.
        dataset: what all models learn from.
        teacher: None where no arm distils.
        student: of all arms.
        schedule: of the students.
        arms: the methods of each arm, by instance ("cwd@neck"); an arm without methods is a baseline, unless
            it inherits.
        inherits: the arms whose students start from the teacher's neck and head; in YAML `inherit: true`
            beside the methods.
        seeds: every arm runs once with each.
        resources: what does not change results.
        tune: what `kdlab tune` searches.
    """

    name: str
    path: str
    title: str
    command: str = ""
    dataset: DatasetSettings
    teacher: TeacherSettings | None = None
    student: ModelSettings
    schedule: Schedule
    arms: dict[str, dict[str, MethodSettings]] = Field(min_length=1)
    inherits: Annotated[tuple[str, ...], Listed] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Listed] = (0,)
    resources: Resources = Resources()
    tune: TuneSettings = TuneSettings()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must not repeat a seed")
        return seeds

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values; equal recipes give equal dicts."""
        return self.model_dump(mode="json")
