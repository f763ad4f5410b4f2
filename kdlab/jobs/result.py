"""The result of a finished job, as `result.json` holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from kdlab.errors import MachineError
from kdlab.jobs.files import read_json, write_json
from kdlab.jobs.job import SCHEMA, check_schema
from kdlab.jobs.paths import JobPaths


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
    kind: str
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
            UsageError: it is of another version of kdlab.
        """
        try:
            data = read_json(paths.result)
            check_schema(data, paths.result)
            known = None if data is None else {key: data[key] for key in data if key != "schema"}
            return None if known is None else cls(**known)
        except (ValueError, TypeError) as error:
            what, fix = "a result is damaged", "restore the file, or remove it and run again"
            raise MachineError(what, where=str(paths.result), got=str(error)[:200], fix=fix) from error
