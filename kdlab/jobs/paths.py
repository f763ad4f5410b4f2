"""Where the files of jobs and plans are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self


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
    curves = _Inside("curves.json")
    resampled = _Inside("resampled.npy")
    detections = _Inside("detections.npz")
    diagnosis = _Inside("diagnosis.npz")
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
        return cls(Path(os.environ.get("KDLAB_RUNS") or "runs").expanduser())

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
