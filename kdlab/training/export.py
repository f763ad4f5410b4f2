"""A trained detector without kdlab: `python -m kdlab.training.export < request.json`.

A short process of its own, because the command line never imports torch. Standard input is an object with the
"job" (its folder), "to" (where the files go), "force", and "onnx": null, or "size" and "nms" as `onnx.export`
has them. Standard output is what was written, or the "faults" of an error, whose exit code is the process's.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save as safetensors

from kdlab import children, detectors
from kdlab.detectors.mmdet_config import see
from kdlab.errors import MachineError, UsageError
from kdlab.jobs.files import replacing
from kdlab.jobs.job import Job, read_job
from kdlab.jobs.paths import JobPaths
from kdlab.jobs.result import JobResult
from kdlab.training import checkpoints
from kdlab.training.augmenting import resizing
from kdlab.training.data import META_KEYS

ENDINGS = ("safetensors", "pth", "py", "onnx")


def export(job_folder: Path, to: Path, *, force: bool = False, wish: dict[str, Any] | None = None) -> Any:
    """Write a finished job's detector as files that mmdet or ONNX Runtime loads without kdlab.

    Args:
        job_folder: of the job.
        to: where the files go, named "student" or "teacher"; other files there stay.
        force: replace what an earlier export left.
        wish: "size" and "nms" of `onnx.export`; None writes no ONNX file.

    Returns:
        "job", "folder", "files" (name and bytes) and "checks" of the ONNX file.

    Raises:
        UsageError: there are files already, or the ONNX file cannot be as wished.
        JobError: the weights are not the job's, or ONNX Runtime computes something else.
        MachineError: the folder cannot be written; nothing is left there that was not before.
    """
    paths = JobPaths(job_folder)
    job, name = read_job(paths), "student"
    see(job.inputs.modules)
    if job.spec.is_teacher:
        name = "teacher"
    names = [f"{name}.{ending}" for ending in ENDINGS]
    there = [name for name in names if (to / name).exists()]
    if there and not force:
        raise UsageError(
            "there is an export already",
            where=str(to),
            got=", ".join(there),
            fix="add --force to replace it, or --to with another folder",
        )
    state, result = checkpoints.finished_state(paths), JobResult.read(paths)
    origin = origin_of(job, result)
    words = as_words(origin)
    pickled = io.BytesIO()
    torch.save({"state_dict": state, "meta": origin}, pickled)
    # the format knows no tensor of two names, as RTMDet's shared convolutions are
    apart = {name: tensor.clone() for name, tensor in state.items()}
    content = [
        safetensors(apart, {"format": "pt", **words}),
        pickled.getvalue(),
        config_text(job).encode(),
    ]
    checks: list[dict[str, Any]] = []
    if wish is not None:
        from kdlab.training import onnx

        model = detectors.assembled(job.spec.model, _model_config(job))
        model.load_state_dict(state)
        data, checks = onnx.export(model.eval(), words | card(job, result, model.test_cfg), **wish)
        content.append(data)
    files = dict(zip(names, content, strict=False))
    write(to, files)
    for stale in names[len(files) :]:
        (to / stale).unlink(missing_ok=True)
    written = [{"name": file, "bytes": len(data)} for file, data in files.items()]
    return {"job": job.id, "folder": str(to), "files": written, "checks": checks}


def origin_of(job: Job, result: JobResult) -> dict[str, Any]:
    """Origin of the weights and the names of their classes, as plain data."""
    return {
        "dataset_meta": {"classes": list(job.inputs.dataset.classes)},
        "kdlab": {
            "job": job.id,
            "arm": job.arm,
            "seed": job.seed,
            "version": result.environment.get("kdlab", ""),
            "commit": result.environment.get("commit", ""),
        },
    }


def as_words(origin: dict[str, Any]) -> dict[str, str]:
    """The origin for formats whose metadata are words."""
    classes = json.dumps(origin["dataset_meta"]["classes"], ensure_ascii=False)
    return {"classes": classes, **{f"kdlab.{key}": str(value) for key, value in origin["kdlab"].items()}}


def card(job: Job, result: JobResult, test_cfg: Any) -> dict[str, str]:
    """How to make an input of an image, and what the detector is, for a file without a config next to it.

    Args:
        job: that trained it.
        result: its.
        test_cfg: of the model, whose threshold its AP was measured with.
    """
    resize = resizing(job.spec.dataset.scale)
    told = {
        "image_scale": job.spec.dataset.scale,
        "keep_ratio": resize["keep_ratio"],
        # what mmdet's Resize does where nothing is said
        "interpolation": resize.get("interpolation", "bilinear"),
        "score_threshold": test_cfg.get("rcnn", test_cfg).get("score_thr", 0),
        "card": {
            "metrics": result.metrics,
            "data": job.inputs.dataset.name,
            "data_fingerprint": job.spec.dataset.fingerprint,
            "detector": f"{job.spec.model.detector} {job.spec.model.backbone or ''}".strip(),
            "methods": sorted(getattr(job.spec, "methods", {})),
            "teacher": next(iter(job.parents), None),
        },
    }
    return {key: json.dumps(value) for key, value in told.items()}


def config_text(job: Job) -> str:
    """An mmdet config that needs no other file: the model, and the pipeline of the job's evaluation."""
    classes = job.inputs.dataset.classes
    pipeline = [
        {"type": "LoadImageFromFile"},
        resizing(job.spec.dataset.scale),
        {"type": "PackDetInputs", "meta_keys": META_KEYS},
    ]
    dataset = {
        "type": "CocoDataset",
        "metainfo": {"classes": classes},
        "ann_file": "",
        "data_prefix": {"img": ""},
        "test_mode": True,
        "pipeline": pipeline,
    }
    config = Config(
        {
            "default_scope": "mmdet",
            "classes": classes,
            "model": _model_config(job),
            "test_pipeline": pipeline,
            "test_dataloader": {"batch_size": 1, "num_workers": 0, "dataset": dataset},
        }
    )
    if job.spec.model.imports:
        config.custom_imports = {"imports": list(job.spec.model.imports)}
    return f"# {job.label} ({job.id}), written by kdlab export\n{config.pretty_text}"


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Put files into a folder, all of them or none.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name, data in files.items():
                file = stack.enter_context(replacing(folder / name))
                file.write(data)
                # a disk that is full says so here, before the first file gets its name
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise MachineError(
            "the export cannot be written",
            where=str(folder),
            got=error.strerror or str(error),
            fix="make room or get permission there, or choose another folder with --to",
        ) from error


def _model_config(job: Job) -> Any:
    model = detectors.config(job.spec.model, len(job.inputs.dataset.classes)).model
    # the weights come from the export, and a machine without a network must load them too
    model.backbone.init_cfg = None
    return model


def main() -> int:
    """Do what the request on standard input says."""
    return children.answer(
        lambda asked: export(Path(asked["job"]), Path(asked["to"]), force=asked["force"], wish=asked["onnx"])
    )


if __name__ == "__main__":
    sys.exit(main())
