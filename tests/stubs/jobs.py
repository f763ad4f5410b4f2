"""Jobs for tests, made in one line: a tiny typed specification, of which a test says what matters to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlab.datasets.base import DatasetFiles, Split
from kdlab.jobs.job import Inputs, Job, Resources
from kdlab.jobs.spec import MethodSettings, ModelSpec, Schedule, read_spec

SPLIT = Split(Path("/d/images"), Path("/d/labels.json"))
FILES = DatasetFiles("digits", tuple("0123456789"), SPLIT, SPLIT, "f" * 16)
MODEL: dict[str, Any] = {
    "detector": "gfl",
    "backbone": "resnet18",
    "width": 8,
    "neck_channels": 16,
    "head_convs": 1,
    "strides": [8, 16],
}
SCHEDULE: dict[str, Any] = {
    "preset": "custom",
    "epochs": 1,
    "batch_size": 4,
    "lr": 1e-3,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "decay": "cosine",
    "warmup_iters": 2,
    "warmup_factor": 0.1,
    "clip_grad": 35.0,
}
STEERING = "model.stub"
"""The override by which a test steers a stub in place of a job: no detector is built from it."""


def model(**changes: Any) -> ModelSpec:
    """A tiny model with some of its settings changed."""
    return ModelSpec.model_validate(MODEL | changes)


def schedule(**changes: Any) -> Schedule:
    """A short schedule with some of its settings changed."""
    return Schedule.model_validate(SCHEDULE | changes)


def method(key: str, **changes: Any) -> dict[str, Any]:
    """A method of an arm as plain data; keys that are no settings of all methods are its options."""
    own = {name: value for name, value in changes.items() if name in MethodSettings.model_fields}
    options = {name: value for name, value in changes.items() if name not in own}
    return {"method": key, "weight": 1.0, **own, "options": options}


def make(
    job_id: str,
    arm: str = "a",
    seed: int = 0,
    *,
    kind: str | None = None,
    parents: tuple[str, ...] = (),
    resources: Resources | None = None,
    inputs: dict[str, Any] | None = None,
    stub: dict[str, Any] | None = None,
    **settings: Any,
) -> Job:
    """A job as a plan would hold it.

    Args:
        job_id: its beginning is the kind where `kind` is None.
        arm: of its recipe.
        seed: of its settings.
        kind: of job.
        parents: ids.
        resources: by default one core.
        inputs: fields of `Inputs`; the dataset is `FILES` where it is left out.
        stub: what steers `stub_job` and the like.
        settings: fields of its specification as plain data; "model", "schedule" and "dataset" change single
            keys of the tiny ones.
    """
    kind = kind or job_id.partition("-")[0]
    needed: dict[str, Any] = {
        "teacher": {"schedule": {}},
        "student": {"schedule": {}},
        "scale": {"schedule": {}, "iterations": 4},
        "bench": {"schedule": {}, "asked": "2026-12-01 10:00:00", "rounds": 2},
        "prepare": {"schedule": {}, "method": "maskd", "pad_divisor": 32, "iterations": 4},
        "diagnose": {"teacher": MODEL, "batch_size": 4},
        "evaluate": {"checkpoint": "c" * 64, "pad_divisor": 32, "batch_size": 4},
    }[kind]
    changed = {**needed, **settings}
    if "schedule" in changed:
        changed["schedule"] = SCHEDULE | changed["schedule"]
    changed["model"] = MODEL | changed.get("model", {})
    if stub is not None:
        changed["model"] = changed["model"] | {"overrides": {STEERING: stub}}
    files = FILES if inputs is None else inputs.get("dataset", FILES)
    reading = {"name": files.name, "fingerprint": files.fingerprint} | changed.get("dataset", {})
    common = {"kind": kind, "seed": seed, "threads": 1}
    spec = read_spec({**common, **changed, "dataset": reading})
    assert spec.kind == kind
    given = Inputs(**{"dataset": FILES, **(inputs or {})})
    return Job(job_id, arm, spec.model_copy(deep=True), given, parents, resources or Resources())


def steering(job: Job) -> dict[str, Any]:
    """What `stub` of `make` said."""
    found: dict[str, Any] = job.spec.model.overrides.get(STEERING, {})
    return found


def changed(job: Job, **settings: Any) -> Any:
    """The specification of a job with some of its settings changed, each given as plain data."""
    plain = job.spec.model_dump(mode="json")
    return read_spec({**plain, **settings})
