"""Sections of a recipe that are no settings of a job: `dataset:`, `teacher:`, `resources:`, `tune:`.

What `student:`, `schedule:` and `methods:` may say is in `jobs/spec.py`, for jobs hold it as it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdlab.jobs.settings import Listed, Seed, Settings
from kdlab.jobs.spec import ImageSettings, MethodSettings, ModelSettings, Precision, Schedule
from kdlab.redaction import masked

_Choices = Annotated[tuple[Any, ...], Field(min_length=2), Listed]
Objective = Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "latency"]
Sampler = Literal["tpe", "random", "gp", "cmaes", "nsgaii", "qmc"]
Pruner = Literal["hyperband", "halving", "median", "none"]


class DatasetSettings(ImageSettings):
    """`dataset:`.

    Args:
        name: a dataset of the catalog.
        options: all options of its `prepare`; in YAML they stand beside `name`.
    """

    name: str
    options: dict[str, Any] = {}


class TeacherSettings(ModelSettings):
    """`teacher:`, the source; trained by the plan, read from a checkpoint and measured, or an arm's student.

    Args:
        recipe: name or path of another recipe, one of whose students it is; None for a teacher of its own.
        arm: of that recipe. The keys of the model and the schedule are that recipe's then.
        seed: of its training; where it is an arm's student the first seed of that recipe, if left out.
        schedule: of its training; keys that are left out are the recipe's.
        precision: of its forward pass where students learn from it; None is their schedule's.
        compile: run that pass as torch.compile makes it, which takes a minute at the start of each student.
        checkpoint: path or URL of its weights; None trains it.
        partial: accept a checkpoint that is not whole.
        ema: take the averaged weights of a checkpoint that holds them beside those of the last step.
        expect_ap: the AP that it should reach, 0 to 100; the run ends where it is more than 0.5 below.
    """

    recipe: Annotated[str, Field(min_length=1)] | None = None
    arm: Annotated[str, Field(min_length=1)] | None = None
    seed: Seed = 0
    schedule: Schedule
    precision: Precision | None = None
    compile: bool = False
    checkpoint: Annotated[str, Field(min_length=1)] | None = None
    partial: bool = False
    ema: bool = False
    expect_ap: Annotated[float, Field(ge=0, le=100)] | None = None

    @property
    def is_own(self) -> bool:
        """Whether this recipe says how it is trained."""
        return self.checkpoint is None and self.recipe is None

    @model_validator(mode="after")
    def _partial_of_something(self) -> Self:
        for key in ("partial", "ema"):
            if getattr(self, key) and self.checkpoint is None:
                raise ValueError(f"{key}: true needs a checkpoint")
        return self


class Resources(Settings):
    """`resources:`, what does not change results.

    Args:
        workers: loader processes of each of a job's processes; None is none on the CPU, and on GPUs their
            share of the cores, 8 at most.
        cache: "ram" keeps decoded images in memory, shared by a job's loader processes.
        checkpoint_minutes: time between checkpoints for resuming.
        share: jobs of one GPU that may run on one side by side, as far as its memory holds them.
        on_oom: what becomes of a job that its GPU is too small for: "micro_batch" trains it in smaller
            parts of the same batch, under an id of its own; "fail" leaves it failed.
        trackers: where what jobs say is kept besides runs; [] is nowhere.
        executors: what an executor is told, by its key; in YAML each stands beside `workers`.
    """

    workers: Annotated[NonNegativeInt, Field(le=256)] | None = None
    cache: Literal["none", "ram"] = "none"
    checkpoint_minutes: Annotated[PositiveFloat, Field(le=100_000)] = 10.0
    share: Annotated[int, Field(ge=1, le=8)] = 1
    on_oom: Literal["micro_batch", "fail"] = "micro_batch"
    trackers: Annotated[tuple[str, ...], Listed] = ("mlflow",)
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
        epochs: of a trial, the schedule stretched or shrunk to them; None for those of the recipe, which
            must be said where its schedule counts iterations.
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
    trials: Annotated[PositiveInt, Field(le=100_000)] = 30
    epochs: Annotated[PositiveInt, Field(le=100_000)] | None = None
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
            path from the working folder on for others.
        path: its file.
        title: the file's first comment.
        command: what a person types for it; a path of this machine in it is `PATH`.
        dataset: what all models learn from.
        teacher: None where no arm distils.
        stage: the recipe of whose students the teacher is one, with nothing in it but what trains that one;
            None where there is none.
        student: of all arms.
        schedule: of the students.
        arms: the methods of each arm, by instance ("cwd@neck"); an arm without methods is a baseline, unless
            it inherits.
        inherits: the arms whose students start from the teacher's neck and head; in YAML `inherit: true`
            beside the methods.
        seeds: every arm runs once with each.
        resources: what does not change results.
        tune: what `kdlab tune` searches.
        places: where what `dataset`, `teacher` and `student` say was written, by dotted path: "my.yaml:7".
    """

    name: str
    path: str
    title: str
    command: str = ""
    dataset: DatasetSettings
    teacher: TeacherSettings | None = None
    stage: Recipe | None = None
    student: ModelSettings
    schedule: Schedule
    arms: dict[str, dict[str, MethodSettings]] = Field(min_length=1)
    inherits: Annotated[tuple[str, ...], Listed] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000), Listed] = (0,)
    resources: Resources = Resources()
    tune: TuneSettings = TuneSettings()
    places: Annotated[dict[str, str], Field(exclude=True, repr=False)] = {}

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must not repeat a seed")
        return seeds

    @model_validator(mode="after")
    def _mixes_in_some_epochs(self) -> Self:
        stop, schedules = self.dataset.augment_stop, {"schedule": self.schedule}
        if self.teacher and self.teacher.is_own:
            schedules["teacher.schedule"] = self.teacher.schedule
        for name, schedule in schedules.items():
            if stop and schedule.iterations:
                raise ValueError(f"dataset.augment_stop counts epochs: give {name}.epochs, not iterations")
        lengths = {f"{name}.epochs": schedule.epochs for name, schedule in schedules.items()}
        for name, epochs in {**lengths, "tune.epochs": self.tune.epochs}.items():
            if epochs and 0 < epochs <= stop:
                raise ValueError(f"dataset.augment_stop: none of {epochs} {name} is left that mixes images")
        return self

    def __eq__(self, other: object) -> bool:
        """Where a value was written makes no other recipe."""
        return isinstance(other, Recipe) and self.to_dict() == other.to_dict()

    def place(self, path: str) -> str:
        """Where a dotted path was written, or else what holds it; the file where nobody noted a line."""
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return self.places.get(path, self.path)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values, as others may read it; equal recipes give equal dicts."""
        return masked(self.model_dump(mode="json"))
