"""A job, its folder and its result: plain data that crosses a process boundary as JSON."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from kdlab.errors import MachineError
from kdlab.jobs.files import read_json, write_json

SCHEMA = 1
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


class _Inside:
    """A path in the folder of a job, made when it is asked for: of ten thousand jobs that counts."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, paths: JobPaths, _owner: type | None = None) -> Path:
        return paths.folder / self._name


class JobPaths:
    """Where the files of one job are; docs/architecture.md says what each holds."""

    job = _Inside("job.json")
    config = _Inside("config.py")
    log = _Inside("log.txt")
    events = _Inside("events.jsonl")
    lease = _Inside("lease.json")
    lock = _Inside("lease.lock")
    handle = _Inside("handle.json")
    stop_request = _Inside("stop.request")
    failure = _Inside("failure.json")
    result = _Inside("result.json")
    matches = _Inside("matches.npz")
    checkpoints = _Inside("ckpt")
    weights = _Inside("ckpt/weights.pth")

    def __init__(self, folder: Path) -> None:
        self.folder = folder


@dataclass(frozen=True)
class Runs:
    """The folder of everything that was run (`$KDLAB_RUNS`, else `runs/` here)."""

    folder: Path

    @classmethod
    def here(cls) -> Self:
        """Where this shell's commands run things."""
        return cls(Path(os.environ.get("KDLAB_RUNS") or "runs"))

    def job(self, job_id: str) -> JobPaths:
        """The folder of one job, whether it exists or not."""
        return JobPaths(self._jobs / job_id)

    @cached_property
    def _jobs(self) -> Path:
        return self.folder / "jobs"

    def stop_request(self, plan_id: str) -> Path:
        """The file that asks a search to begin no further trial."""
        return self.plans / f"{plan_id}.stop.request"

    @property
    def plans(self) -> Path:
        """One JSON file a plan."""
        return self.folder / "plans"


@dataclass(frozen=True)
class JobResult:
    """What a finished job found, complete: tables and plots read nothing else but `matches.npz`.

    Args:
        metrics: AP AP50 AP75 APs APm APl in points 0 to 100 after the last epoch; a size without objects
            is absent.
        best: the same and "epoch" for the epoch of highest AP; chosen on the evaluation set.
        per_class: AP of each class after the last epoch; a class without objects is absent.
        history: one entry an evaluation: "epoch", "iteration" and the metrics.
        losses: thinned course of training: "iteration", "lr", then a mean per term, raw ones as
            `raw_<term>`.
        timing: seconds: "step_s" and "data_s" (medians in training), "latency_s" (from one image to its
            boxes, median, where the job ran), "student_step_s",
            "teacher_forward_s", "distill_step_s" (interleaved medians after training, of one process and of
            one forward where a step has several; the last two only with methods).
        model: "params", "trained_parts" (parameters that each method instance trained beside the student),
            "weights_sha256" of `ckpt/weights.pth`; "checkpoint" where the weights came from one: "file",
            "sha256" and "keys", what was loaded of it; "inherited" where the student started from the
            teacher's neck and head: how many "tensors" "of" how many.
        environment: versions, commit, device, threads.
        data: what training read: images, objects, what was dropped.
        wall_s: seconds of training and evaluation over all attempts, without starting and what a kill undid.
        peak_memory_gb: largest resident size of a process (CPU) or memory allocated on a GPU.
        attempts: how often it was started.
    """

    id: str
    kind: Kind
    arm: str
    seed: int
    metrics: dict[str, float]
    best: dict[str, float]
    per_class: dict[str, float]
    history: list[dict[str, float]]
    losses: list[dict[str, float]]
    timing: dict[str, float]
    model: dict[str, Any]
    environment: dict[str, Any]
    wall_s: float
    peak_memory_gb: float
    attempts: int
    data: dict[str, Any] = field(default_factory=dict)

    def write(self, paths: JobPaths) -> None:
        """Write `result.json`: from here on the job is done and never runs again."""
        write_json(paths.result, {"schema": SCHEMA, **vars(self)})

    @classmethod
    def read(cls, paths: JobPaths) -> Self | None:
        """The result of a finished job, None where it has not finished.

        Raises:
            MachineError: the file is damaged.
        """
        try:
            data = read_json(paths.result)
            known = None if data is None else {key: data[key] for key in data if key != "schema"}
            return None if known is None else cls(**known)
        except (ValueError, TypeError) as error:
            what, fix = "a result is damaged", "restore the file, or remove it and run again"
            raise MachineError(what, where=str(paths.result), got=str(error)[:200], fix=fix) from error


def read_job(paths: JobPaths) -> Job:
    """The job that a folder was made for.

    Raises:
        FileNotFoundError: the folder has no `job.json`.
    """
    data = read_json(paths.job)
    if data is None:
        raise FileNotFoundError(paths.job)
    return Job.from_dict(data)
