"""What only a GPU can settle; `nox -s gpu` runs these where there is one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kdlab import devices
from kdlab.datasets.base import DatasetFiles
from kdlab.jobs.job import Resources
from kdlab.jobs.paths import Runs
from kdlab.jobs.result import JobResult
from kdlab.jobs.spec import plain, read_spec
from kdlab.running.executors.local import Local
from kdlab.training.device import is_out_of_memory
from kdlab.training.job import run_job
from kdlab.training.optimising import build_optimiser
from tests.gpu.conftest import Step, schedule, served
from tests.stubs.jobs import MODEL, make, method
from tests.stubs.pairs import DETECTORS
from tests.stubs.stub_job import prepared

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SAMPLED = ("faster_rcnn", "deformable_detr", "dino")
"""Detectors that draw while they train: proposals, dropout, denoising; a GPU's generator gives others."""


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("detector", "method"), [("gfl", ""), *served()])
def test_a_method_computes_on_cuda_what_it_does_on_the_cpu(step: Step, detector: str, method: str) -> None:
    found, expected = (step(detector, method, device)[0] for device in ("cuda", "cpu"))
    assert found.keys() == expected.keys()
    if detector not in SAMPLED:
        assert found == pytest.approx(expected, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_sixteen_bits_train(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any],
    detector: str, precision: str, optimizer: str,
) -> None:  # fmt: skip
    distiller = distil(detector, {"pkd": term("pkd")}).to("cuda").train()
    optim = build_optimiser(distiller, schedule(precision=precision, optimizer=optimizer))
    # what lies in freed memory is no momentum
    freed = [torch.full((1 << 20,), 1e20, device="cuda") for _ in range(64)]
    del freed
    losses = [float(distiller.train_step(raw_batch(), optim)["loss"]) for _ in range(12)]
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("exact")
def test_shares_of_the_gradient_are_those_of_the_cpu(
    distil: Callable[..., Any], term: Callable[..., Any], raw_batch: Callable[..., Any]
) -> None:
    found = []
    for device in ("cuda", "cpu"):
        distiller = distil("gfl", {"rm": term("rm"), "pfi": term("pfi")}).to(device).train()
        distiller.train_step(raw_batch(), build_optimiser(distiller, schedule()))
        found.append({name: float(share) for name, share in distiller.shares.items()})
    assert found[0].keys() == {"rm", "pfi"}
    assert found[0] == pytest.approx(found[1], rel=1e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_teacher_its_student_and_what_looks_at_both_run_on_a_gpu(
    digits: DatasetFiles, tmp_path: Path, compiled: bool
) -> None:
    small = MODEL | {"strides": [8, 16, 32]}
    shared = {
        "inputs": {"dataset": digits},
        "resources": Resources(gpus=1, workers=2),
        "schedule": {"epochs": 2, "precision": "bf16", "channels_last": True, "accumulate": 2, "ema": 0.1},
        "model": small,
    }
    taught = {"teacher": small, "teacher_precision": "bf16", "teacher_compiled": compiled}
    methods = {"rm": method("rm"), "mgd": method("mgd")}
    teacher = make("teacher-1", **shared)
    student = make("student-1", parents=("teacher-1",), methods=methods, **taught, **shared)
    timed = {**plain(student.spec), "kind": "bench", "asked": "2026-12-01 10:00:00", "rounds": 3}
    bench = replace(student, id="bench-1", spec=read_spec(timed), parents=())
    shared.pop("schedule")
    diagnose = make("diagnose-1", parents=("teacher-1", "student-1"), teacher=small, **shared)
    for job in (teacher, student, bench, diagnose):
        paths = prepared(Runs(tmp_path), job)
        if job is student:
            paths.stop_request.touch()
            assert run_job(paths) is None
            paths.stop_request.unlink()
        result = run_job(paths)
        assert result is not None
        assert result.environment["device"].startswith("cuda: ")
        assert result.peak_memory_gb > 0


def test_a_full_gpu_is_known_as_such(distil: Callable[..., Any], raw_batch: Callable[..., Any]) -> None:
    distiller = distil("retinanet").to("cuda").train()
    optim = build_optimiser(distiller, schedule())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.004)
    try:
        with pytest.raises(RuntimeError) as caught:
            distiller.train_step(raw_batch((0, 2) * 600), optim)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert is_out_of_memory(caught.value)


def test_nccl_starts_and_sums() -> None:
    address = f"file:///tmp/kdlab-nccl-{os.getpid()}"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=address, rank=0, world_size=1)
    try:
        numbers = torch.ones(3, device="cuda")
        dist.all_reduce(numbers)
        assert numbers.tolist() == [1, 1, 1]
    finally:
        dist.destroy_process_group()


def test_the_gpu_is_listed_and_torch_sees_it() -> None:
    machine = devices.detect()
    assert machine.device == "cuda"
    assert len(machine.gpus) == torch.cuda.device_count()
    assert all(gpu.memory_gb > 1 for gpu in machine.gpus)


@pytest.mark.parametrize("share", [1, 2])
def test_jobs_train_on_leased_gpus_out_of_a_warm_process(
    torch_: Any, digits: DatasetFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    monkeypatch.setenv("KDLAB_LOCKS", str(tmp_path))
    executor = Local([devices.detect().gpus[0].index])
    told = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "optimizer": "adamw", "precision": "fp16"}
    small = {"detector": "gfl", "head_convs": 1, "strides": (8, 16, 32)}
    resources = Resources(gpus=1, share=share, memory_gb=2.0, workers=2)
    jobs = [
        make(f"teacher-{seed}", "baseline", seed, inputs={"dataset": digits}, schedule=told, model=small,
             resources=resources)
        for seed in range(share)
    ]  # fmt: skip
    folders = {job.id: prepared(Runs(tmp_path), job) for job in jobs}
    handles, codes, deadline = {}, {}, time.monotonic() + 240
    while len(codes) < len(jobs):
        assert time.monotonic() < deadline
        for job in jobs:
            if job.id not in handles and (handle := executor.start(job, folders[job.id])):
                handles[job.id] = handle
        left = {name: handle for name, handle in handles.items() if name not in codes}
        codes |= executor.poll(left)
        time.sleep(0.05)
    for name, paths in folders.items():
        log = paths.log.read_text()
        assert codes[name] == 0, log
        assert "started cold" not in log
        result = JobResult.read(paths)
        assert result is not None
        assert result.environment["device"].startswith("cuda: ")
        assert result.environment["tf32"] == "convolutions"
        assert result.peak_memory_gb > 0
