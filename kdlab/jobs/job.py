"""A job: plain data that crosses a process boundary as JSON."""

from __future__ import annotations

import marshal
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from kdlab.datasets.base import DatasetFiles
from kdlab.errors import MachineError, UsageError
from kdlab.jobs.files import parsed, read_bytes
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.spec import BY_CONTENT, Spec, plain, read_spec

SCHEMA = 2
"""Of the files of jobs and plans. Raised by the commit after which older ones cannot be read."""

TEACHER, ABOVE = "teacher", " of teacher"
"""The arm of what a plan's students learn from, as no arm of a recipe is called; and the end of the arms of
all that leads to it, where it is a student itself: "teacher of teacher", "prepare maskd of teacher"."""

TOLERATED_AP = 0.5
"""How far below `teacher.expect_ap` a teacher may be, in points."""


@dataclass(frozen=True)
class Resources:
    """What a job takes of a machine. None of it can change a result, so none of it is hashed.

    Args:
        threads: CPU threads of each process (the hashed thread count, repeated here).
        gpus: GPUs to lease; 0 runs on the CPU.
        share: how many jobs of one GPU may run on one, this one among them.
        memory_gb: of each GPU, as jobs like this one took; None where nobody knows.
        workers: loader processes of each process; 0 loads in the training process.
        cache: "ram" keeps decoded images in memory; "none" reads them each time.
        checkpoint_minutes: longest time between two checkpoints.
        ranks: processes that train together, one a GPU or, without GPUs, `threads` cores each.
    """

    threads: int = 1
    gpus: int = 0
    share: int = 1
    memory_gb: float | None = None
    workers: int = 0
    cache: str = "none"
    checkpoint_minutes: float = 10.0
    ranks: int = 1

    @property
    def cores(self) -> int:
        """CPU cores to lease on a machine without GPUs."""
        return self.threads * self.ranks


@dataclass(frozen=True)
class Inputs:
    """Where outside files lie now, and what judges or prices a result. None of it is hashed.

    Args:
        dataset: the files whose fingerprint the settings hold.
        checkpoint: file of a teacher's weights, known by its hash.
        init: file of a backbone's first weights, known by its hash.
        partial: accept a checkpoint that is not whole.
        expect_ap: what a teacher must reach, 0 to 100.
        flops: of the detector on one image (2 per multiply-add).
        flops_teacher: of the teacher that runs beside it; 0 without.
        modules: folders of modules that an mmdet config brings, looked in after all that is installed.
    """

    dataset: DatasetFiles
    checkpoint: str | None = None
    init: str | None = None
    partial: bool = False
    expect_ap: float | None = None
    flops: int = 0
    flops_teacher: int = 0
    modules: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The inputs as plain data."""
        return {**vars(self), "dataset": self.dataset.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        modules = tuple(data.get("modules", ()))
        return cls(**{**data, "dataset": DatasetFiles.from_dict(data["dataset"]), "modules": modules})


@lru_cache(maxsize=256)
def _around(content: bytes) -> tuple[Inputs, Resources]:
    """What thousands of jobs of a plan have in common, once, from what `marshal` made of it."""
    inputs, resources = marshal.loads(content)
    return Inputs.from_dict(inputs), Resources(**resources)


@dataclass(frozen=True)
class Job:
    """What trains or measures one detector: one process, or several that train together.

    Args:
        id: of `planning.ids`, a hash of `spec` and `parents`.
        arm: the recipe's name of the combination of methods; "teacher" for a teacher, "prepare <method>",
            "scale <arm>", "diagnose <student's label>". What leads to a teacher that is an arm of another
            recipe ends in `ABOVE`.
        spec: everything that can change the result.
        inputs: where its files lie.
        parents: ids of the jobs whose weights this one needs.
        resources: what it takes of a machine.
    """

    id: str
    arm: str
    spec: Spec
    inputs: Inputs
    parents: tuple[str, ...] = ()
    resources: Resources = Resources()

    @property
    def kind(self) -> str:
        """What the job makes, as people read it: teacher, student, evaluate, prepare, scale, diagnose."""
        return self.spec.kind

    @property
    def seed(self) -> int:
        """See `JobSpec`."""
        return self.spec.seed

    @property
    def stage(self) -> int:
        """Recipes between this job and the plan's own in a chain of teachers; 0 for the plan's own."""
        first, *above = self.arm.split(ABOVE)
        return len(above) + (self.spec.is_student and first == TEACHER)

    @property
    def is_teacher(self) -> bool:
        """Whether the students of the plan learn from it, of whatever kind it is."""
        return self.arm == TEACHER

    @property
    def is_student(self) -> bool:
        """Whether it is of an arm of the plan's own recipe."""
        return self.spec.is_student and self.stage == 0

    @property
    def label(self) -> str:
        """How people see the job: "rm+pfi seed 0", "teacher"."""
        return f"{self.arm} seed {self.seed}" if self.is_student else self.arm

    def to_dict(self) -> dict[str, Any]:
        """The job as plain data."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "arm": self.arm,
            "spec": plain(self.spec),
            "inputs": self.inputs.to_dict(),
            "parents": list(self.parents),
            "resources": asdict(self.resources),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is no job of this version.
        """
        spec = read_spec(data["spec"])
        inputs, resources = _around(marshal.dumps([data["inputs"], data["resources"]], BY_CONTENT))
        return cls(data["id"], data["arm"], spec, inputs, tuple(data["parents"]), resources)


def read_job(paths: JobPaths) -> Job:
    """The job that a folder was made for.

    Raises:
        FileNotFoundError: the folder has no `job.json`.
        MachineError: the file is damaged.
        UsageError: it is of another version of kdlab.
    """
    try:
        data = parsed(read_bytes(paths.job))
        check_schema(data, paths.job)
        found = Job.from_dict(data)
        check_owner(found.id, paths)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what, fix = "a job's file is damaged", "run its recipe again: that writes it anew"
        raise MachineError(what, where=str(paths.job), got=str(error)[:200], fix=fix) from error


def check_owner(found: str, paths: JobPaths) -> None:
    """See that a file in a job's folder is of this job.

    Raises:
        ValueError: it was copied from another's.
    """
    folder = paths.folder
    if folder.parent.name == "jobs" and found != folder.name:
        raise ValueError(f"it is of {found}")


def check_schema(data: Any, path: Path) -> None:
    """See that a file of a runs folder is of this version; one that tells no version is damaged at most.

    Raises:
        UsageError: it is of another version; names the folder, for none of it can be read.
    """
    found = data.get("schema", SCHEMA) if isinstance(data, dict) else SCHEMA
    if found == SCHEMA:
        return
    runs = next((folder.parent for folder in path.parents if folder.name in ("jobs", "plans")), path.parent)
    version = "0.1" if found == 1 else "a later version"
    raise UsageError(
        f"{runs} is a runs folder of kdlab {version}, which this version cannot read",
        where=str(path),
        got=f"schema {found}",
        known=f"schema {SCHEMA}",
        fix=f"move it away: mv {runs} {runs}-old   or set KDLAB_RUNS to another folder",
    )
