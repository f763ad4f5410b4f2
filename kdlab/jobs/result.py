"""Result of a finished job: a summary in `result.json`, learning curves beside it in `curves.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from kdlab.errors import MachineError
from kdlab.jobs.files import as_kind, parsed, read_as, read_bytes, write_json
from kdlab.jobs.job import SCHEMA, check_owner, check_schema
from kdlab.jobs.paths import JobPaths

Points = Annotated[float, Field(ge=0, le=100, strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on the validation images, in points 0 to 100.

    Args:
        metrics: AP AP50 AP75 APs APm APl, with VOC's data VOC07 and VOC12; a size without objects is absent.
        per_class: AP of each class; a class without objects is absent.
        epoch: after which it was made, from 1; 0 outside of training.
        iteration: the same in steps of the optimiser.
    """

    metrics: dict[str, Points] = field(default_factory=dict)
    per_class: dict[str, Points] = field(default_factory=dict)
    epoch: int = 0
    iteration: int = 0


@dataclass(frozen=True)
class JobResult:
    """Summary of a finished job: all that tables need of it but AP on resampled images.

    Args:
        id: of the job.
        kind: the job's.
        arm: the job's.
        seed: the job's.
        last: after the last epoch; empty where the job measures nothing.
        best: of highest AP, without its classes; chosen on the evaluation set.
        timing: seconds: "step_s" and "data_s" (medians in training), "latency_s" (from one image to its
            boxes, median, where the job ran), with methods "teacher_latency_s" (the same of the teacher,
            which took turns with the student image by image), "student_step_s", "teacher_forward_s",
            "distill_step_s" (interleaved medians after training, of one process and of one forward where a
            step has several; the last two only with methods).
        model: "params", "trained_parts" (parameters that each method instance trained beside the student),
            "weights_sha256" of `ckpt/weights.pth`; "checkpoint" where the weights came from one: "file",
            "sha256" and "keys", what was loaded of it; "inherited" where the student started from the
            teacher's neck and head: how many "tensors" "of" how many.
        environment: versions, commit, device, threads.
        data: what training read: images, objects, what was dropped.
        diagnosis: of a student beside its teacher: the ids of "student" and "teacher", "teacher_AP", what
            `Diagnosis.summary` tells; "levels", by stride the mean of P ("prediction") and of F ("feature")
            and their "correlation"; "lacks", why a part is missing.
        wall_s: seconds of training and evaluation over all attempts, without starting and what a kill undid.
        peak_memory_gb: largest resident size of a process (CPU) or memory allocated on a GPU.
        attempts: how often it was started.
    """

    id: str
    kind: str
    arm: str
    seed: int
    last: Evaluation = Evaluation()
    best: Evaluation = Evaluation()
    timing: dict[str, float] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    peak_memory_gb: float = 0.0
    attempts: int = 1

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that count: those after the last epoch."""
        return self.last.metrics

    def write(self, paths: JobPaths) -> None:
        """Write `result.json`: from here on the job is done and never runs again."""
        write_json(paths.result, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, paths: JobPaths) -> Self | None:
        """The result of a finished job, None where it has not finished.

        Raises:
            MachineError: the file is damaged.
            UsageError: it is of another version of kdlab.
        """
        with _told_if_damaged(paths.result):
            try:
                data = parsed(read_bytes(paths.result))
            except FileNotFoundError:
                return None
            check_schema(data, paths.result)
            found = as_kind(data, cls)
            check_owner(found.id, paths)
            if not isinstance(found.model.get("params", 0), int | float):
                raise ValueError("model.params is no number")
            return found


@dataclass(frozen=True)
class Curves:
    """Learning curves of a job; of one that trained nothing they are empty.

    Args:
        evaluations: in their order.
        losses: reports in their order: "iteration", "lr", then a mean per term since the last report, raw
            ones as `raw_<term>`.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    losses: list[dict[str, float]] = field(default_factory=list)

    def write(self, paths: JobPaths) -> None:
        """Write `curves.json`, before the result."""
        write_json(paths.curves, asdict(self))

    @classmethod
    def read(cls, paths: JobPaths) -> Self:
        """The curves that a job left, empty ones where it left none.

        Raises:
            MachineError: the file is damaged.
        """
        with _told_if_damaged(paths.curves):
            data = read_as(paths.curves, dict)
            if data is None:
                return cls()
            if missing := {"evaluations", "losses"} - data.keys():
                raise ValueError(f"{min(missing)} is missing")
            return as_kind(data, cls)


@contextmanager
def _told_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        what, fix = "a result is damaged", "restore the file, or remove it and run again"
        raise MachineError(what, where=str(path), got=str(error)[:200], fix=fix) from error
