"""A job: plain data that crosses a process boundary as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from kdlab.errors import UsageError
from kdlab.jobs.files import read_json
from kdlab.jobs.paths import JobPaths

SCHEMA = 2
"""Of all files in a runs folder: 1 was kdlab 0.1, whose settings, ids and results had another form."""
NUMERICS = 1
"""Raised by every commit that changes a number of any result; part of every job's id."""

TOLERATED_AP = 0.5
"""How far below `teacher.expect_ap` a teacher may be, in points."""

Kind = Literal["teacher", "student", "evaluate", "prepare", "scale"]


@dataclass(frozen=True)
class Resources:
    """What a job takes of a machine. None of it can change a result, so none of it is hashed.

    Args:
        threads: CPU threads of each process (the hashed thread count, repeated here).
        gpus: GPUs to lease; 0 runs on the CPU.
        share: how many jobs of one GPU may run on one, this one among them.
        memory_gb: of each GPU, as jobs like this one took; None where nobody knows.
        workers: loader processes of each process; 0 loads in the training process.
        checkpoint_minutes: longest time between two checkpoints.
        ranks: processes that train together, one a GPU or, without GPUs, `threads` cores each.
    """

    threads: int = 1
    gpus: int = 0
    share: int = 1
    memory_gb: float | None = None
    workers: int = 0
    checkpoint_minutes: float = 10.0
    ranks: int = 1

    @property
    def cores(self) -> int:
        """CPU cores to lease on a machine without GPUs."""
        return self.threads * self.ranks


@dataclass(frozen=True)
class Job:
    """What trains or measures one detector: one process, or several that train together.

    Args:
        id: `<kind>-<8 hex>`, a hash of `settings`.
        kind: what the job makes; "evaluate" measures a teacher whose weights came from outside, "prepare"
            learns what a method needs of a teacher, "scale" takes a few steps of a student to tell how large
            its losses are.
        arm: the recipe's name of the combination of methods; "teacher" for a teacher, "prepare <method>",
            "scale <arm>".
        seed: draws the first weights, the order of the data and the augmentation.
        settings: everything that can change the result, resolved, as plain data.
        parents: ids of the jobs whose weights this one needs.
        inputs: where outside files lie now ("dataset": the files of the data set), whose content `settings`
            holds as a hash, so that moving them changes no id ("checkpoint" of a teacher, "init" of a
            backbone); "flops" of an image, for costs; "expect_ap", what a teacher must reach; "partial".
        resources: what it takes of a machine.
    """

    id: str
    kind: Kind
    arm: str
    seed: int
    settings: dict[str, Any]
    parents: tuple[str, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()

    @property
    def is_teacher(self) -> bool:
        """Whether the job makes the teacher's weights: trained, or read from a checkpoint and measured."""
        return self.kind in ("teacher", "evaluate")

    @property
    def label(self) -> str:
        """How people see the job: "rm+pfi seed 0", "teacher"."""
        return f"{self.arm} seed {self.seed}" if self.kind == "student" else self.arm

    def to_dict(self) -> dict[str, Any]:
        """The job as plain data, which shares settings and inputs with it."""
        own = {"parents": list(self.parents), "resources": asdict(self.resources)}
        return {"schema": SCHEMA, **vars(self), **own}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        known = {key: value for key, value in data.items() if key != "schema"}
        known["parents"] = tuple(data["parents"])
        known["resources"] = Resources(**data["resources"])
        return cls(**known)


def read_job(paths: JobPaths) -> Job:
    """The job that a folder was made for.

    Raises:
        FileNotFoundError: the folder has no `job.json`.
        UsageError: it is of another version of kdlab.
    """
    data = read_json(paths.job)
    if data is None:
        raise FileNotFoundError(paths.job)
    check_schema(data, paths.job)
    return Job.from_dict(data)


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
